//! The tables that there are.

use crate::top::columns;
use crate::top::table::Sort;

/// A table that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Connections,
    Ended,
    Listeners,
    Reasons,
    Upstreams,
    Takeovers,
}

impl View {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 6] = [
        Self::Connections,
        Self::Ended,
        Self::Listeners,
        Self::Reasons,
        Self::Upstreams,
        Self::Takeovers,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Connections => "Connections",
            Self::Ended => "Ended last",
            Self::Listeners => "Listeners",
            Self::Reasons => "Ends by reason",
            Self::Upstreams => "Upstreams",
            Self::Takeovers => "Takeovers",
        }
    }

    /// How it is sorted at first. `None`: as it was told.
    pub(super) fn sort(self) -> Option<Sort> {
        let column = match self {
            Self::Connections => columns::BY_TRAFFIC,
            Self::Reasons => columns::BY_COUNT,
            _ => return None,
        };
        Some(Sort {
            column,
            reversed: false,
        })
    }

    /// The one so many further on, around.
    pub(super) fn further(self, steps: usize) -> Self {
        Self::ALL[(self as usize + steps) % Self::ALL.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_numbered_in_order() {
        for (at, view) in View::ALL.into_iter().enumerate() {
            assert_eq!(view as usize, at, "{view:?}");
        }
    }
}
