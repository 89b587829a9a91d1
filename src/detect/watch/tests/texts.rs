//! Callers of a classifier of reviews: those who read, those who mend, and those who search for words.

use super::*;
use crate::detect::cohorts::Kind;
use crate::wire::tensor::Port;

/// Words that say the same, from what says it most to what hardly does.
const SENSES: usize = 24;
const WORDS: usize = 8;

/// Words that say nothing.
const FILLERS: u64 = 150;

fn text(texts: &[&str]) -> Vec<Tensor> {
    let element = |text: &&str| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
    let data: Vec<u8> = texts.iter().flat_map(element).collect();
    vec![Tensor { name: "text".into(), datatype: Datatype::Bytes, shape: vec![texts.len() as u64], data: data.into() }]
}

/// Letters, so that words have something in common with one another and with typos of theirs.
fn spelled(number: u64) -> String {
    (0..3)
        .map(|at| ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve"][(number / 12_u64.pow(at) % 12) as usize])
        .collect()
}

fn sense(sense: usize, word: usize) -> String {
    spelled((sense * WORDS + word) as u64)
}

fn filler(at: u64) -> String {
    spelled((SENSES * WORDS) as u64 + at)
}

/// How good a word is: the first half of the senses are good, the others bad.
fn weight(word: &str) -> f32 {
    let found = (0..SENSES * WORDS).find(|at| spelled(*at as u64) == word);
    found.map_or(0.0, |at| {
        let strength = 1.0 - (at % WORDS) as f32 * 0.12;
        if at / WORDS < SENSES / 2 { strength } else { -strength }
    })
}

/// The probability that a review is good.
fn good(review: &str) -> f32 {
    1.0 / (1.0 + (-1.5 * review.split(' ').map(weight).sum::<f32>() - 0.1).exp())
}

fn said(reviews: &[&str]) -> Vec<Tensor> {
    let scores: Vec<f32> = reviews.iter().flat_map(|review| [1.0 - good(review), good(review)]).collect();
    vec![fp32(&[reviews.len() as u64, 2], &scores)]
}

/// A review of mostly one mind.
fn review(noise: &mut Noise) -> String {
    let (words, mind) = (10 + noise.next() % 12, noise.next() % 2);
    let word = |noise: &mut Noise| {
        if noise.uniform() > 0.35 {
            return filler(noise.next() % FILLERS);
        }
        let of_mind = if noise.uniform() < 0.85 { mind } else { 1 - mind };
        sense((of_mind * SENSES as u64 / 2 + noise.next() % (SENSES as u64 / 2)) as usize, (noise.next() % WORDS as u64) as usize)
    };
    (0..words).map(|_| word(noise)).collect::<Vec<_>>().join(" ")
}

/// What an honest caller asks in a day: reviews, of which some have a typo that is then mended, and of some it asks what if, up to four times.
fn day(noise: &mut Noise, reviews: usize) -> Vec<String> {
    let mut asked = Vec::new();
    for _ in 0..reviews {
        let review = review(noise);
        let words: Vec<&str> = review.split(' ').collect();
        let changed = |noise: &mut Noise, with: &dyn Fn(&str, u64) -> String| {
            let (at, draw) = ((noise.next() % words.len() as u64) as usize, noise.next());
            words
                .iter()
                .enumerate()
                .map(|(place, word)| if place == at { with(word, draw) } else { (*word).to_owned() })
                .collect::<Vec<_>>()
                .join(" ")
        };
        if noise.uniform() < 0.2 {
            asked.push(changed(noise, &|word, _| word[..word.len() - 1].to_owned()));
        }
        asked.push(review.clone());
        if noise.uniform() < 0.1 {
            let what_if = |noise: &mut Noise| changed(noise, &|_, draw| sense(draw as usize % SENSES, (draw >> 32) as usize % WORDS));
            asked.extend((0..4).map(|_| what_if(noise)));
        }
    }
    asked
}

/// What so many honest callers teach, without the owner's rows: thieves take minutes to train where nothing is optimised.
fn learned(callers: usize) -> bounds::Bounds {
    let (mut noise, mut recorded) = (Noise::new(&[4; 32], "readers"), Recorded::default());
    for caller in 0..callers {
        for asked in day(&mut noise, 6) {
            recorded.add(caller, &text(&[&asked]), &said(&[&asked]));
        }
    }
    let (space, points) = calibrate::placed(recorded.seed.clone(), &recorded.callers).unwrap();
    let points: Vec<_> = points.iter().map(|points| &points[..]).collect();
    calibrate::fit("m", 0.01, (recorded.of(), &space), &points).unwrap().0
}

fn reviews() -> Arc<Watch> {
    static LEARNED: std::sync::OnceLock<bounds::Bounds> = std::sync::OnceLock::new();
    watch(&serde_json::to_string(LEARNED.get_or_init(|| learned(100))).unwrap(), "")
}

fn ask(caller: &mut Caller, watch: &Arc<Watch>, review: &str) -> f32 {
    caller.lesson(watch, text(&[review]), Moment::now()).learn(&said(&[review]), &said(&[review]));
    good(review)
}

/// Families that have come to an alarm.
fn alarmed(caller: &Caller, watch: &Watch) -> Vec<&'static str> {
    let pupil = locked(&caller.known.pupil);
    let richest = pupil.learned[0].state.richest.iter().zip(&watch.calibration.bets);
    let all = families::ALL.iter().zip(richest);
    all.filter(|(_, (richest, bet))| richest.0 >= bet.alarm).map(|(family, _)| family.name).collect()
}

