//! Connections that their service has paused, until it lets them go on.

use crate::io::marks::{Mark, Marks};

/// Their keys, each once: [`Mark::Paused`] says who is here.
#[derive(Debug, Default)]
pub(super) struct Paused {
    keys: Vec<usize>,
    /// The last `resume` seen.
    seen: u64,
}

impl Paused {
    pub(super) fn add(&mut self, key: usize, marks: &mut Marks) {
        if !marks.put(Mark::Paused, true) {
            self.keys.push(key);
        }
    }

    /// Those that may go on, whose marks are to be taken off, if `resumed` says so anew.
    pub(super) fn resumed(&mut self, resumed: u64) -> Vec<usize> {
        if resumed == self.seen {
            return Vec::new();
        }
        self.seen = resumed;
        std::mem::take(&mut self.keys)
    }
}
