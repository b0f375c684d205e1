//! `--expect`: a figure of the result that has to be so. Pure.

use std::fmt;

/// Whether a figure compares so with a number.
type Holds = fn(f64, f64) -> bool;

/// The comparisons, the longer ones first.
const COMPARISONS: [(&str, Holds); 6] = [
    ("==", |a, b| a == b),
    ("!=", |a, b| a != b),
    ("<=", |a, b| a <= b),
    (">=", |a, b| a >= b),
    ("<", |a, b| a < b),
    (">", |a, b| a > b),
];

/// `NAME OP NUMBER`.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    pub(super) name: String,
    comparison: &'static str,
    holds: Holds,
    number: f64,
}

impl Expectation {
    /// Reads one about a figure that is among `names`.
    pub(super) fn read(text: &str, names: &[String]) -> Result<Self, String> {
        let wrong = |why: &str| format!("--expect {text:?}: {why}");
        let found = COMPARISONS.into_iter().filter_map(|(comparison, holds)| {
            text.find(comparison).map(|at| (at, comparison, holds))
        });
        // The first, and of two that begin at the same place the longer one.
        let Some((at, comparison, holds)) = found.min_by_key(|(at, ..)| *at) else {
            return Err(wrong(
                "expected NAME OP NUMBER, such as 'lost == 0', with == != < <= > or >=",
            ));
        };
        let name = text[..at].trim();
        let number = text[at + comparison.len()..].trim();
        if !names.iter().any(|known| known == name) {
            return Err(wrong(&format!(
                "{name:?} is no figure: there are {}",
                names.join(", ")
            )));
        }
        let number = match number.parse::<f64>() {
            Ok(number) if number.is_finite() => number,
            _ => return Err(wrong(&format!("{number:?} is not a number"))),
        };
        Ok(Self {
            name: name.to_owned(),
            comparison,
            holds,
            number,
        })
    }

    /// Whether it holds for that figure; one that is not known never does.
    pub(super) fn holds(&self, figure: Option<f64>) -> bool {
        figure.is_some_and(|figure| (self.holds)(figure, self.number))
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.comparison, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Expectation, String> {
        Expectation::read(text, &["lost".to_owned(), "p99_ms".to_owned()])
    }

    #[test]
    fn every_comparison_is_made() {
        for (text, below, same, above) in [
            ("lost==5", false, true, false),
            ("lost != 5", true, false, true),
            ("lost<5", true, false, false),
            ("lost <= 5", true, true, false),
            (" lost > 5 ", false, false, true),
            ("lost>=5.0", false, true, true),
        ] {
            let expectation = read(text).unwrap();
            let holds = |figure| expectation.holds(Some(figure));
            assert_eq!(
                (holds(4.0), holds(5.0), holds(6.0)),
                (below, same, above),
                "{text}"
            );
            assert!(!expectation.holds(None));
        }
        assert_eq!(read("p99_ms<=0.5").unwrap().to_string(), "p99_ms <= 0.5");
    }

    #[test]
    fn what_is_no_expectation_is_refused() {
        for (text, hint) in [
            ("lost", "expected NAME OP NUMBER"),
            ("lost = 0", "expected NAME OP NUMBER"),
            ("", "expected NAME OP NUMBER"),
            ("lots == 0", "there are lost, p99_ms"),
            ("== 0", "there are lost, p99_ms"),
            ("lost == ", "not a number"),
            ("lost == many", "not a number"),
            ("lost == nan", "not a number"),
            ("lost === 0", "not a number"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(hint), "{text}: {refused}");
        }
    }
}
