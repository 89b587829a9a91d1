//! The texts of a request, one of each row.
//!
//! A text has no numbers, but its [sketch](crate::detect::text::sketch) has 64: where a model takes nothing but texts they are the row that the families
//! look at. Where it takes numbers too, those are. In either case the words of the text are kept as keyed hashes, for what is to be seen of them
//! alone.
//!
//! A model of texts that takes tokens in their place is asked in another alphabet: a token is then a word, written as its number. Whoever
//! asks in both is in two places at once, and has two chains.

use std::hash::BuildHasher;

use super::bounds::Of;
use super::exact::{self, KEY};
use super::rows::{Rows, most_rows, numbers};
use crate::detect::text::sketch::{NUMBERS, sketch};
use crate::detect::text::substitution::Tokens;
use crate::detect::text::{Key, MOST_BYTES, looked_at};
use crate::wire::tensor::{Datatype, Tensor};

/// The tensor of tokens, and which of them are of the text. Exporters of encoders of every kind name them so.
const TOKENS: &str = "input_ids";
const MASK: &str = "attention_mask";

/// What encoders take beside them, and what says nothing of a text.
const KINDS: &str = "token_type_ids";

/// What the texts of a batch may come to for each byte of them: one that is of every row is read with each.
const TIMES: usize = 8;

/// Bytes of texts that any batch may come to: as many as 64 rows of the longest text have.
const ANY: usize = 64 * MOST_BYTES;

/// What is kept of a text, in numbers.
const KEPT: usize = NUMBERS + size_of::<Tokens>() / size_of::<f32>();

/// The texts of a request.
struct Texts {
    rows: usize,
    /// Those that rows have of their own, by tensor: of each as many a row.
    own: Vec<Vec<String>>,
    /// What stands behind them in every row.
    common: Option<String>,
    /// They are all that there is.
    alone: bool,
}

impl Texts {
    fn row(&self, row: usize) -> String {
        let own = self.own.iter().flat_map(|strings| {
            let width = strings.len() / self.rows;
            strings[row * width..(row + 1) * width].iter().map(String::as_str)
        });
        own.chain(self.common.as_deref()).collect::<Vec<_>>().join("\n")
    }

    /// Those that are looked at, one at a time.
    fn looked_at(&self) -> impl Iterator<Item = String> {
        let held: usize = self.own.iter().flatten().chain(&self.common).map(|text| text.len() + 1).sum();
        let mut bytes = held.saturating_mul(TIMES).max(ANY);
        let texts = (0..self.rows.min(most_rows(held, KEPT))).map(|row| self.row(row));
        texts.take_while(move |text| {
            let fits = text.len() <= bytes;
            bytes = bytes.saturating_sub(text.len());
            fits
        })
    }
}

/// Bytes of texts that are read with every row, of a batch that has so many.
pub(super) fn common(tensors: &[Tensor], rows: usize) -> usize {
    let of_all = |tensor: &&Tensor| tensor.datatype == Datatype::Bytes && tensor.shape.first() != Some(&(rows as u64));
    tensors.iter().filter(of_all).map(|tensor| tensor.data.len()).sum::<usize>().min(MOST_BYTES)
}

/// Whether an input by this name and type is one of texts.
pub(super) fn is_text(name: &str, datatype: Datatype) -> bool {
    datatype == Datatype::Bytes || name == TOKENS
}

impl Rows {
    /// The rows of a batch where texts are looked at, and all else as [`Self::of`] has it; and of what they are.
    pub(crate) fn with_texts(tensors: &[Tensor], key: &Key) -> (Self, Of) {
        let Some(texts) = tokens(tensors).or_else(|| strings(tensors)) else { return (Self::of(tensors), Of::Numbers) };
        let (mut rows, of) = match texts.alone {
            true => (Self { width: NUMBERS, ..Self::default() }, Of::Texts),
            false => (Self::of(tensors), Of::Both),
        };
        let mut numbers = Vec::new();
        let most = if texts.alone { texts.rows } else { rows.iter().len() };
        for text in texts.looked_at().take(most) {
            if texts.alone {
                numbers.extend(sketch(key, &text));
            }
            rows.tokens.push(Tokens::of(key, &text));
        }
        let read = rows.tokens.len();
        if texts.alone {
            // Texts of one sketch are not the same.
            let exact = exact::digests(tensors, texts.rows, read);
            rows = Self { numbers, exact, left: texts.rows - read, ..rows };
        }
        rows.keep(read);
        (rows, of)
    }
}

