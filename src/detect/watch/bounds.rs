//! What honest callers of a model do: a calibration, as it lies beside the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::families;
use super::loss::{Kept, Owned};
use super::space::{Fitted, PHI, Space};
use super::wealth::Bet;
use crate::detect::text::Key;
use crate::secret::Secret;

/// The format that is written, and the only one that is read.
pub(crate) const FORMAT: u32 = 2;

/// What a model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Of {
    /// Numbers, which are the rows.
    #[default]
    Numbers,
    /// Texts and nothing else: their sketches are the rows.
    Texts,
    /// Both: the numbers are the rows, and texts are looked at beside them.
    Both,
}

impl Of {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_numbers(&self) -> bool {
        *self == Self::Numbers
    }
}

/// A calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bounds {
    /// [`FORMAT`].
    pub(super) format: u32,
    /// The model, by its name.
    pub(super) model: String,
    /// What the model takes; not in the file where it takes numbers alone.
    #[serde(default, skip_serializing_if = "Of::is_numbers")]
    pub(super) of: Of,
    /// False alarms a caller and day, stated.
    pub(super) rate: f32,
    /// What it rests on.
    pub(super) rests_on: Evidence,
    /// Where inputs are compared.
    pub(super) space: Fitted,
    /// How near is near, and how near the nearest of strangers is, in standard deviations of a coordinate.
    pub(super) radius: [f32; 2],
    /// Margins below are low.
    pub(super) low_margin: f32,
    /// What is far.
    pub(super) outlier: Outlier,
    /// The mean of honest inputs' features.
    pub(super) mean_phi: Vec<f32>,
    /// How large honest clusters are.
    pub(super) clusters: Clusters,
    /// The most discrepancy of an honest caller at each size of the window.
    pub(super) window: Vec<f32>,
    /// The least and the most buckets of an honest caller at each size of the window.
    pub(super) coverage: Vec<[f32; 2]>,
    /// The owner's rows, on which copies are tried; none for a model without classes.
    pub(super) holdout: Option<Kept>,
    /// How each family that has an opinion of what the model takes bets, by its name.
    pub(super) bets: BTreeMap<String, Bet>,
}

/// What a calibration rests on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Evidence {
    /// Callers, each a caller-day.
    pub(super) callers: usize,
    /// Rows.
    pub(super) rows: usize,
    /// Callers that bounds from the others' traffic alarmed about.
    pub(super) alarms: usize,
    /// The least rate of false alarms that this rules out, with 95 % confidence (Clopper and Pearson, 1934).
    pub(super) at_most: f64,
    /// Callers that were left out as the oddest.
    pub(super) trimmed: usize,
}

/// Beyond which honest inputs hardly lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outlier {
    pub(super) distance: f32,
    pub(super) kernel: f32,
    pub(super) energy: [f32; 2],
    pub(super) rough: [f32; 2],
}

/// From which size on clusters are asked for a sign.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clusters {
    pub(super) flip: u32,
}

/// A calibration, ready to be used.
#[derive(Debug)]
pub(crate) struct Calibration {
    pub(super) bounds: Bounds,
    pub(super) space: Space,
    /// With what texts are hashed, where there are any.
    pub(super) key: Option<Key>,
    /// The owner's rows.
    pub(super) owned: Option<Arc<Owned>>,
    /// In the order of [`families::ALL`]; of those that have no opinion, none.
    pub(super) bets: [Bet; families::COUNT],
}

/// Why a file is no calibration.
#[derive(Debug)]
#[expect(clippy::enum_variant_names, reason = "each says who is at fault")]
pub(crate) enum Error {
    /// It is not JSON of this shape.
    OperatorGaveNoCalibration(serde_json::Error),
    /// It is of another format.
    OperatorGaveAnotherFormat(u32),
    /// Its parts do not fit together.
    OperatorGaveUnfitParts(&'static str),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OperatorGaveNoCalibration(error) => write!(f, "it is no calibration: {error}"),
            Self::OperatorGaveAnotherFormat(format) => {
                write!(f, "it has the format {format}, and this program reads {FORMAT}: calibrate anew")
            }
            Self::OperatorGaveUnfitParts(part) => write!(f, "its {part} do not fit: calibrate anew"),
        }
    }
}

impl std::error::Error for Error {}

impl Calibration {
    /// Reads a calibration.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(bytes).map_err(Error::OperatorGaveNoCalibration)?;
        if format != FORMAT {
            return Err(Error::OperatorGaveAnotherFormat(format));
        }
        Self::of(serde_json::from_slice(bytes).map_err(Error::OperatorGaveNoCalibration)?)
    }

    pub(super) fn of(bounds: Bounds) -> Result<Self, Error> {
        let space = Space::new(bounds.space.clone()).ok_or(Error::OperatorGaveUnfitParts("space's numbers"))?;
        if bounds.mean_phi.len() != PHI || bounds.mean_phi.iter().any(|number| !number.is_finite()) {
            return Err(Error::OperatorGaveUnfitParts("mean features"));
        }
        if bounds.clusters.flip == 0 || bounds.radius.iter().any(|radius| radius.is_nan() || *radius <= 0.0) {
            return Err(Error::OperatorGaveUnfitParts("distances"));
        }
        let mut bets = [Bet::SILENT; families::COUNT];
        for (bet, family) in bets.iter_mut().zip(families::ALL).filter(|(_, family)| family.speaks(bounds.of)) {
            *bet = *bounds.bets.get(family.name).ok_or(Error::OperatorGaveUnfitParts("families"))?;
            if !(0.0..=1.0).contains(&bet.rate) || bet.alarm.is_nan() || bet.alarm <= 0.0 {
                return Err(Error::OperatorGaveUnfitParts("bets"));
            }
        }
        let owned = match &bounds.holdout {
            Some(kept) => Some(Arc::new(kept.ready().ok_or(Error::OperatorGaveUnfitParts("holdout"))?)),
            None => None,
        };
        let key = (bounds.of != Of::Numbers).then(|| text_key(&bounds.space.seed));
        Ok(Self { bounds, space, key, owned, bets })
    }

    /// Numbers a row of the inputs that it was made from.
    pub(crate) fn width(&self) -> usize {
        self.space.width()
    }
}

/// The key of a calibration's texts: who has its file has it too, and can try what was asked.
pub(super) fn text_key(seed: &Secret) -> Key {
    Key::from_secret(seed)
}
