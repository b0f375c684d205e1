//! What connections have beside their slots, block by block: a record of how each stands, and the output that waits for it.
//!
//! A connection's chain begins with its record; behind that come the blocks of its output, in order. Output is only ever
//! added behind, and the record is replaced by a new one that leaves out what has been written since.

use std::collections::{HashMap, VecDeque};

use crate::os::fault::may_die;
use crate::vault::arena::{Arena, BLOCK_BYTES, BlockHead};

/// Blocks that were used and are not any more stay with the process, up to so many.
const SPARE: usize = 2048;

/// Which blocks are free, and whose the others are.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    free: Vec<u32>,
    /// Those from here on were never used, or given back.
    fresh: u32,
    chains: HashMap<usize, Chain>,
}

/// One connection's.
#[derive(Debug, Default)]
struct Chain {
    record: u32,
    /// Of its output, each with where that begins.
    output: VecDeque<(u32, u64)>,
    /// How much is in the last one.
    filled: usize,
    /// It was being served when a server crashed, with so much read; and has not read more since.
    suspect: Option<u64>,
}

/// What a connection is to have beside its slot.
pub(super) struct Beside<'a> {
    pub(super) record: &'a [u8],
    /// The position of the first byte of the output, and that in two pieces.
    pub(super) output: (u64, &'a [u8], &'a [u8]),
    /// How much was read of it.
    pub(super) read: u64,
}

/// There is no room for it.
#[derive(Debug)]
pub(super) struct Full;

impl Blocks {
    pub(super) fn has(&self, key: usize) -> bool {
        self.chains.contains_key(&key)
    }

    /// It was being served when a server crashed: that is remembered until it has got over what it said next.
    pub(super) fn suspect(&mut self, key: usize, read: u64) {
        self.chains.entry(key).or_default().suspect = Some(read);
    }

    pub(super) fn is_suspect(&self, key: usize, read: u64) -> bool {
        let chain = self.chains.get(&key);
        chain.is_some_and(|chain| chain.suspect.is_some_and(|then| read <= then))
    }

    /// Notes what it has now. Wherever that is interrupted, either what it had is there or what it has.
    pub(super) fn note(
        &mut self,
        arena: &mut Arena,
        key: usize,
        beside: &Beside<'_>,
    ) -> Result<(), Full> {
        let mut chain = self.chains.remove(&key).unwrap_or_default();
        let noted = self.renew(arena, key, &mut chain, beside);
        self.chains.insert(key, chain);
        noted
    }

    fn renew(
        &mut self,
        arena: &mut Arena,
        key: usize,
        chain: &mut Chain,
        beside: &Beside<'_>,
    ) -> Result<(), Full> {
        let (start, front, back) = beside.output;
        let mut end = chain.end();
        let mut gone = Vec::new();
        if end < start || chain.output.is_empty() {
            gone.extend(chain.output.drain(..).map(|(block, _)| block));
            end = start;
        }
        may_die("vault-output");
        for piece in [(start, front), (start + front.len() as u64, back)] {
            self.append(arena, chain, &mut end, piece)?;
        }
        // What has been written is wanted no more, but for what stands in one block with what has not.
        while let Some(&(block, at)) = chain.output.front()
            && chain.output.get(1).map_or(end, |next| next.1) <= start
            && at < end
        {
            gone.push(block);
            chain.output.pop_front();
        }
        chain.suspect = chain.suspect.filter(|then| beside.read <= *then);
        let record = self.take(arena)?;
        let room = arena.block_bytes(record).ok_or(Full)?;
        let length = beside.record.len();
        room.get_mut(..length)
            .ok_or(Full)?
            .copy_from_slice(beside.record);
        let check = u64::from(crc32fast::hash(beside.record));
        let head = BlockHead {
            next: chain.output.front().map_or(0, |(block, _)| *block),
            length: u32::try_from(length).map_err(|_| Full)?,
            at: check << 1 | u64::from(chain.suspect.is_some()),
        };
        arena.set_block_head(record, head);
        may_die("vault-record");
        arena.set_chain(key, record);
        may_die("vault-chain");
        gone.extend((chain.record != 0).then_some(chain.record));
        chain.record = record;
        self.free.extend(gone);
        Ok(())
    }