/// Those of the strings: along the first dimension, where all tensors of them have the same or one that is 1, and there are as many numbers; else all of
/// them in every row. Strings of one row are one text, by the names of their tensors, and those of every row stand behind its own.
fn strings(tensors: &[Tensor]) -> Option<Texts> {
    let filled = tensors.iter().filter(|tensor| !tensor.data.is_empty());
    let (mut texts, others): (Vec<&Tensor>, Vec<&Tensor>) = filled.partition(|tensor| tensor.datatype == Datatype::Bytes);
    if texts.is_empty() {
        return None;
    }
    texts.sort_by(|a, b| a.name.cmp(&b.name));
    let of = |tensor: &Tensor| tensor.shape.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(1);
    let strings: Vec<Vec<String>> =
        texts.iter().map(|tensor| tensor.strings().map(|text| String::from_utf8_lossy(&text).into_owned()).collect()).collect();
    let most = texts.iter().map(|tensor| of(tensor)).max().unwrap_or(1);
    let alone = others.is_empty();
    let rows = if alone { most } else { Rows::count(tensors) };
    // A dimension beside a zero is the caller's word for nothing.
    let shared = texts.iter().zip(&strings).all(|(tensor, strings)| {
        let held = of(tensor);
        (held == 1 || held == rows) && held > 0 && strings.len().is_multiple_of(held)
    });
    let rows = if shared || !alone { rows } else { 1 };
    let of_rows = |tensor: &Tensor| shared && of(tensor) == rows;
    let (own, common): (Vec<_>, Vec<_>) = texts.iter().zip(strings).partition(|(tensor, _)| of_rows(tensor));
    let own = own.into_iter().map(|(_, strings)| strings).collect();
    let common: Vec<String> = common.into_iter().flat_map(|(_, strings)| strings).collect();
    let common = (!common.is_empty()).then(|| common.join("\n")).map(|common| if rows > 1 { shortened(common) } else { common });
    Some(Texts { rows, own, common, alone })
}

/// A text that stands in every row: of a long one both ends, and what tells it from others, so that not all of it is read once a row.
fn shortened(text: String) -> String {
    let [head, tail] = looked_at(&text);
    if tail.is_empty() { text } else { format!("{head} {:016x} {tail}", KEY.hash_one(&text)) }
}

