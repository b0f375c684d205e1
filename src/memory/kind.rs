//! What waits, by kind: as tables and metrics name it.

use std::fmt;

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitingKind {
    /// Output that sockets would not take yet, of clients and of far sides.
    #[default]
    Output,
    /// Input that services left.
    Input,
    /// What hubs have published.
    Hub,
    /// Log lines.
    Log,
    /// What is to be printed.
    Stdout,
}

impl WaitingKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Output,
        Self::Input,
        Self::Hub,
        Self::Log,
        Self::Stdout,
    ];

    /// As tables and metrics name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Input => "input",
            Self::Hub => "hub",
            Self::Log => "log",
            Self::Stdout => "stdout",
        }
    }
}

impl fmt::Display for WaitingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_in_order() {
        for (at, kind) in WaitingKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind}");
        }
    }
}