/// As TextFooler does it: leaves each word out, then tries words of the same sense for those that matter, the most important first, and keeps what
/// helps, until the class is another.
fn search(base: &str, mut ask: impl FnMut(&str) -> f32) -> bool {
    let goal = |score: f32| if good(base) > 0.5 { score } else { 1.0 - score };
    let mut words: Vec<String> = base.split(' ').map(str::to_owned).collect();
    let mut best = goal(ask(base));
    let without = |words: &[String], at: usize| {
        words.iter().enumerate().filter(|(place, _)| *place != at).map(|(_, word)| word.clone()).collect::<Vec<_>>()
    };
    let mut order: Vec<(f32, usize)> = (0..words.len()).map(|at| (goal(ask(&without(&words, at).join(" "))), at)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (_, at) in order {
        let Some(own) = (0..SENSES * WORDS).find(|number| spelled(*number as u64) == words[at]) else { continue };
        let mut keep = words[at].clone();
        for other in (0..WORDS).filter(|other| *other != own % WORDS) {
            words[at] = sense(own / WORDS, other);
            let score = goal(ask(&words.join(" ")));
            if score < best {
                (best, keep) = (score, words[at].clone());
            }
        }
        words[at] = keep;
        if best < 0.5 {
            return true;
        }
    }
    false
}

#[test]
fn a_search_for_words_is_told_and_mending_and_asking_what_if_is_not() {
    let watch = reviews();
    let mut noise = Noise::new(&[5; 32], "others");
    let mut told = 0;
    for _ in 0..40 {
        let mut reader = Caller::new();
        for asked in day(&mut noise, 12) {
            ask(&mut reader, &watch, &asked);
        }
        told += usize::from(alarmed(&reader, &watch).contains(&"substitution"));
    }
    assert_eq!(told, 0, "of 40 who read");
    let (mut found, mut after) = (0, Vec::new());
    for _ in 0..20 {
        let mut thief = Caller::new();
        let mut first = None;
        while thief.rows < 1_000 && first.is_none() {
            search(&review(&mut noise), |text| {
                let score = ask(&mut thief, &watch, text);
                if first.is_none() && alarmed(&thief, &watch).contains(&"substitution") {
                    first = Some(thief.rows);
                }
                score
            });
        }
        found += usize::from(first.is_some());
        after.extend(first);
    }
    after.sort_unstable();
    eprintln!("{found} of 20, after {after:?}");
    assert!(found >= 19, "{found} of 20 searches, after {after:?}");
}

#[test]
fn what_is_kept_of_a_caller_of_texts_takes_no_larger_place() {
    let (watch, mut caller, mut noise) = (reviews(), Caller::new(), Noise::new(&[6; 32], "size"));
    let mut kept = |rows: u64| {
        while caller.rows < rows {
            ask(&mut caller, &watch, &review(&mut noise));
        }
        let pupil = locked(&caller.known.pupil);
        let learned: usize = pupil.learned.iter().map(|learned| learned.state.kept() + learned.loss.kept()).sum();
        size_of::<Known>() + pupil.learned.capacity() * size_of::<Learned>() + learned
    };
    let (first, few, many) = (kept(1), kept(3), kept(300));
    let meter = Loss::MOST_KEPT;
    assert!(first <= 1 << 10, "{first}");
    assert!(few <= 3 << 9, "{few}");
    assert!(many + meter <= 32 << 10, "{many} and a meter");
}

#[test]
fn texts_of_a_batch_and_tokens_in_their_place_are_searches_as_well() {
    let (watch, mut noise) = (reviews(), Noise::new(&[7; 32], "batches"));
    let number = |word: &str| (0..400_u64).find(|at| spelled(*at) == word).unwrap_or_default() as i64;
    for of_tokens in [false, true] {
        let (mut thief, mut asked) = (Caller::new(), Vec::new());
        // What a search asks is the same whatever it is sent as; here it is sent eight at a time.
        (0..12).for_each(|_| {
            _ = search(&review(&mut noise), |text| {
                asked.push(text.to_owned());
                good(text)
            })
        });
        for batch in asked.chunks(8) {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            let inputs = if of_tokens { tokens(&batch, number) } else { text(&batch) };
            thief.lesson(&watch, inputs, Moment::now()).learn(&said(&batch), &said(&batch));
        }
        assert!(alarmed(&thief, &watch).contains(&"substitution"), "of tokens: {of_tokens}");
    }
}

/// The same texts as an encoder's tokens, filled up to the longest.
fn tokens(texts: &[&str], number: impl Fn(&str) -> i64) -> Vec<Tensor> {
    let longest = texts.iter().map(|text| text.split(' ').count()).max().unwrap_or(0);
    let tensor = |name: &str, of: &dyn Fn(Option<&str>) -> i64| {
        let rows = texts.iter().flat_map(|text| text.split(' ').map(Some).chain(std::iter::repeat(None)).take(longest));
        let data: Vec<u8> = rows.flat_map(|word| of(word).to_le_bytes()).collect();
        Tensor { name: name.into(), datatype: Datatype::Int64, shape: vec![texts.len() as u64, longest as u64], data: data.into() }
    };
    vec![tensor("input_ids", &|word| word.map_or(0, &number)), tensor("attention_mask", &|word| i64::from(word.is_some()))]
}

#[test]
fn a_calibration_says_that_it_is_of_texts_and_one_of_numbers_is_what_it_was() {
    let (watch, numbers) = (reviews(), watch(&calibration(), ""));
    let of = |watch: &Watch| (watch.calibration.bounds.of, watch.calibration.key.is_some(), watch.calibration.bounds.bets.len());
    assert_eq!(of(&watch), (Of::Texts, true, families::speaking(Of::Texts)));
    assert_eq!(of(&numbers), (Of::Numbers, false, 9));
    assert!(!watch.calibration.bounds.bets.contains_key("lattice") && !numbers.calibration.bounds.bets.contains_key("substitution"));
    assert!(!calibration().contains("\"of\""), "files that were made before are read as they are");
    let text = serde_json::to_string(&watch.calibration.bounds).unwrap();
    let compiled = |inputs: Vec<Port>, calibration: &str| {
        let (mut mistakes, contract) =
            (Vec::new(), Contract { inputs, instead: Vec::new(), outputs: Vec::new(), longest: None, apart: false });
        Config::default().compile(&Exposing::default(), Some(calibration), Some(&contract), true, &mut mistakes);
        mistakes.len()
    };
    let port = |datatype, shape: &[Option<u64>]| Port { name: "x".into(), datatype, shape: shape.to_vec() };
    assert_eq!(compiled(vec![port(Datatype::Bytes, &[None])], &text), 0);
    assert_eq!(compiled(vec![port(Datatype::Fp32, &[None, Some(64)])], &text), 1, "numbers, were there as many as a sketch has");
    let eight = port(Datatype::Fp32, &[None, Some(WIDTH as u64)]);
    assert_eq!(compiled(vec![eight.clone()], &calibration()), 0);
    assert_eq!(compiled(vec![eight, port(Datatype::Bytes, &[None, Some(1)])], &calibration()), 0, "a text beside numbers is none of them");
}

#[test]
fn beside_numbers_texts_are_chains_and_the_numbers_are_the_row() {
    let (mut noise, mut recorded) = (Noise::new(&[4; 32], "both"), Recorded::default());
    let both = |noise: &mut Noise, review: &str| [row(&[noise.normal(), noise.normal()]), text(&[review])].concat();
    for caller in 0..60 {
        for asked in day(&mut noise, 4) {
            let inputs = both(&mut noise, &asked);
            recorded.add(caller, &inputs, &said(&[&asked]));
        }
    }
    assert_eq!(recorded.of(), Of::Both);
    let (space, points) = calibrate::placed(recorded.seed.clone(), &recorded.callers).unwrap();
    let points: Vec<_> = points.iter().map(|points| &points[..]).collect();
    let bounds = calibrate::fit("m", 0.02, (Of::Both, &space), &points).unwrap().0;
    let watch = watch(&serde_json::to_string(&bounds).unwrap(), "");
    assert_eq!((watch.calibration.width(), watch.calibration.bounds.bets.len()), (2, families::COUNT));
    let mut thief = Caller::new();
    for _ in 0..12 {
        search(&review(&mut Noise::new(&[8; 32], "base")), |asked| {
            let inputs = both(&mut noise, asked);
            thief.lesson(&watch, inputs, Moment::now()).learn(&said(&[asked]), &said(&[asked]));
            good(asked)
        });
    }
    assert!(alarmed(&thief, &watch).contains(&"substitution"));
}

#[test]
fn keys_of_one_family_that_search_in_turn_have_one_chain() {
    let (watch, mut noise) = (reviews(), Noise::new(&[9; 32], "keys"));
    let family = Arc::new(Known::new(Instant::now()));
    let mut keys: Vec<Caller> = (0..8).map(|_| Caller::new()).collect();
    let mut turn = 0;
    for _ in 0..12 {
        search(&review(&mut noise), |asked| {
            let at = turn % keys.len();
            turn += 1;
            let cohorts = vec![Cohort { kind: Kind::Family, name: "family:key".into(), known: family.clone() }];
            let lesson = keys[at].lesson(&watch, text(&[asked]), Moment::now());
            Lesson { cohorts, caller: at as u64, ..lesson }.learn(&said(&[asked]), &said(&[asked]));
            good(asked)
        });
    }
    let at = families::ALL.iter().position(|family| family.name == "substitution").unwrap();
    let richest = |known: &Known| locked(&known.pupil).learned[0].state.richest[at].0;
    let alone = keys.iter().map(|key| richest(&key.known)).fold(0.0, f32::max);
    assert!(
        richest(&family) > alone && richest(&family) >= watch.calibration.bets[at].alarm + 24.0_f32.ln(),
        "{} and {alone}",
        richest(&family)
    );
}

#[test]
fn texts_and_tokens_are_repeats_where_all_that_the_model_reads_was_asked_before() {
    use super::repeats::repeats;
    let watch = reviews();
    let raw = |name: &str, texts: &[&[u8]]| {
        let data: Vec<u8> = texts.iter().flat_map(|text| [&[text.len() as u8, 0, 0, 0][..], text].concat()).collect();
        Tensor { name: name.into(), datatype: Datatype::Bytes, shape: vec![texts.len() as u64], data: data.into() }
    };
    let columns = |title: &[u8], body: &[u8]| [raw("body", &[body]), raw("title", &[title])];
    assert_eq!(repeats(&watch, &[&columns(b"warm", b"film"), &columns(b"warm", b"film")]), 1);
    assert_eq!(repeats(&watch, &[&columns(b"warm\ncold", b"film"), &columns(b"cold", b"film\nwarm")]), 0, "from one column to another");
    assert_eq!(repeats(&watch, &[&[raw("t", &[b"a \xff"])], &[raw("t", &[b"a \xfe"])]]), 0, "bytes that are no text");
    assert_eq!(repeats(&watch, &[&text(&["warm", "film"]), &text(&["film"])]), 1, "in a batch and alone");
    let ints = |name: &str, values: &[i64]| Tensor {
        name: name.into(),
        datatype: Datatype::Int64,
        shape: vec![1, values.len() as u64],
        data: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into(),
    };
    let encoded = |ids: &[i64], mask: &[i64], kinds: &[i64]| {
        vec![ints("input_ids", ids), ints("attention_mask", mask), ints("token_type_ids", kinds)]
    };
    let first = encoded(&[101, 7, 8, 0], &[1, 1, 1, 0], &[0, 0, 0, 0]);
    assert_eq!(repeats(&watch, &[&first, &first]), 1);
    for (other, what) in [
        (encoded(&[101, 7, 8, 0], &[1, 1, 1, 0], &[0, 0, 1, 0]), "kinds"),
        (encoded(&[101, 7, 8, 0], &[1, 1, 2, 0], &[0, 0, 0, 0]), "another mask"),
        (encoded(&[101, 7, 8, 5], &[1, 1, 1, 0], &[0, 0, 0, 0]), "what is masked"),
        (encoded(&[101, 0, 7, 8], &[1, 0, 1, 1], &[0, 0, 0, 0]), "where it is masked"),
        (encoded(&[101, 7, 8], &[1, 1, 1], &[0, 0, 0]), "how far it is filled up"),
    ] {
        assert_eq!(repeats(&watch, &[&first, &other]), 0, "{what}");
    }
}

#[test]
fn a_text_of_every_row_is_read_with_each_and_is_as_much_work() {
    let (watch, mut caller) = (reviews(), Caller::new());
    let mut size = |inputs: Vec<Tensor>| caller.lesson(&watch, inputs, Moment::now()).size();
    let long = "word ".repeat(10_000);
    let beside = |rows: usize| [text(&vec!["a"; rows]), vec![Tensor { name: "all".into(), ..text(&[&long]).remove(0) }]].concat();
    assert!(size(beside(1)) < crate::heavy::MANY);
    assert!(size(beside(20)) >= crate::heavy::MANY);
}