/// Those of the tokens, where a request has them and nothing else.
fn tokens(tensors: &[Tensor]) -> Option<Texts> {
    let named = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
    let known = |tensor: &Tensor| {
        [TOKENS, MASK, KINDS].contains(&tensor.name.as_str()) && matches!(tensor.datatype, Datatype::Int64 | Datatype::Int32)
    };
    let ids = named(TOKENS).filter(|_| tensors.iter().all(known))?;
    let [rows, longest] = ids.shape[..] else { return None };
    let (rows, longest) = (usize::try_from(rows).ok()?, usize::try_from(longest).ok().filter(|longest| *longest > 0)?);
    let all = numbers(ids);
    if all.len() != rows.checked_mul(longest)? {
        return None;
    }
    let mask = named(MASK).map(numbers).filter(|mask| mask.len() == all.len());
    let row = |row: usize| {
        let at = row * longest..(row + 1) * longest;
        let meant = |place: &usize| mask.as_ref().is_none_or(|mask| mask[*place] != 0.0);
        at.filter(meant).map(|place| all[place].to_string()).collect::<Vec<_>>().join(" ")
    };
    Some(Texts { rows, own: vec![(0..rows).map(row).collect()], common: None, alone: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn key() -> Key {
        Key::from_secret(&Secret::new(vec![8; 32]))
    }

    fn text(name: &str, shape: &[u64], texts: &[&str]) -> Tensor {
        let element = |text: &&str| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
        let data: Vec<u8> = texts.iter().flat_map(element).collect();
        Tensor { name: name.into(), datatype: Datatype::Bytes, shape: shape.to_vec(), data: data.into() }
    }

    fn ints(name: &str, shape: &[u64], values: &[i64]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { name: name.into(), datatype: Datatype::Int64, shape: shape.to_vec(), data: data.into() }
    }

    fn read(tensors: &[Tensor], key: &Key) -> Rows {
        Rows::with_texts(tensors, key).0
    }

    fn texts(tensors: &[Tensor]) -> Vec<String> {
        tokens(tensors).or_else(|| strings(tensors)).unwrap().looked_at().collect()
    }

    #[test]
    fn each_text_of_a_batch_is_a_row_of_its_sketch() {
        let rows = read(&[text("text", &[2], &["a warm film", "a cold film"])], &key());
        assert_eq!((rows.width, rows.iter().len(), rows.tokens.len(), rows.exact.len()), (64, 2, 2, 2));
        assert_eq!(rows.iter().next().unwrap(), sketch(&key(), "a warm film"));
        assert_eq!(rows.tokens[1], Tokens::of(&key(), "a cold film"));
        let columned = read(&[text("text", &[2, 1], &["a warm film", "a cold film"])], &key());
        assert_eq!((&rows.numbers, &rows.tokens), (&columned.numbers, &columned.tokens));
        let [once, again, other] = ["same", "same", "Same"].map(|one| read(&[text("text", &[1], &[one])], &key()).exact);
        assert!(once == again && once != other);
    }

    #[test]
    fn columns_of_texts_are_one_text_a_row_by_their_names() {
        let (title, body) = (text("title", &[2, 1], &["t1", "t2"]), text("body", &[2, 1], &["b1", "b2"]));
        assert_eq!(texts(&[title.clone(), body.clone()]), ["b1\nt1", "b2\nt2"]);
        assert_eq!(texts(&[body.clone(), title]), ["b1\nt1", "b2\nt2"]);
        assert_eq!(texts(&[body.clone(), text("title", &[1], &["of all"])]), ["b1\nof all", "b2\nof all"]);
        assert_eq!(texts(&[body, text("title", &[3], &["1", "2", "3"])]), ["b1\nb2\n1\n2\n3"], "all of them, as one");
        assert_eq!(texts(&[text("text", &[2, 2], &["a", "b", "c", "d"])]), ["a\nb", "c\nd"]);
    }

    #[test]
    fn beside_numbers_each_row_has_its_text_and_the_numbers_are_the_row() {
        let numbers = ints("n", &[2, 1], &[5, 5]);
        let rows = read(&[numbers.clone(), text("t", &[2, 1], &["one", "two"])], &key());
        assert_eq!((rows.width, rows.tokens.len()), (1, 2));
        assert_eq!(rows.tokens[1], Tokens::of(&key(), "two"));
        assert_ne!(rows.exact[0], rows.exact[1], "equal numbers beside other texts are no repeat");
        let rows = read(&[numbers.clone(), text("t", &[3], &["1", "2", "3"])], &key());
        assert_eq!(rows.tokens, vec![Tokens::of(&key(), "1\n2\n3"); 2]);
        let plain = read(std::slice::from_ref(&numbers), &key());
        assert_eq!(plain, Rows::of(&[numbers]));
        assert!(plain.tokens.is_empty());
    }

    #[test]
    fn a_long_text_of_every_row_is_shortened_in_each_and_still_told_from_others() {
        let most = crate::detect::text::MOST_BYTES;
        let (numbers, at, past) = (ints("n", &[64, 1], &[5; 64]), "a".repeat(most), "a".repeat(most + 1));
        let read = |long: &str| texts(&[numbers.clone(), text("t", &[1], &[long])]);
        assert_eq!(read(&at), vec![at; 64]);
        let longest = 100 * most;
        let (one, other) = (read(&past), read(&"a".repeat(longest)));
        assert!(one.iter().chain(&other).all(|text| text.len() <= most + 18));
        assert_ne!(one[0], other[0]);
    }

    #[test]
    fn what_is_of_every_row_is_read_with_so_many_of_them_and_tiny_texts_become_no_heap_of_sketches() {
        let (most, rows) = (crate::detect::text::MOST_BYTES, 1_000_u64);
        let numbers = ints("n", &[rows, 1], &[5; 1_000]);
        let long = read(&[numbers.clone(), text("t", &[1], &[&"a".repeat(most)])], &key());
        assert_eq!((long.iter().len(), long.tokens.len(), long.exact.len(), long.all()), (64, 64, 64, 1_000));
        let short = read(&[numbers, text("t", &[1], &["of every row"])], &key());
        assert_eq!((short.iter().len(), short.left), (1_000, 0));
        let tiny = read(&[text("t", &[20_000], &[""; 20_000])], &key());
        assert_eq!((tiny.iter().len(), tiny.all()), (most_rows(20_000, KEPT), 20_000));
        assert_eq!(read(&[text("t", &[1, 300_000], &[""; 300_000])], &key()).iter().len(), 1, "one is looked at in any case");
    }

    #[test]
    fn tokens_are_read_as_words_as_far_as_their_mask_goes() {
        let ids = ints("input_ids", &[2, 3], &[101, 7592, 102, 101, 102, 0]);
        let mask = ints("attention_mask", &[2, 3], &[1, 1, 1, 1, 1, 0]);
        assert_eq!(texts(&[ids.clone(), mask.clone()]), ["101 7592 102", "101 102"]);
        assert_eq!(texts(std::slice::from_ref(&ids)), ["101 7592 102", "101 102 0"]);
        let rows = read(&[ids.clone(), mask], &key());
        assert_eq!((rows.width, rows.tokens[1].clone()), (64, Tokens::of(&key(), "101 102")));
        assert!(tokens(&[ids, ints("age", &[2, 1], &[1, 2])]).is_none(), "with numbers beside them they are numbers");
        assert!(tokens(&[ints("input_ids", &[4], &[1, 2, 3, 4])]).is_none());
    }

    #[test]
    fn what_is_nothing_is_no_row() {
        assert_eq!(read(&[], &key()).iter().len(), 0);
        assert_eq!(read(&[text("text", &[0], &[])], &key()).iter().len(), 0);
        assert_eq!(read(&[ints("input_ids", &[0, 3], &[])], &key()).iter().len(), 0);
        assert_eq!(texts(&[text("text", &[1], &[""])]), [""]);
    }
}
