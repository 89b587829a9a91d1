//! What answers cost on the ladder's step `price`: who comes there, and what is due of whom.

use std::sync::Mutex;

use super::{Config, Manner, Pupil, SPENT, Step, Watch};
use crate::budget::gate::locked;
use crate::detect::price::Difficulty;
use crate::mistake::Mistake;

impl Config {
    /// The last step, and whether answers have a price.
    pub(super) fn most_and_price(&self, mistakes: &mut Vec<Mistake>) -> (Step, bool) {
        let said = self.most.as_ref().map(|most| *most.get_ref());
        let price = self.price.as_ref().map_or(said == Some(Step::Price), |price| *price.get_ref());
        if let Some(span) = self.price.as_ref().map(toml::Spanned::span) {
            let wrong = match said {
                Some(Step::Price) if !price => Some(
                    "`most` is \"price\", a step that this leaves out: say true, or \"degrade\", the step before, or \"quarantine\", the step after",
                ),
                Some(most) if price && most < Step::Price => {
                    Some("`most` ends before answers have a price: leave it out, or say \"price\" or a step after it")
                }
                _ => None,
            };
            mistakes.extend(wrong.map(|wrong| Mistake::at(span, wrong)));
        }
        (said.unwrap_or(if price { Step::Price } else { SPENT }), price)
    }
}

impl Watch {
    /// Where a caller comes to whose budget of exposure is spent.
    pub(super) fn spent(&self) -> Step {
        if self.rungs.price { Step::Price } else { SPENT }
    }

    /// How a caller is answered on the step `price`, as on the one before, and on the one after it: for work. Where a policy that asks for none
    /// came after it, for none.
    pub(super) fn priced(&self, step: Step, spent: f64) -> Manner {
        let care = self.care(if step == Step::Price { Step::Degrade } else { step }, spent);
        if self.rungs.price { Manner::ForWork(care) } else { Manner::With(care) }
    }

    /// What an answer of so many rows costs a caller on that step, by what it may have learned of the model.
    pub(in crate::detect) fn due(&self, pupil: &Mutex<Pupil>, rows: u32) -> Difficulty {
        Difficulty::on_the_step(self.budgets.spent(locked(pupil).exposure()), rows)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::tests::{calibration, watch_with};
    use super::*;

    fn compiled(text: &str) -> (Step, bool, Vec<String>) {
        let mut mistakes = Vec::new();
        let (most, price) = toml::from_str::<Config>(text).unwrap().most_and_price(&mut mistakes);
        (most, price, mistakes.iter().map(|mistake| mistake.what.clone()).collect())
    }

    #[test]
    fn a_price_is_the_last_step_unless_another_is_said_and_the_last_step_price_implies_one() {
        let of = |text: &str| {
            let (most, price, mistakes) = compiled(text);
            assert!(mistakes.is_empty(), "{text}: {mistakes:?}");
            (most, price)
        };
        assert_eq!(of(""), (Step::Degrade, false));
        assert_eq!(of("price = false"), (Step::Degrade, false));
        assert_eq!(of("price = true"), (Step::Price, true));
        assert_eq!(of("most = \"price\""), (Step::Price, true));
        assert_eq!(of("most = \"price\"\nprice = true"), (Step::Price, true));
        assert_eq!(of("most = \"quarantine\"\nprice = true"), (Step::Quarantine, true));
        assert_eq!(of("most = \"block\"\nprice = true"), (Step::Block, true));
        assert_eq!(of("most = \"block\""), (Step::Block, false), "a price is asked for by name alone");
    }

    #[test]
    fn a_price_on_no_step_and_a_step_without_a_price_are_mistakes_that_say_what_would_be_right() {
        let wrong = |text: &str| compiled(text).2.concat();
        for most in ["observe", "alert", "throttle", "degrade"] {
            assert!(wrong(&format!("most = \"{most}\"\nprice = true")).contains("say \"price\" or a step after it"), "{most}");
        }
        assert!(wrong("most = \"price\"\nprice = false").contains("say true"));
        assert!(toml::from_str::<Config>("price = 1").is_err());
    }

    #[test]
    fn a_step_is_paid_for_only_while_the_policy_has_a_price() {
        let calibration = calibration();
        let [priced, free] = ["most = \"price\"", "most = \"quarantine\""].map(|ladder| watch_with(&calibration, ladder, ""));
        let pupil = Mutex::new(Pupil::default());
        let now = Instant::now();
        assert_eq!(priced.manner(&pupil, 1, now).0, Manner::With(crate::detect::Care::default()));
        assert!(locked(&pupil).ladder.spend(priced.spent(), 1, 5, &priced.rungs, now));
        let before = priced.manner(&pupil, 5, now);
        assert_eq!(before, (Manner::With(crate::detect::Care::default()), None));
        let (manner, moved) = priced.manner(&pupil, 6, now);
        assert_eq!((manner, moved), (Manner::ForWork(priced.care(Step::Degrade, 0.0)), Some((Step::Observe, Step::Price))));
        // Another policy finds the caller there, and asks for nothing.
        assert_eq!(free.manner(&pupil, 7, now), (Manner::With(free.care(Step::Degrade, 0.0)), None));
        assert_eq!((priced.spent(), free.spent()), (Step::Price, Step::Degrade));
        // Who goes on to quarantine does not come by it to answers that cost nothing.
        let priced = watch_with(&calibration, "most = \"quarantine\"\nprice = true", "");
        assert!(matches!(priced.priced(Step::Quarantine, 0.0), Manner::ForWork(_)));
        assert!(matches!(free.priced(Step::Quarantine, 0.0), Manner::With(_)));
    }
}
