//! Where a setting comes from.

use std::fmt;
use std::sync::Arc;

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was typed.
    Flag,
    /// A variable of the environment.
    Variable(String),
    /// A line of the file, counted from 1.
    Line { file: Arc<str>, line: usize },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Variable(name) => f.write_str(name),
            Self::Line { file, line } => write!(f, "{file}:{line}"),
        }
    }
}
