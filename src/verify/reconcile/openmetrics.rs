//! Reads what `/metrics` says of the log: OpenMetrics 1.0 text, every line held to its grammar, the series of the log kept.

use std::collections::BTreeMap;

use super::super::census::{Census, Traffic};
use super::super::statement::Kind;

/// The longest text in bytes.
pub const MAX_METRICS: usize = 16 << 20;
/// The largest count that a float holds exactly; none is ever so large.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// What a gateway's metrics say of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The entries since the process began.
    pub census: Census,
    /// What requests did.
    pub traffic: Traffic,
    /// Answers without an entry.
    pub gaps: u64,
    /// Refusals without a receipt, by code.
    pub suppressed: BTreeMap<String, u64>,
}

/// Why a text tells nothing of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotMetrics {
    /// It is longer than [`MAX_METRICS`].
    TooLong,
    /// A line, counted from 1, is not OpenMetrics.
    NotOpenMetrics(usize),
    /// It does not end with `# EOF`: what there is may be half of it.
    CutShort,
    /// A series stands there twice.
    Twice(String),
    /// The value of a series is not a count.
    NotACount(String),
    /// A series of the log is not there: these are another program's, or another version's.
    Missing(&'static str),
    /// An entry of a kind that this version does not know.
    UnknownKind(String),
}

impl std::fmt::Display for NotMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => write!(f, "longer than {MAX_METRICS} bytes"),
            Self::NotOpenMetrics(line) => write!(f, "line {line} is not OpenMetrics text"),
            Self::CutShort => f.write_str("it does not end with # EOF"),
            Self::Twice(series) => write!(f, "{series} stands there twice"),
            Self::NotACount(series) => write!(f, "{series} is not a count"),
            Self::Missing(series) => write!(f, "{series} is not there: not the metrics of a gateway, or of another version"),
            Self::UnknownKind(kind) => write!(f, "entries of the kind {kind:?} are not known to this version"),
        }
    }
}

impl std::error::Error for NotMetrics {}

const BEGAN: &str = "portcullis_log_began";
const STATEMENTS: &str = "portcullis_log_statements_total";
const BYTES: &str = "portcullis_log_answer_bytes_total";
const ACCEPTED: &str = "portcullis_log_accepted_total";
const FORWARDED: &str = "portcullis_log_forwarded_total";
const ABANDONED: &str = "portcullis_abandoned_total";
const SUPPRESSED: &str = "portcullis_log_suppressed_total";
const GAPS: &str = "portcullis_log_gaps_total";

impl Metrics {
    /// Reads the text of `/metrics`.
    ///
    /// # Errors
    /// See [`NotMetrics`].
    pub fn read(text: &str) -> Result<Self, NotMetrics> {
        if text.len() > MAX_METRICS {
            return Err(NotMetrics::TooLong);
        }
        let Some(body) = text.strip_suffix("# EOF\n").or_else(|| text.strip_suffix("# EOF")) else { return Err(NotMetrics::CutShort) };
        let mut series = BTreeMap::new();
        for (line, text) in body.split_terminator('\n').enumerate() {
            if let Some(comment) = text.strip_prefix("# ") {
                let known = ["TYPE ", "HELP ", "UNIT "].iter().any(|word| comment.starts_with(word));
                if known { continue } else { return Err(NotMetrics::NotOpenMetrics(line + 1)) }
            }
            let sample = sample(text).ok_or(NotMetrics::NotOpenMetrics(line + 1))?;
            if sample.name.starts_with("portcullis_log_") || sample.name == ABANDONED {
                let name =
                    format!("{}{{{}}}", sample.name, sample.labels.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(","));
                if series.insert((sample.name.to_owned(), sample.labels), sample.value).is_some() {
                    return Err(NotMetrics::Twice(name));
                }
            }
        }
        Self::of(&series)
    }

