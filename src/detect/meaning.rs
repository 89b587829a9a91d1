//! What an alarm means for people: the ids under which others know of it, and what may be done next.

use serde_json::Value;

use crate::event::Event;

/// Of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    family: &'static str,
    /// Techniques of MITRE ATLAS 5.6.
    atlas: &'static [&'static str],
    /// Items of the OWASP Machine Learning Security Top Ten 2023, and of its Top Ten for language models 2025.
    owasp: &'static [&'static str],
    advice: &'static str,
}

/// The families that keep no space of inputs; the others say it in their own files.
const ALL: &[Meaning] = &[
    Meaning {
        family: "parameters",
        atlas: &["AML.T0024.002", "AML.T0063"],
        owasp: &["LLM10:2025", "ML05:2023"],
        advice: "ask the caller what it needs so many log-probabilities or biases for; an evaluation may be given a tier of its own",
    },
    Meaning {
        family: "precision",
        atlas: &["AML.T0024.002", "AML.T0043.001"],
        owasp: &["ML05:2023", "ML01:2023"],
        advice: "numbers finer than the input has are made by a program: look at the caller's last inputs in order",
    },
    Meaning {
        family: "bias",
        atlas: &["AML.T0024.002", "AML.T0063"],
        owasp: &["LLM10:2025", "ML05:2023"],
        advice: "logits are computed from biased answers: take logit_bias and its like from the caller, or hold it to a budget with [detect.bias]",
    },
    Meaning {
        family: "distillation",
        atlas: &["AML.T0024.002", "AML.T0005.001"],
        owasp: &["LLM10:2025", "ML05:2023"],
        advice: "look at what the template asks for, and who else uses it; a team's own test set looks like that and is smaller",
    },
    Meaning {
        family: "probing",
        atlas: &["AML.T0024.000", "AML.T0057"],
        owasp: &["LLM02:2025", "ML04:2023"],
        advice: "look at what the answers gave away; a red team of one's own asks the same, and is known to somebody",
    },
    Meaning {
        family: "leak",
        atlas: &["AML.T0056", "AML.T0057"],
        owasp: &["LLM07:2025"],
        advice: "read the receipt's request: what it asked is how the instructions came out; nothing secret belongs in them",
    },
    Meaning {
        family: "exposure",
        atlas: &["AML.T0024.002"],
        owasp: &["ML05:2023"],
        advice: "the caller has had as much of the model as its budget allows; raise the budget if that is the bargain",
    },
    Meaning {
        family: "vectors",
        atlas: &["AML.T0024.002"],
        owasp: &["ML05:2023"],
        advice: "the caller has seen half of the space of embeddings, as who copies the encoder must; who indexes all kinds of texts does too",
    },
];

/// An alarm with its family, and with what that means.
pub(super) fn of(family: &'static str, event: Event) -> Event {
    let event = event.with("family", family);
    let Some(meaning) = ALL.iter().find(|meaning| meaning.family == family) else { return event };
    meaning.on(event)
}

impl Meaning {
    fn on(&self, event: Event) -> Event {
        event
            .with("atlas", Value::from_iter(self.atlas.iter().copied()))
            .with("owasp", Value::from_iter(self.owasp.iter().copied()))
            .with("advice", self.advice)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::event::Name;

    #[test]
    fn every_family_means_something_to_people() {
        let told = |family| {
            let event = of(family, Event::new(Name::DetectAlarm, SystemTime::UNIX_EPOCH));
            event.more.iter().map(|(name, _)| *name).collect::<Vec<_>>()
        };
        for family in ["parameters", "precision", "bias", "distillation", "probing", "leak", "exposure", "vectors"] {
            assert_eq!(told(family), ["family", "atlas", "owasp", "advice"], "{family}");
        }
    }
}
