//! Which texts run together. Padding costs as much as text, so texts of about one length share a run, and a run is bounded in memory.

/// The most places of one run, padding among them. Each takes some kilobytes within a layer.
pub const MAX_PLACES: usize = 8192;

/// The most scores of attention of one run (texts × heads × longest²), each held about four times over, four bytes each.
pub const MAX_SCORES: usize = 16 << 20;

/// Puts texts of these lengths into runs, longest first. In each, the shortest text has at least three quarters of the longest one's tokens, so that at
/// most a quarter of it is padding. A text that passes the bounds by itself runs by itself.
pub(super) fn runs(lengths: &[usize], heads: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|place| std::cmp::Reverse(lengths[*place]));
    let mut runs: Vec<Vec<usize>> = Vec::new();
    for place in order {
        let fits = |run: &Vec<usize>| {
            let (longest, texts) = (lengths[run[0]], run.len() + 1);
            let scores = longest.saturating_mul(longest).saturating_mul(heads).saturating_mul(texts);
            lengths[place] * 4 >= longest * 3 && longest.saturating_mul(texts) <= MAX_PLACES && scores <= MAX_SCORES
        };
        match runs.last_mut().filter(|run| fits(run)) {
            Some(run) => run.push(place),
            None => runs.push(vec![place]),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_of_about_one_length_run_together() {
        assert_eq!(runs(&[3, 12, 9, 4, 8], 1), [vec![1, 2], vec![4], vec![3, 0]]);
        assert!(runs(&[], 1).is_empty());
    }

    #[test]
    fn a_run_is_bounded() {
        assert_eq!(runs(&[MAX_PLACES / 2; 2], 0).len(), 1);
        assert_eq!(runs(&[MAX_PLACES / 2 + 1; 2], 0).len(), 2);
        // 2048² times 2 is half of the scores.
        assert_eq!(runs(&[2048; 2], 2).len(), 1);
        assert_eq!(runs(&[2048; 3], 2).len(), 2);
        assert_eq!(runs(&[usize::MAX / 8], 12), [[0]]);
    }

    proptest! {
        #[test]
        fn every_text_runs_once_with_little_padding(lengths in prop::collection::vec(1_usize..600, 0..200), heads in 1_usize..16) {
            let runs = runs(&lengths, heads);
            let mut seen: Vec<usize> = runs.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for run in &runs {
                let (longest, shortest) = (lengths[run[0]], lengths[run[run.len() - 1]]);
                prop_assert!(shortest * 4 >= longest * 3);
                prop_assert!(run.len() == 1 || longest * run.len() <= MAX_PLACES);
            }
        }
    }
}
