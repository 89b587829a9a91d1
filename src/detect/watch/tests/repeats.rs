//! What is a repeat: a row of which every byte that the model reads was asked before.

use super::*;

/// How many repeats a caller has who asks all of these.
pub(super) fn repeats(watch: &Arc<Watch>, asked: &[&[Tensor]]) -> u64 {
    let mut caller = Caller::new();
    for inputs in asked {
        let said = fp32(&[1, 2], &[0.25, 0.75]);
        caller.lesson(watch, inputs.to_vec(), Moment::now()).learn(std::slice::from_ref(&said), std::slice::from_ref(&said));
    }
    locked(&caller.known.pupil).learned[0].state.repeats
}

#[test]
fn a_row_is_a_repeat_alone_and_in_a_batch() {
    let (watch, numbers) = (watch(&calibration(), ""), [0.5; WIDTH]);
    let batch = [fp32(&[2, WIDTH as u64], &[[1.5; WIDTH], numbers].concat())];
    assert_eq!(repeats(&watch, &[&row(&numbers), &row(&numbers)]), 1);
    assert_eq!(repeats(&watch, &[&row(&numbers), &batch, &row(&[1.5; WIDTH])]), 2);
}

#[test]
fn what_the_model_reads_and_the_row_does_not_hold_is_no_repeat() {
    let watch = watch(&calibration(), "");
    let longer = |last: f32| row(&[&[0.5; WIDTH][..], &[last]].concat());
    assert_eq!(repeats(&watch, &[&longer(1.0), &longer(2.0), &longer(1.0)]), 1, "a number that is cut off");
    let other = |first: f32| row(&std::array::from_fn::<_, WIDTH, _>(|at| if at == 0 { first } else { 0.5 }));
    let none = [0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7fc0_0001)].map(other);
    assert_eq!(repeats(&watch, &none.each_ref().map(|row| &row[..])), 0, "numbers that are not finite");
    let halves = |shape: &[u64]| [fp32(shape, &[0.5; WIDTH])];
    assert_eq!(repeats(&watch, &[&halves(&[1, 2, 4]), &halves(&[1, 4, 2]), &halves(&[1, 8]), &halves(&[8])]), 0, "shapes");
    let named = |name: &str| [Tensor { name: name.into(), ..fp32(&[1, WIDTH as u64], &[0.5; WIDTH]) }];
    assert_eq!(repeats(&watch, &[&named("x"), &named("y")]), 0, "names");
    let bytes = Tensor { datatype: Datatype::Uint8, data: vec![1; WIDTH].into(), ..fp32(&[1, WIDTH as u64], &[]) };
    assert_eq!(repeats(&watch, &[&row(&[1.0; WIDTH]), &[bytes]]), 0, "types");
}

#[test]
fn texts_beside_numbers_belong_to_their_rows() {
    let watch = watch(&calibration(), "");
    let text = |texts: &[&str]| {
        let data: Vec<u8> = texts.iter().flat_map(|text| [&[text.len() as u8, 0, 0, 0][..], text.as_bytes()].concat()).collect();
        Tensor { name: "t".into(), datatype: Datatype::Bytes, shape: vec![texts.len() as u64], data: data.into() }
    };
    let asked = |texts: &[&str]| [fp32(&[texts.len() as u64, WIDTH as u64], &vec![0.5; texts.len() * WIDTH]), text(texts)];
    assert_eq!(repeats(&watch, &[&asked(&["a"]), &asked(&["b"]), &asked(&["b", "a"])]), 2);
    let beside = |texts: &[&str]| [fp32(&[2, WIDTH as u64], &[0.5; 2 * WIDTH]), text(texts)];
    assert_eq!(repeats(&watch, &[&beside(&["a", "b", "c"]), &beside(&["a", "b", "d"])]), 0, "which of them is whose is not known");
}
