//! Connections with something left to do in the next turn, though no event comes: edges come once.

use std::collections::VecDeque;

use crate::io::marks::{Mark, Marks};

/// Their keys, each once: [`Mark::Leftover`] says who is here.
#[derive(Debug, Default)]
pub(super) struct Leftovers(VecDeque<usize>);

impl Leftovers {
    /// Behind the others, if it is not here.
    #[inline]
    pub(super) fn add(&mut self, key: usize, marks: &mut Marks) {
        if !marks.put(Mark::Leftover, true) {
            self.0.push_back(key);
        }
    }

    /// The next one, whose mark is to be taken off.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.0.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