    fn of(series: &BTreeMap<(String, Labels), f64>) -> Result<Self, NotMetrics> {
        let all = |name: &'static str, label: &'static str| {
            series.iter().filter(move |((of, _), _)| of == name).map(move |((_, labels), value)| {
                let [(key, text)] = labels.as_slice() else { return Err(NotMetrics::Missing(name)) };
                if key == label { Ok((text.as_str(), whole(name, *value)?)) } else { Err(NotMetrics::Missing(name)) }
            })
        };
        let one = |name: &'static str| {
            let value = series.get(&(name.to_owned(), Labels::new())).ok_or(NotMetrics::Missing(name))?;
            whole(name, *value)
        };
        let mut census = Census::from(one(BEGAN)?);
        census.bytes = one(BYTES)?;
        for pair in all(STATEMENTS, "kind") {
            let (name, count) = pair?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
            census.add(kind.ok_or_else(|| NotMetrics::UnknownKind(name.to_owned()))?, count);
        }
        // The heartbeat that began the process is one of them.
        if census.entries() == 0 {
            return Err(NotMetrics::Missing(STATEMENTS));
        }
        let suppressed =
            all(SUPPRESSED, "code").map(|pair| pair.map(|(code, count)| (code.to_owned(), count))).collect::<Result<_, _>>()?;
        let traffic = Traffic { accepted: one(ACCEPTED)?, forwarded: one(FORWARDED)?, abandoned: one(ABANDONED)? };
        Ok(Self { census, traffic, gaps: one(GAPS)?, suppressed })
    }
}

fn whole(name: &str, value: f64) -> Result<u64, NotMetrics> {
    let is_count = (0.0..=MAX_EXACT).contains(&value) && value.fract() == 0.0;
    if is_count { Ok(value as u64) } else { Err(NotMetrics::NotACount(name.to_owned())) }
}

type Labels = Vec<(String, String)>;

struct Sample<'a> {
    name: &'a str,
    labels: Labels,
    value: f64,
}

/// `name{label="value",…} value [timestamp] [# {…} value [timestamp]]`.
fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = if rest.starts_with('{') { labels(rest)? } else { (Labels::new(), rest) };
    let (sample, exemplar) = match rest.split_once(" # ") {
        Some((sample, exemplar)) => (sample, Some(exemplar)),
        None => (rest, None),
    };
    if let Some(exemplar) = exemplar {
        let (_, rest) = exemplar.starts_with('{').then(|| self::labels(exemplar)).flatten()?;
        numbers(rest)?;
    }
    is_name(name).then_some(Sample { name, labels, value: numbers(sample)? })
}

/// A value and perhaps a timestamp, each behind one space.
fn numbers(text: &str) -> Option<f64> {
    let mut words = text.strip_prefix(' ')?.split(' ');
    let value = words.next()?.parse().ok()?;
    let stamp = words.next().map(str::parse::<f64>);
    (!matches!(stamp, Some(Err(_))) && words.next().is_none()).then_some(value)
}

