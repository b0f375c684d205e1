//! What connections have beside their slots, block by block: a record of how each stands, and the output that waits for it.
//!
//! A connection's chain begins with its record, in as many blocks as that needs; behind that come the blocks of its output, in order, and those of its far
//! side's. Output is only ever added behind, and the record is replaced by a new one that leaves out what has been written since.

use std::collections::{HashMap, VecDeque};

use crate::os::fault::may_die;
use crate::vault::arena::{Arena, BLOCK_BYTES, BlockHead};
use crate::vault::noted::Stance;

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
    record: Vec<u32>,
    outputs: [Output; SIDES],
    /// How it stands by that record, if there is nothing beside.
    stance: Option<Stance>,
    /// It was being served when a server crashed, and has not got over that since.
    suspect: Option<Suspect>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    /// How much of its input, and of its far side's, it has got over.
    pub(super) read: u64,
    /// How much its client was sent.
    pub(super) written: u64,
}

/// What a connection has to get over that was being served when a server crashed.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    then: Reached,
    /// What it was served with was its own input. Else it was what others say, as of one that only listens: to be sent more of
    /// that clears it.
    had_input: bool,
}

impl Suspect {
    fn is_still(&self, now: Reached) -> bool {
        now.read <= self.then.read && (self.had_input || now.written <= self.then.written)
    }
}

/// Its own output, and its far side's.
const SIDES: usize = 2;

/// Output that waits.
#[derive(Debug, Default)]
struct Output {
    /// Each block with where that begins.
    blocks: VecDeque<(u32, u64)>,
    /// How much is in the last one.
    filled: usize,
}

/// In front of a record: the first block of the far side's output.
const BEHIND: usize = 4;

/// A position, and the bytes from there on in two pieces.
type Pieces<'a> = (u64, &'a [u8], &'a [u8]);

/// What a connection is to have beside its slot.
pub(super) struct Beside<'a> {
    pub(super) record: &'a [u8],
    pub(super) outputs: [Pieces<'a>; SIDES],
    /// How it stands by that, if that is all.
    pub(super) stance: Option<Stance>,
    pub(super) reached: Reached,
}

/// What a connection was found to have beside its slot.
pub(super) struct Found {
    pub(super) record: Vec<u8>,
    /// It was being served when a server crashed.
    pub(super) suspect: bool,
    /// Its output and its far side's, each with its position.
    pub(super) outputs: [(u64, Vec<u8>); SIDES],
}

/// There is no room for it.
#[derive(Debug)]
pub(super) struct Full;

impl Blocks {
    pub(super) fn has(&self, key: usize) -> bool {
        self.chains.contains_key(&key)
    }

    /// It was being served when a server crashed, `had_input` or not: that is remembered until it has got over it.
    pub(super) fn suspect(&mut self, key: usize, then: Reached, had_input: bool) {
        self.chains.entry(key).or_default().suspect = Some(Suspect { then, had_input });
    }

    pub(super) fn is_suspect(&self, key: usize, now: Reached) -> bool {
        let suspect = self.chains.get(&key).and_then(|chain| chain.suspect);
        suspect.is_some_and(|suspect| suspect.is_still(now))
    }

    /// Whether its record says already that it stands so.
    pub(super) fn says(&self, key: usize, stance: &Stance) -> bool {
        let chain = self.chains.get(&key);
        chain.is_some_and(|chain| chain.suspect.is_none() && chain.stance.as_ref() == Some(stance))
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
        let mut gone = Vec::new();
        let renewed = self.replace(arena, key, chain, beside, &mut gone);
        self.free.extend(gone);
        renewed
    }

    /// As [`renew`](Self::renew); what is wanted no more then is added to `gone`.
    fn replace(
        &mut self,
        arena: &mut Arena,
        key: usize,
        chain: &mut Chain,
        beside: &Beside<'_>,
        gone: &mut Vec<u32>,
    ) -> Result<(), Full> {
        for (output, pieces) in chain.outputs.iter_mut().zip(&beside.outputs) {
            self.update(arena, output, pieces, gone)?;
        }
        chain.suspect = chain
            .suspect
            .filter(|suspect| suspect.is_still(beside.reached));
        let [near, far] = &chain.outputs;
        let record = [&far.first().to_le_bytes(), beside.record].concat();
        let record = self.put(arena, &record, chain.suspect.is_some(), near.first())?;
        may_die("vault-record");
        arena.set_chain(key, record.first().copied().unwrap_or(0));
        may_die("vault-chain");
        gone.append(&mut chain.record);
        chain.record = record;
        chain.stance = beside.stance;
        Ok(())
    }

    /// A record in blocks of its own, the last of which leads on to `next`.
    fn put(
        &mut self,
        arena: &mut Arena,
        record: &[u8],
        suspect: bool,
        mut next: u32,
    ) -> Result<Vec<u32>, Full> {
        let at = u64::from(crc32fast::hash(record)) << 1 | u64::from(suspect);
        let length = u32::try_from(record.len()).map_err(|_| Full)?;
        let mut blocks = Vec::new();
        for _ in record.chunks(BLOCK_BYTES) {
            match self.take(arena) {
                Ok(block) => blocks.push(block),
                Err(full) => {
                    self.free.append(&mut blocks);
                    return Err(full);
                }
            }
        }
        for (&block, piece) in blocks.iter().zip(record.chunks(BLOCK_BYTES)).rev() {
            let room = arena.block_bytes(block).ok_or(Full)?;
            room[..piece.len()].copy_from_slice(piece);
            arena.set_block_head(block, BlockHead { next, length, at });
            next = block;
        }
        Ok(blocks)
    }

