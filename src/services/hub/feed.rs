//! What was published, in one order: a chain of blocks, of which the feed keeps the newest.
//!
//! Publishing takes a lock; reading does not, but for a reader that has to jump. Whoever is further behind than the
//! feed reaches back jumps to its oldest block: blocks hold whole lines.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::block::{Block, Gathering};
use super::cursor::Cursor;
use crate::memory::{Held, Memory, WaitingKind};
use crate::os::fault::may_die;
use crate::os::journal::{Journal, Record};

/// The largest block, unless one line alone is larger: what is written in one go.
const BLOCK: usize = 64 * 1024;

/// Whose lines came from hubs on other machines: no client has that number.
pub(super) const REMOTE: u64 = u64::MAX;

/// What was published.
#[derive(Debug)]
pub(super) struct Feed {
    /// What is not further behind than this, in bytes, is kept.
    reach: usize,
    /// A block is closed at this size, bytes.
    block: usize,
    /// Where the oldest block begins that is kept.
    oldest: AtomicU64,
    /// Where the newest ends.
    end: AtomicU64,
    kept: Mutex<Kept>,
    /// Where it counts what it takes, once a server has it.
    memory: OnceLock<Memory>,
}

/// The blocks that are kept, oldest first, never none; and what is not in a block yet.
#[derive(Debug)]
struct Kept {
    blocks: VecDeque<Arc<Block>>,
    /// Bytes in `blocks`.
    size: usize,
    gathering: Gathering,
    /// What that takes.
    held: Held,
    /// Where it is said, too, for the next server, should this one crash.
    journal: Option<Journal>,
}

/// What a client says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) sender: u64,
    pub(super) bytes: &'a [u8],
    /// It is one line, whatever stands in it.
    pub(super) is_whole: bool,
    /// How much of the client's input has been said with that.
    pub(super) heard: u64,
}

impl Said<'_> {
    /// None of them empty.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let ends = !self.is_whole;
        self.bytes
            .split_inclusive(move |&byte| ends && byte == b'\n')
    }
}

/// When readers are to hear of what is to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// They are to be told already, or nothing is new.
    Known,
    /// After it has been gathered for a while.
    Soon,
    /// At once.
    Now,
    /// Not yet: nothing was published, for readers have to come first, or there is no memory.
    Full,
}

impl Feed {
    /// A feed that reaches back that many bytes.
    pub(super) fn new(reach: usize) -> Self {
        Self {
            reach,
            block: BLOCK.min(reach / 4).max(1),
            oldest: AtomicU64::new(0),
            end: AtomicU64::new(0),
            kept: Mutex::new(Kept {
                blocks: VecDeque::from([Arc::default()]),
                size: 0,
                gathering: Gathering::default(),
                held: Held::default(),
                journal: None,
            }),
            memory: OnceLock::new(),
        }
    }

    /// Counts what it takes in `memory`.
    pub(super) fn count_in(&self, memory: Memory) {
        // Once: a hub is started by one server.
        let _ = self.memory.set(memory);
    }

