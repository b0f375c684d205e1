//! A reader's place in the feed, and its way from block to block.

use std::ops::Range;
use std::sync::Arc;

use super::block::Block;

/// How far a reader has come: the beginning of a line, or the end of all.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) block: Arc<Block>,
    pub(super) at: usize,
}

impl Cursor {
    /// Its place in the feed.
    pub(super) fn position(&self) -> u64 {
        self.block.position + self.at as u64
    }

    /// The number of the line it stands at.
    pub(super) fn line(&self) -> u64 {
        self.block.first + self.block.lines_before(self.at) as u64
    }

    /// The next bytes of its block, of `block.bytes`, that are not `own`; goes on to the next block where there are
    /// no more. `None`: there is nothing more to read.
    pub(super) fn next_stretch(&mut self, own: Option<u64>) -> Option<Range<usize>> {
        loop {
            let stretch = self.block.stretch(self.at, own);
            if !stretch.is_empty() {
                return Some(stretch);
            }
            self.at = self.block.bytes.len();
            let next = Arc::clone(self.block.next.get()?);
            self.block = next;
            self.at = 0;
        }
    }

    /// The beginning of the line at `position`, which is further on, as far as the blocks hang together.
    #[cfg(feature = "nats")]
    pub(super) fn line_at(&self, position: u64) -> Option<Self> {
        let mut block = &self.block;
        while block.end() <= position {
            block = block.next.get()?;
        }
        let into = usize::try_from(position.checked_sub(block.position)?).ok()?;
        Some(Self {
            at: block.line_start(into),
            block: Arc::clone(block),
        })
    }

    /// The bytes that are not `own` of the blocks from here on that begin before `end`, piece by piece.
    pub(super) fn stretches(&self, own: Option<u64>, end: u64) -> impl Iterator<Item = &[u8]> {
        let (mut block, mut at) = (&self.block, self.at);
        std::iter::from_fn(move || {
            while block.position < end {
                let stretch = block.stretch(at, own);
                if !stretch.is_empty() {
                    at = stretch.end;
                    return Some(&block.bytes[stretch]);
                }
                block = block.next.get()?;
                at = 0;
            }
            None
        })
    }

    /// Goes on by so many bytes that are not `own`, and past what is own behind them. What is next, of `block.bytes`.
    pub(super) fn advance(&mut self, mut bytes: usize, own: Option<u64>) -> Option<Range<usize>> {
        loop {
            let stretch = self.next_stretch(own)?;
            let taken = stretch.len().min(bytes);
            self.at = stretch.start + taken;
            bytes -= taken;
            if taken < stretch.len() {
                return Some(self.at..stretch.end);
            }
        }
    }

    /// Jumps to `there`, which is further on; answers how many lines that are not `own` are left out.
    pub(super) fn jump(&mut self, there: Self, own: Option<u64>) -> u64 {
        let mut missed = 0;
        while self.block.position < there.block.position {
            missed += self.block.lines_from(self.at, own);
            let Some(next) = self.block.next.get().map(Arc::clone) else {
                break;
            };
            self.block = next;
            self.at = 0;
        }
        *self = there;
        missed
    }
}
