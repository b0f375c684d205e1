//! What is wrong with a text that was to be parsed: one type for all that have a [`FromStr`](std::str::FromStr) here.

use std::fmt;

/// Why a text is none of what it was parsed as: what was wrong, and what was expected.
///
/// ```
/// let error = "fd:x".parse::<standfast::Address>().unwrap_err();
/// assert_eq!(error.to_string(), r#""x" is not a descriptor number"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    what: String,
    lists_forms: bool,
}

impl ParseError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            lists_forms: false,
        }
    }

    /// For a text that is of none of the forms; `what` lists them.
    pub(crate) fn forms(what: impl Into<String>) -> Self {
        Self {
            lists_forms: true,
            ..Self::new(what)
        }
    }

    /// Whether the text was of none of the forms of an [`Address`](crate::Address), which this lists: a program that
    /// takes fewer of them lists its own.
    #[must_use]
    pub fn lists_forms(&self) -> bool {
        self.lists_forms
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ParseError {}