    /// Where the newest block ends.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Where the oldest block begins: who stands before it has to jump.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Acquire)
    }

    /// What is said stands in `journal`, too, from here on.
    #[cfg(control)]
    pub(super) fn keep_in(&self, journal: Journal) {
        self.lock().journal = Some(journal);
    }

    /// Publishes what was said, unless there is something behind the position `limit` already.
    // With two callers, as where hubs hear others, it was a call: a tenth to a fifth more CPU a line (scripts/bench/nats).
    #[inline(always)]
    pub(super) fn publish(&self, said: &Said<'_>, at_once: bool, limit: u64) -> Due {
        let mut kept = self.lock();
        // Under the lock: of several senders each sees what the others have added.
        if self.end() + kept.gathering.len() as u64 > limit {
            return Due::Full;
        }
        let count = said.lines().count();
        let gathering = &mut kept.gathering;
        let mut reserve = || gathering.reserve(said.bytes.len(), count);
        let reserved = match self.memory.get() {
            Some(memory) => memory.get(reserve),
            None => reserve(),
        };
        if reserved.is_err() {
            return Due::Full;
        }
        let mut due = if kept.gathering.is_empty() {
            Due::Soon
        } else {
            Due::Known
        };
        kept.note(said);
        may_die("hub-noted");
        for line in said.lines() {
            if self.push(&mut kept, said.sender, line) {
                due = Due::Now;
            }
        }
        if kept.gathering.is_empty() {
            return Due::Known;
        }
        if let Some(memory) = self.memory.get() {
            let capacity = kept.gathering.capacity();
            kept.held.count_in(memory, WaitingKind::Hub);
            kept.held.set(capacity);
        }
        if at_once || kept.gathering.len() >= self.block {
            self.seal_into(&mut kept);
            due = Due::Now;
        }
        due
    }

    /// Adds a line; answers whether a block was closed for it.
    fn push(&self, kept: &mut Kept, sender: u64, line: &[u8]) -> bool {
        let full = kept.gathering.len() + line.len() > self.block;
        let closes = full && !kept.gathering.is_empty();
        if closes {
            self.seal_into(kept);
        }
        kept.gathering.push(sender, line);
        closes
    }

    /// Closes the block that is being gathered.
    pub(super) fn seal(&self) {
        self.seal_into(&mut self.lock());
    }

    fn seal_into(&self, kept: &mut Kept) {
        if kept.gathering.is_empty() {
            return;
        }
        let before = Arc::clone(kept.newest());
        let block = kept.gathering.seal(&before);
        kept.held.set(0);
        self.add(kept, block);
    }

    /// Adds a block that stands behind the newest one, and drops those that are too old.
    fn add(&self, kept: &mut Kept, block: Block) {
        self.add_to_all(kept, block);
        while let Some(front) = kept.blocks.front()
            && kept.blocks.len() > 1
            && kept.size - front.bytes.len() >= self.reach
        {
            kept.size -= front.bytes.len();
            kept.blocks.pop_front();
        }
        if let Some(front) = kept.blocks.front() {
            self.oldest.store(front.position, Ordering::Release);
        }
    }

    /// Adds a block that stands behind the newest one.
    fn add_to_all(&self, kept: &mut Kept, mut block: Block) {
        let before = Arc::clone(kept.newest());
        if let Some(memory) = self.memory.get() {
            block.count_in(memory);
        }
        let block = Arc::new(block);
        // Set once, here, under the lock.
        let _ = before.next.set(Arc::clone(&block));
        kept.size += block.bytes.len();
        self.end.store(block.end(), Ordering::Release);
        kept.blocks.push_back(block);
    }

    /// As [`publish`](Self::publish), of what was said to another process: none of it is too old yet.
    #[cfg(control)]
    pub(super) fn say_again(&self, said: &Said<'_>) {
        let mut kept = self.lock();
        kept.note(said);
        for line in said.lines() {
            if kept.gathering.len() + line.len() > self.block {
                self.close(&mut kept);
            }
            kept.gathering.push(said.sender, line);
        }
    }

    /// What was said again is behind the rest.
    #[cfg(control)]
    pub(super) fn close_again(&self) {
        self.close(&mut self.lock());
    }

    #[cfg(control)]
    fn close(&self, kept: &mut Kept) {
        if !kept.gathering.is_empty() {
            let before = Arc::clone(kept.newest());
            let block = kept.gathering.seal(&before);
            self.add_to_all(kept, block);
        }
    }

    /// A reader of what is published from now on, and of the `history` lines before.
    pub(super) fn reader(&self, history: usize) -> Cursor {
        let mut kept = self.lock();
        self.seal_into(&mut kept);
        let mut missing = history;
        for block in kept.blocks.iter().rev() {
            if let Some(before) = block.lines().checked_sub(missing) {
                return Cursor {
                    at: block.start_of(before),
                    block: Arc::clone(block),
                };
            }
            missing -= block.lines();
        }
        kept.first()
    }

    /// A reader at the line of that number, which begins at `position`; and how many lines before its place are
    /// not kept any more.
    pub(super) fn reader_at(&self, position: u64, line: u64) -> (Cursor, u64) {
        let kept = self.lock();
        let from = kept.blocks.partition_point(|block| block.end() < position);
        let Some(block) = kept.blocks.get(from) else {
            // Behind the end: nowhere it could have been.
            return (kept.last(), 0);
        };
        match position.checked_sub(block.position) {
            Some(into) => {
                let at = block.line_start(usize::try_from(into).unwrap_or(usize::MAX));
                let block = Arc::clone(block);
                (Cursor { block, at }, 0)
            }
            None => (kept.first(), block.first.saturating_sub(line)),
        }
    }

    /// A reader of all that is kept.
    pub(super) fn oldest_reader(&self) -> Cursor {
        self.lock().first()
    }

    /// The blocks that end behind the position `from`, of at most `most` bytes unless one alone has more. What is
    /// being gathered becomes one of them if there is at least so much of that.
    pub(super) fn blocks_behind(&self, from: u64, most: usize, gathered: usize) -> Vec<Arc<Block>> {
        let mut kept = self.lock();
        if kept.gathering.len() >= gathered {
            self.seal_into(&mut kept);
        }
        let first = kept.blocks.partition_point(|block| block.end() <= from);
        let mut size = 0;
        let blocks = kept.blocks.iter().skip(first);
        let blocks = blocks.filter(|block| !block.bytes.is_empty());
        let blocks = blocks.take_while(|block| {
            let is_first = size == 0;
            size += block.bytes.len();
            is_first || size <= most
        });
        blocks.cloned().collect()
    }

    /// Where it ends, with the line of which number.
    pub(super) fn head(&self) -> (u64, u64) {
        let kept = self.lock();
        (kept.newest().end(), kept.newest().last())
    }

    /// Adds a block of another feed; begins anew with it if it does not follow upon what there is. One that is there
    /// already, from a freeze that came too late, changes nothing.
    pub(super) fn append(&self, block: Block) {
        if block.position >= self.oldest() && block.end() <= self.end() {
            return;
        }
        self.begin_at(block.position, block.first);
        let mut kept = self.lock();
        kept.note_block(&block);
        self.add(&mut kept, block);
    }

    /// Begins anew at `position`, with the line of number `first`, unless it stands there.
    pub(super) fn begin_at(&self, position: u64, first: u64) {
        let mut kept = self.lock();
        if (kept.newest().end(), kept.newest().last()) == (position, first) {
            return;
        }
        let mut origin = Block::default();
        (origin.position, origin.first) = (position, first);
        *kept = Kept {
            blocks: VecDeque::from([Arc::new(origin)]),
            size: 0,
            gathering: Gathering::default(),
            held: Held::default(),
            journal: kept.journal.take(),
        };
        kept.note_origin();
        self.oldest.store(position, Ordering::Release);
        self.end.store(position, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Says it in the journal.
    fn note(&mut self, said: &Said<'_>) {
        let gathered = self.gathering.len() as u64;
        let (end, last) = (self.newest().end(), self.newest().last());
        if let Some(journal) = &mut self.journal {
            let record = Record {
                position: end + gathered,
                line: last + self.gathering.lines() as u64,
                sender: said.sender,
                heard: said.heard,
                is_whole: said.is_whole,
            };
            journal.append(&record, said.bytes, u64::MAX);
        }
    }

    /// Where the feed stands, without a line.
    fn note_origin(&mut self) {
        let said = Said {
            sender: 0,
            bytes: &[],
            is_whole: false,
            heard: 0,
        };
        self.note(&said);
    }

    /// As [`note`](Self::note), of a block that is to stand behind the newest.
    fn note_block(&mut self, block: &Block) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        let mut from = 0;
        for (end, sender, is_whole) in block.parts() {
            let record = Record {
                position: block.position + from as u64,
                line: block.first + block.lines_before(from) as u64,
                sender,
                heard: 0,
                is_whole,
            };
            journal.append(&record, &block.bytes[from..end], u64::MAX);
            from = end;
        }
    }

    #[expect(clippy::expect_used, reason = "made with one, and the last stays")]
    fn newest(&self) -> &Arc<Block> {
        self.blocks.back().expect("there is always a block")
    }

    #[expect(clippy::expect_used, reason = "made with one, and the last stays")]
    fn first(&self) -> Cursor {
        let block = self.blocks.front().expect("there is always a block");
        Cursor {
            block: Arc::clone(block),
            at: 0,
        }
    }

    fn last(&self) -> Cursor {
        let block = Arc::clone(self.newest());
        Cursor {
            at: block.bytes.len(),
            block,
        }
    }
}

/// What a client says in one piece.
#[cfg(test)]
pub(super) fn said(sender: u64, text: &str) -> Said<'_> {
    Said {
        sender,
        bytes: text.as_bytes(),
        is_whole: false,
        heard: 0,
    }
}

#[cfg(test)]
mod tests;
