//! What becomes of a rule's decisions: each kind of rule has the same three modes.

use serde::Deserialize;

/// The mode of a rule, or of the table that it stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What it decides is acted upon, and told.
    #[default]
    Enforce,
    /// What it decides is told.
    Shadow,
    /// It decides nothing.
    Off,
}