    /// Adds what of a piece of the output is not there yet.
    fn append(
        &mut self,
        arena: &mut Arena,
        chain: &mut Chain,
        end: &mut u64,
        (at, piece): (u64, &[u8]),
    ) -> Result<(), Full> {
        let known = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut rest = piece.get(known..).unwrap_or_default();
        while !rest.is_empty() {
            let last = chain.output.back().copied();
            let (block, from, filled) = match last.filter(|_| chain.filled < BLOCK_BYTES) {
                Some((block, from)) => (block, from, chain.filled),
                None => (self.take(arena)?, *end, 0),
            };
            let room = arena.block_bytes(block).ok_or(Full)?;
            let count = rest.len().min(BLOCK_BYTES - filled);
            let (now, later) = rest.split_at(count);
            room[filled..filled + count].copy_from_slice(now);
            let length = u32::try_from(filled + count).map_err(|_| Full)?;
            let head = BlockHead {
                next: 0,
                length,
                at: from,
            };
            arena.set_block_head(block, head);
            may_die("vault-block");
            if filled == 0 {
                if let Some((former, from)) = last {
                    let length = u32::try_from(chain.filled).map_err(|_| Full)?;
                    let head = BlockHead {
                        next: block,
                        length,
                        at: from,
                    };
                    arena.set_block_head(former, head);
                }
                chain.output.push_back((block, from));
            }
            chain.filled = filled + count;
            *end += count as u64;
            rest = later;
        }
        Ok(())
    }

    /// The connection of that key has nothing beside its slot any more.
    pub(super) fn forget(&mut self, arena: &Arena, key: usize) {
        let Some(chain) = self.chains.remove(&key) else {
            return;
        };
        let output = chain.output.into_iter().map(|(block, _)| block);
        self.free.extend(output);
        self.free
            .extend((chain.record != 0).then_some(chain.record));
        if self.chains.is_empty() && self.free.len() > SPARE {
            arena.give_back(self.fresh as usize);
            self.free = Vec::new();
            self.fresh = 0;
        }
    }

    fn take(&mut self, arena: &Arena) -> Result<u32, Full> {
        if let Some(block) = self.free.pop() {
            return Ok(block);
        }
        if self.fresh as usize >= arena.blocks() {
            return Err(Full);
        }
        self.fresh += 1;
        Ok(self.fresh)
    }
}

impl Chain {
    fn end(&self) -> u64 {
        let last = self.output.back();
        last.map_or(0, |(_, at)| at + self.filled as u64)
    }
}

/// What a chain says that begins with `first`: the record, whether its connection was suspect, and the output that is there,
/// with its position.
pub(super) fn read(arena: &mut Arena, first: u32) -> Result<(Vec<u8>, bool, u64, Vec<u8>), String> {
    const TORN: &str = "a record that was damaged";
    let head = arena.block_head(first).ok_or(TORN)?;
    let length = usize::try_from(head.length).unwrap_or(usize::MAX);
    let record = arena.block_bytes(first).and_then(|all| all.get(..length));
    let record = record.ok_or(TORN)?.to_vec();
    if u64::from(crc32fast::hash(&record)) != head.at >> 1 {
        return Err(TORN.to_owned());
    }
    let (mut next, mut start, mut output) = (head.next, None, Vec::new());
    let most = arena.blocks();
    for _ in 0..most {
        if next == 0 {
            break;
        }
        let head = arena.block_head(next).ok_or(TORN)?;
        let start = *start.get_or_insert(head.at);
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        let bytes = arena.block_bytes(next).and_then(|all| all.get(..length));
        if head.at != start + output.len() as u64 {
            return Err(TORN.to_owned());
        }
        output.extend_from_slice(bytes.ok_or(TORN)?);
        next = head.next;
    }
    Ok((record, head.at & 1 == 1, start.unwrap_or(0), output))
}
