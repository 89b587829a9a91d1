//! The margin led against its trend (AAA-linear: Chen et al. 2022, <https://arxiv.org/abs/2205.12134>), in closed form.
//!
//! An attack that follows scores keeps each change that lowers the margin between the best class and the next, or the best one's
//! probability. Here the margin, in logarithms, is cut into intervals, and within each it is turned round: where the true margin falls by
//! a little the told one rises by as much, and the best one's probability with it. Such an attack walks away from the boundary. It
//! costs nothing to one who looks at labels, and is no answer to theft.
//!
//! The paper finds the logits by a hundred steps of Adam, with an eye on calibration. With the margin m in an interval of length I, whose
//! middle is A, the target is t = 2A − m; raising the best logit and lowering the next by (t − m)/2 each meets it. What that does to
//! confidence is bounded by the interval: the odds of the best against the next move by a factor of e at most, which is why it is shorter
//! than the paper's.

use super::row::{crown, normalize};

/// The length of an interval, in nats.
const INTERVAL: f64 = 1.0;

/// The told margin is at least so much: less would be rounded away.
const LEAST_MARGIN: f64 = INTERVAL / 64.0;

/// Shapes a row of probabilities. One that gives the next class nothing stays: there is no margin to lead.
pub fn shape(row: &mut [f64], best: usize) {
    normalize(row, best);
    let next = (0..row.len()).filter(|place| *place != best).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a)));
    let Some(next) = next.filter(|next| row[*next] > 0.0) else { return };
    let margin = (row[best] / row[next]).ln().max(0.0);
    let middle = ((margin / INTERVAL).floor() + 0.5) * INTERVAL;
    let told = (2.0 * middle - margin).max(LEAST_MARGIN);
    let half = ((told - margin) / 2.0).exp();
    row[best] *= half;
    row[next] /= half;
    normalize(row, best);
    crown(row, best);
}