/// A set of labels in braces, and what follows it.
fn labels(text: &str) -> Option<(Labels, &str)> {
    let mut rest = text.strip_prefix('{')?;
    let mut labels = Labels::new();
    while !rest.starts_with('}') {
        if !labels.is_empty() {
            rest = rest.strip_prefix(',')?;
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        if !is_name(name) || labels.iter().any(|(known, _)| known == name) {
            return None;
        }
        labels.push((name.to_owned(), value));
        rest = after;
    }
    labels.sort();
    Some((labels, &rest[1..]))
}

/// The text up to the closing quote, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                same @ ('\\' | '"') => same,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '_' | ':'));
    first && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP portcullis_log_began The number.\n# TYPE portcullis_log_began gauge\nportcullis_log_began 7.0\n\
        # TYPE portcullis_log_statements counter\nportcullis_log_statements_total{kind=\"inference\"} 3\n\
        portcullis_log_statements_total{kind=\"heartbeat\"} 1\nportcullis_log_answer_bytes_total 120\nportcullis_log_forwarded_total 3\n\
        portcullis_log_accepted_total 5\nportcullis_abandoned_total 0\nportcullis_log_suppressed_total{code=\"check.json\"} 2\n\
        portcullis_log_gaps_total 1\n\
        http_server_request_duration_seconds_bucket{le=\"+Inf\",route=\"a\\\"\\\\\\n} 1\"} 2 # {trace_id=\"00\"} 0.5 1.5\n# EOF\n";

    #[test]
    fn the_series_of_the_log_are_read_among_all_others() {
        let metrics = Metrics::read(TEXT).unwrap();
        assert_eq!((metrics.census.began, metrics.census.of(Kind::Inference), metrics.census.entries()), (7, 3, 4));
        assert_eq!((metrics.census.bytes, metrics.traffic.accepted, metrics.traffic.forwarded, metrics.gaps), (120, 5, 3, 1));
        assert_eq!(metrics.suppressed, BTreeMap::from([("check.json".to_owned(), 2)]));
    }

    #[test]
    fn a_text_that_is_not_whole_or_not_openmetrics_is_refused() {
        let with = |from: &str, to: &str| Metrics::read(&TEXT.replace(from, to)).unwrap_err();
        assert_eq!(with("# EOF\n", ""), NotMetrics::CutShort);
        assert_eq!(with("# EOF\n", "# EOF\n\n"), NotMetrics::CutShort);
        assert_eq!(with("# HELP", "# HELPS"), NotMetrics::NotOpenMetrics(1));
        for (from, to) in
            [("_began 7.0", "_began"), ("_began 7.0", "_began seven"), ("_began 7.0", "_began 7 8 9"), ("_began 7.0", "_be-gan 7")]
        {
            assert_eq!(with(from, to), NotMetrics::NotOpenMetrics(3), "{to}");
        }
        assert_eq!(with("{kind=\"inference\"}", "{kind=\"inference}"), NotMetrics::NotOpenMetrics(5));
        assert_eq!(with("{kind=\"inference\"}", "{kind=\"inference\",kind=\"a\"}"), NotMetrics::NotOpenMetrics(5));
        assert_eq!(with("{kind=\"inference\"}", "{kind=\"\\x\"}"), NotMetrics::NotOpenMetrics(5));
        assert_eq!(with("# {trace_id=\"00\"} 0.5", "# trace"), NotMetrics::NotOpenMetrics(13));
        assert_eq!(Metrics::read(""), Err(NotMetrics::CutShort));
        let long = format!("# HELP a {}\n# EOF\n", "x".repeat(MAX_METRICS));
        assert_eq!(Metrics::read(&long), Err(NotMetrics::TooLong));
        let fits = format!("{}# EOF\n", "# HELP\n".repeat(0)) + "";
        assert_eq!(Metrics::read(&fits), Err(NotMetrics::Missing(BEGAN)));
    }

    #[test]
    fn a_series_that_is_missing_twice_or_no_count_is_told_by_its_name() {
        let with = |from: &str, to: &str| Metrics::read(&TEXT.replace(from, to)).unwrap_err();
        assert_eq!(with("portcullis_log_began 7.0\n", ""), NotMetrics::Missing(BEGAN));
        assert_eq!(with("portcullis_log_gaps_total 1\n", ""), NotMetrics::Missing(GAPS));
        assert_eq!(with("statements_total", "others_total"), NotMetrics::Missing(STATEMENTS));
        assert_eq!(with("\"heartbeat\"", "\"inference\""), NotMetrics::Twice("portcullis_log_statements_total{inference}".into()));
        assert_eq!(with("\"heartbeat\"", "\"daydream\""), NotMetrics::UnknownKind("daydream".into()));
        for value in ["7.5", "-1", "NaN", "+Inf", "1e300"] {
            assert_eq!(with("_began 7.0", &format!("_began {value}")), NotMetrics::NotACount(BEGAN.into()), "{value}");
        }
    }
}
