//! The strict reading of a safetensors header. What it accepts, the format's own crate reads alike, and every byte has one owner.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use portcullis::infer::model::safetensors::{Layout, scan};
use portcullis_fuzz::{for_json, seed, seeds, within};
use safetensors::SafeTensors;

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 2 {
        0 => hold(rest),
        // A header whose length is right, before as many bytes as the first one says.
        _ => {
            let Some((length, header)) = rest.split_first() else { return };
            hold(&file(header, usize::from(*length)));
        }
    }
});

fn file(header: &[u8], data: usize) -> Vec<u8> {
    let mut file = [&(header.len() as u64).to_le_bytes(), header].concat();
    file.extend((0..data).map(|at| at as u8));
    file
}

fn hold(file: &[u8]) {
    let layout = match within(for_json(file.len()), || scan(file)) {
        Ok(layout) => layout,
        Err(fault) => return assert!(fault.to_string().len() < 2_000),
    };
    let theirs = alike(file, &layout);
    // Written anew by the crate it says the same.
    let metadata: HashMap<String, String> = layout.metadata.clone().into_iter().collect();
    let views = theirs.iter().map(|(name, view)| (name.to_owned(), view));
    let again = safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).expect("what was read can be written");
    let read = scan(&again).expect("what the crate writes is strict");
    assert_eq!(read.metadata, layout.metadata);
    assert_eq!(read.tensors.len(), layout.tensors.len());
    for (name, entry) in &layout.tensors {
        let other = &read.tensors[name];
        assert_eq!((entry.dtype, &entry.shape), (other.dtype, &other.shape));
        assert_eq!(file[entry.range.clone()], again[other.range.clone()]);
    }
}

/// The crate reads the same tensors, and they and the header are the file.
fn alike<'f>(file: &'f [u8], layout: &Layout) -> SafeTensors<'f> {
    let theirs = SafeTensors::deserialize(file).expect("the crate is laxer than the scan");
    assert_eq!(theirs.len(), layout.tensors.len());
    let (header, metadata) = SafeTensors::read_metadata(file).expect("it has a header");
    let texts = metadata.metadata().clone().unwrap_or_default();
    assert_eq!(texts.into_iter().collect::<std::collections::BTreeMap<_, _>>(), layout.metadata);
    let mut owned = 8 + header;
    for (name, entry) in &layout.tensors {
        let view = theirs.tensor(name).expect("a tensor of that name");
        assert_eq!(view.shape(), entry.shape);
        assert_eq!(view.dtype().to_string(), entry.dtype.as_str());
        assert_eq!(view.data().as_ptr_range(), file[entry.range.clone()].as_ptr_range());
        owned += entry.range.len();
    }
    assert_eq!(owned, file.len());
    theirs
}

fn made() -> Vec<Vec<u8>> {
    let headers: [(&str, usize); 6] = [
        ("{}", 0),
        (r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}  "#, 8),
        (r#"{"b":{"dtype":"BF16","shape":[],"data_offsets":[2,4]},"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#, 4),
        (r#"{"a":{"dtype":"F4","shape":[2,2],"data_offsets":[0,2]},"empty":{"dtype":"U64","shape":[3,0],"data_offsets":[2,2]}}"#, 2),
        (r#"{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]},"\u00e9":{"dtype":"BOOL","shape":[1],"data_offsets":[3,4]}}"#, 4),
        (
            r#"{"a":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            1,
        ),
    ];
    let whole = headers.iter().map(|(header, data)| seed(0, file(header.as_bytes(), *data)));
    let measured = headers.iter().map(|(header, data)| [&[1, *data as u8], header.as_bytes()].concat());
    whole.chain(measured).collect()
}