    /// Adds what of some output is not there yet, and finds which blocks are wanted no more.
    fn update(
        &mut self,
        arena: &mut Arena,
        output: &mut Output,
        &(start, front, back): &Pieces<'_>,
        gone: &mut Vec<u32>,
    ) -> Result<(), Full> {
        let mut end = output.end();
        if end < start || output.blocks.is_empty() {
            gone.extend(output.blocks.drain(..).map(|(block, _)| block));
            end = start;
        }
        may_die("vault-output");
        for piece in [(start, front), (start + front.len() as u64, back)] {
            self.append(arena, output, &mut end, piece)?;
        }
        // What has been written is wanted no more, but for what stands in one block with what has not.
        while let Some(&(block, at)) = output.blocks.front()
            && output.blocks.get(1).map_or(end, |next| next.1) <= start
            && at < end
        {
            gone.push(block);
            output.blocks.pop_front();
        }
        Ok(())
    }

    /// Adds what of a piece of the output is not there yet.
    fn append(
        &mut self,
        arena: &mut Arena,
        output: &mut Output,
        end: &mut u64,
        (at, piece): (u64, &[u8]),
    ) -> Result<(), Full> {
        let known = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut rest = piece.get(known..).unwrap_or_default();
        while !rest.is_empty() {
            let last = output.blocks.back().copied();
            let (block, from, filled) = match last.filter(|_| output.filled < BLOCK_BYTES) {
                Some((block, from)) => (block, from, output.filled),
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
                    let length = u32::try_from(output.filled).map_err(|_| Full)?;
                    let head = BlockHead {
                        next: block,
                        length,
                        at: from,
                    };
                    arena.set_block_head(former, head);
                }
                output.blocks.push_back((block, from));
            }
            output.filled = filled + count;
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
        for output in chain.outputs {
            let blocks = output.blocks.into_iter().map(|(block, _)| block);
            self.free.extend(blocks);
        }
        self.free.extend(chain.record);
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

impl Output {
    /// The first block, or 0.
    fn first(&self) -> u32 {
        self.blocks.front().map_or(0, |(block, _)| *block)
    }

    fn end(&self) -> u64 {
        let last = self.blocks.back();
        last.map_or(0, |(_, at)| at + self.filled as u64)
    }
}

const TORN: &str = "a record that was damaged";

/// What a chain says that begins with `first`.
pub(super) fn read(arena: &mut Arena, first: u32) -> Result<Found, &'static str> {
    let head = arena.block_head(first).ok_or(TORN)?;
    let length = usize::try_from(head.length).unwrap_or(usize::MAX);
    let (mut next, mut bytes) = (first, Vec::new());
    while bytes.len() < length || next == first {
        let block = arena.block_head(next).ok_or(TORN)?;
        if (block.length, block.at) != (head.length, head.at) {
            return Err(TORN);
        }
        let all = arena.block_bytes(next).ok_or(TORN)?;
        let rest = length - bytes.len();
        bytes.extend_from_slice(all.get(..rest).unwrap_or(all));
        next = block.next;
    }
    if u64::from(crc32fast::hash(&bytes)) != head.at >> 1 {
        return Err(TORN);
    }
    let (behind, record) = bytes.split_first_chunk::<BEHIND>().ok_or(TORN)?;
    let far = read_output(arena, u32::from_le_bytes(*behind))?;
    Ok(Found {
        record: record.to_vec(),
        suspect: head.at & 1 == 1,
        outputs: [read_output(arena, next)?, far],
    })
}

/// The output that begins with that block.
fn read_output(arena: &mut Arena, mut next: u32) -> Result<(u64, Vec<u8>), &'static str> {
    let (mut start, mut output) = (None, Vec::new());
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
            return Err(TORN);
        }
        output.extend_from_slice(bytes.ok_or(TORN)?);
        next = head.next;
    }
    Ok((start.unwrap_or(0), output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::arena::Clocks;

    #[test]
    fn what_found_no_room_leaves_no_block_behind() {
        let clocks = Clocks { own: 0, shared: 0 };
        let mut arena = Arena::new(&[], (4, 8), clocks).unwrap();
        let mut blocks = Blocks::default();
        let output = vec![7; 10 * BLOCK_BYTES];
        let mut note = |blocks: &mut Blocks, from: usize, to: usize| {
            let (from, to) = (from * BLOCK_BYTES, to * BLOCK_BYTES);
            let beside = Beside {
                record: b"a record",
                outputs: [(from as u64, &output[from..to], &[]), (0, &[], &[])],
                stance: None,
                reached: Reached {
                    read: 0,
                    written: 0,
                },
            };
            let noted = blocks.note(&mut arena, 1, &beside);
            if noted.is_err() {
                blocks.forget(&arena, 1);
            }
            noted.is_ok()
        };
        for _ in 0..3 {
            assert!(note(&mut blocks, 0, 3));
            assert!(!note(&mut blocks, 4, 10), "more than there are");
        }
        assert!(note(&mut blocks, 0, 7), "all that there are");
    }
}
