//! The memory of one worker's vault: what stands where, for whoever writes it and for whoever finds it.
//!
//! ```text
//! a page: whose it is, by which clock, the step that is under way
//! the listeners, as connections name them
//! what the worker reads into
//! a slot for each connection, at its key
//! a slot for each one's far side
//! those on their way to another worker
//! blocks: what a connection has beside its slot, a chain for each
//! ```
//!
//! A process is killed between two instructions, and what it has stored by then is there, in the order in which the program
//! says so. So whatever is changed is complete before one store makes it count; which store that is each function says.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    FallocateFlags, FlockOperation, MemfdFlags, SealFlags, fallocate, fcntl_add_seals,
    fcntl_get_seals, flock, fstat, ftruncate, memfd_create,
};
use rustix::process::{Resource, getrlimit};

use crate::os::sys::mapping::Mapping;
use crate::vault::moving::{self, Moving};
use crate::vault::slot::{Slot, fixed, peer};
use crate::wire::record::{ListenerRecord, SCHEMA};

/// The form of all this: another one is not read.
const FORM: u64 = 5;
const MAGIC: u64 = u64::from_le_bytes(*b"stdfastv");

const PAGE: usize = 4096;
const WORD: usize = 8;

/// What a worker reads into, bytes: what comes of clients, and behind that what comes of far sides.
pub(crate) const BUFFER: usize = 256 * 1024;
const BUFFERS: usize = 2 * BUFFER;

/// Words of the first page.
const HEAD: usize = 0;
const HEAD_WORDS: usize = 11;
const LAST_ID: usize = 16;
/// The step that is under way: its connection's key and one, or 0; and how much of that, and of its far side, had been read
/// before. In a cache line of their own: they are written for every message.
const STEP: usize = 32;
const STEP_READ: usize = 33;
const STEP_FAR_READ: usize = 34;

/// A slot.
const SLOT: usize = 11;
const READ: usize = 0;
const WRITTEN: usize = 1;
const LAST_IN: usize = 2;
/// The first of its blocks, or 0.
const CHAIN: usize = 3;
/// The connection's number: no other one ever has the same. 0: there is no connection.
const ID: usize = 4;
/// What stays the same from here on, and in the last word, beside the listener, a checksum over that.
const FIXED: Range<usize> = 5..10;
const CHECK: usize = 10;

/// A far side's: how far it has come, and what the kernel calls it (`SO_COOKIE`): no other socket ever has the same. A word is
/// free, so that none lies in two cache lines.
const FAR: usize = 4;
const FAR_READ: usize = 0;
const FAR_WRITTEN: usize = 1;
const FAR_COOKIE: usize = 2;

/// A block, and what stands before its bytes: the next one and how many bytes there are; where those begin in the output.
pub(super) const BLOCK: usize = 512;
const BLOCK_HEAD: usize = 2 * WORD;
pub(super) const BLOCK_BYTES: usize = BLOCK - BLOCK_HEAD;
/// Address space of 2 TiB: more than waits anywhere, however much it may be, and for each a number of 32 bits.
const MOST_BLOCKS: usize = u32::MAX as usize;

/// What a limit of address space (`RLIMIT_AS`) leaves all vaults of a server together: that part of it, for the next one looks
/// at them while it has its own, and what waits is in both.
const PART: u64 = 8;

/// A vault for fewer connections is none.
const FEWEST: usize = 64;

/// So much of these numbers of connections, and of bytes that wait, as there is address space for in each of so many.
///
/// # Errors
/// There is hardly any.
pub(crate) fn fitting(
    (connections, waiting): (usize, usize),
    vaults: usize,
) -> io::Result<(usize, usize)> {
    let Some(limit) = getrlimit(Resource::As).current else {
        return Ok((connections, waiting));
    };
    let space = usize::try_from(limit / PART).unwrap_or(usize::MAX) / vaults.max(1);
    let rest = space.saturating_sub(BUFFERS + moving::SIZE + 8 * PAGE);
    let each = (SLOT + FAR) * WORD + BLOCK;
    let connections = connections.min(rest / 2 / each);
    if connections < FEWEST {
        let why = "the limit of address space is too low (ulimit -v)";
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
    }
    Ok((connections, waiting.min((rest - connections * each) / 2)))
}

/// How large the parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    listeners: usize,
    slots: usize,
    blocks: usize,
}

impl Size {
    fn first(self) -> usize {
        PAGE + paged(self.listeners)
    }

    fn slots_at(self) -> usize {
        self.first() + BUFFERS
    }

    fn fars_at(self) -> usize {
        self.slots_at() + paged(self.slots * SLOT * WORD)
    }

    fn moving_at(self) -> usize {
        self.fars_at() + paged(self.slots * FAR * WORD)
    }

    fn blocks_at(self) -> usize {
        self.moving_at() + paged(moving::SIZE)
    }

    fn whole(self) -> usize {
        self.blocks_at() + paged(self.blocks * BLOCK)
    }
}

fn paged(bytes: usize) -> usize {
    bytes.div_ceil(PAGE).max(1) * PAGE
}

/// The two clocks of a process at one moment: the server's own, and the one that all processes share, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clocks {
    pub(super) own: u64,
    pub(super) shared: u64,
}

/// One worker's memory that outlives it.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) file: OwnedFd,
    /// As long as it is open nobody else takes this for left behind.
    _lock: File,
    size: Size,
    first: Mapping,
    slots: Mapping,
    fars: Mapping,
    pub(super) moving: Moving,
    blocks: Mapping,
    pub(super) clocks: Clocks,
}

/// What stands in front of a block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHead {
    pub(super) next: u32,
    pub(super) length: u32,
    pub(super) at: u64,
}

impl Arena {
    /// A new one, with nobody in it.
    ///
    /// # Errors
    /// The system has no descriptors, or no address space.
    pub(super) fn new(
        listeners: &[ListenerRecord],
        (slots, blocks): (usize, usize),
        clocks: Clocks,
    ) -> io::Result<Self> {
        let listed = postcard::to_stdvec(listeners).map_err(io::Error::other)?;
        let size = Size {
            listeners: listed.len(),
            slots,
            blocks: blocks.min(MOST_BLOCKS),
        };
        // To make a longer file ends the process (SIGXFSZ, setrlimit(2)).
        let longest = getrlimit(Resource::Fsize).current;
        if longest.is_some_and(|longest| size.whole() as u64 > longest) {
            let why = "the limit of the size of a file is too low (ulimit -f)";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("standfast-vault", flags)?;
        ftruncate(&file, size.whole() as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        let mut arena = Self::over(file, size, clocks)?;
        arena.first.bytes()[PAGE..PAGE + listed.len()].copy_from_slice(&listed);
        let about = arena.about(crc32fast::hash(&listed))?;
        let words = arena.first.words();
        for (place, word) in words.iter().zip(about).skip(1) {
            place.store(word, Ordering::Relaxed);
        }
        words[HEAD].store(about[HEAD], Ordering::Release);
        Ok(arena)
    }

    fn over(file: OwnedFd, size: Size, clocks: Clocks) -> io::Result<Self> {
        let part = |from: usize, to: usize| Mapping::new(file.as_fd(), from as u64, to - from);
        Ok(Self {
            _lock: locked(&file)?,
            first: part(0, size.first())?,
            slots: part(size.slots_at(), size.fars_at())?,
            fars: part(size.fars_at(), size.moving_at())?,
            moving: Moving(Arc::new(part(size.moving_at(), size.blocks_at())?)),
            blocks: part(size.blocks_at(), size.whole())?,
            file,
            size,
            clocks,
        })
    }

    fn about(&self, listeners: u32) -> io::Result<[u64; HEAD_WORDS]> {
        let [one, other] = boot()?;
        let mut words = [
            MAGIC,
            FORM << 32 | u64::from(SCHEMA),
            one,
            other,
            self.size.listeners as u64,
            self.size.slots as u64,
            self.size.blocks as u64,
            self.clocks.own,
            self.clocks.shared,
            listeners.into(),
            0,
        ];
        words[HEAD_WORDS - 1] = sum(&words[..HEAD_WORDS - 1]);
        Ok(words)
    }

    /// What another process has left, and its listeners.
    ///
    /// # Errors
    /// In words: it is not left, or no vault that this build reads.
    pub(super) fn found(file: OwnedFd) -> Result<(Self, Vec<ListenerRecord>), String> {
        let said = |error: rustix::io::Errno| io::Error::from(error).to_string();
        let seals = fcntl_get_seals(&file).map_err(said)?;
        let length = fstat(&file).map_err(said)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || length < PAGE as i64 {
            return Err("no vault".to_owned());
        }
        let head = Mapping::new(file.as_fd(), 0, PAGE).map_err(|error| error.to_string())?;
        let mut words = [0; HEAD_WORDS];
        for (word, place) in words.iter_mut().zip(head.words()) {
            *word = place.load(Ordering::Acquire);
        }
        let [
            magic,
            form,
            one,
            other,
            listeners,
            slots,
            blocks,
            own,
            shared,
            listed,
            check,
        ] = words;
        if magic != MAGIC || check != sum(&words[..HEAD_WORDS - 1]) {
            return Err("no vault, or one that was not complete".to_owned());
        }
        if form != FORM << 32 | u64::from(SCHEMA) {
            let (form, schema) = (form >> 32, form & u64::from(u32::MAX));
            return Err(format!(
                "a vault of form {form} with records of schema {schema}, this build reads {FORM} and {SCHEMA}"
            ));
        }
        if [one, other] != boot().map_err(|error| error.to_string())? {
            return Err("a vault of another boot of this machine".to_owned());
        }
        let number = |word: u64| usize::try_from(word).ok().filter(|it| *it <= 1 << 40);
        let size = match (number(listeners), number(slots), number(blocks)) {
            (Some(listeners), Some(slots), Some(blocks)) => Size {
                listeners,
                slots,
                blocks,
            },
            _ => return Err("no vault".to_owned()),
        };
        if i64::try_from(size.whole()) != Ok(length) {
            return Err("a vault of another size".to_owned());
        }
        let mut arena =
            Self::over(file, size, Clocks { own, shared }).map_err(|error| error.to_string())?;
        let bytes = &arena.first.bytes()[PAGE..PAGE + size.listeners];
        if u64::from(crc32fast::hash(bytes)) != listed {
            return Err("a vault that was damaged".to_owned());
        }
        let listeners = postcard::from_bytes(bytes);
        Ok((arena, listeners.map_err(|error| error.to_string())?))
    }

    /// What the worker is to read into.
    pub(super) fn buffer(&self) -> io::Result<Mapping> {
        Mapping::new(self.file.as_fd(), self.size.first() as u64, BUFFERS)
    }

    /// A connection of that key, of which, and of its far side, so much has been read, is about to be served. The last store
    /// makes it count.
    #[inline]
    pub(super) fn begin_step(&self, key: usize, read: u64, far_read: u64) {
        let words = self.first.words();
        words[STEP_READ].store(read, Ordering::Release);
        words[STEP_FAR_READ].store(far_read, Ordering::Release);
        words[STEP].store(key as u64 + 1, Ordering::Release);
    }

    /// No connection is: all that was done is noted.
    #[inline]
    pub(super) fn end_step(&self) {
        self.first.words()[STEP].store(0, Ordering::Release);
    }

    /// The key of the connection that was being served, and how much of it, and of its far side, had been read before.
    pub(super) fn step(&self) -> Option<(usize, u64, u64)> {
        let words = self.first.words();
        let key = words[STEP].load(Ordering::Acquire).checked_sub(1)?;
        Some((
            usize::try_from(key).ok()?,
            words[STEP_READ].load(Ordering::Acquire),
            words[STEP_FAR_READ].load(Ordering::Acquire),
        ))
    }

    pub(super) fn set_last_id(&self, id: u64) {
        let place = &self.first.words()[LAST_ID];
        if place.load(Ordering::Relaxed) < id {
            place.store(id, Ordering::Release);
        }
    }

    pub(super) fn last_id(&self) -> u64 {
        self.first.words()[LAST_ID].load(Ordering::Acquire)
    }

    pub(super) fn blocks(&self) -> usize {
        self.size.blocks
    }

    #[inline]
    fn words_of(&self, key: usize) -> Option<&[AtomicU64; SLOT]> {
        // Past the last slot there may be a page's rest of another.
        let (slots, _) = self.slots.words().as_chunks::<SLOT>();
        slots.get(..self.size.slots)?.get(key)
    }

    /// Puts a connection into its slot; its number, last, makes it count.
    pub(super) fn put(&self, key: usize, slot: &Slot) -> bool {
        let Some(words) = self.words_of(key) else {
            return false;
        };
        words[ID].store(0, Ordering::Release);
        let fixed = fixed(slot);
        let place = |at: usize, word: u64| words[at].store(word, Ordering::Relaxed);
        for (at, word) in FIXED.zip(fixed) {
            place(at, word);
        }
        place(CHECK, check(slot.id, &fixed, slot.listener));
        place(READ, slot.read);
        place(WRITTEN, slot.written);
        place(LAST_IN, slot.last_in);
        place(CHAIN, 0);
        words[ID].store(slot.id, Ordering::Release);
        true
    }

    /// There is no connection of that key any more.
    pub(super) fn clear(&self, key: usize) {
        if let Some(words) = self.words_of(key) {
            words[ID].store(0, Ordering::Release);
        }
    }

    /// The number of the connection in that slot, if there is one; and its first block.
    #[inline]
    pub(super) fn who(&self, key: usize) -> Option<(u64, u32)> {
        let words = self.words_of(key)?;
        let id = words[ID].load(Ordering::Acquire);
        let chain = low(words[CHAIN].load(Ordering::Relaxed));
        (id != 0).then_some((id, chain))
    }

    /// So far it has come. The step of that key is not over before: until then the kernel's count is what counts.
    #[inline]
    pub(super) fn note(&self, key: usize, read: u64, written: u64, last_in: u64) {
        if let Some(words) = self.words_of(key) {
            words[READ].store(read, Ordering::Relaxed);
            words[WRITTEN].store(written, Ordering::Relaxed);
            words[LAST_IN].store(last_in, Ordering::Relaxed);
        }
    }

    /// From here on its blocks are those that begin with `first`.
    pub(super) fn set_chain(&self, key: usize, first: u32) {
        if let Some(words) = self.words_of(key) {
            words[CHAIN].store(first.into(), Ordering::Release);
        }
    }

    /// What is in that slot. `None`: nobody; an error: something that nobody has put there.
    pub(super) fn slot(&self, key: usize) -> Option<Result<Slot, u64>> {
        let words = self.words_of(key)?;
        let word = |at: usize| words[at].load(Ordering::Acquire);
        let id = word(ID);
        if id == 0 {
            return None;
        }
        let mut kept = [0; FIXED.end - FIXED.start];
        for (at, place) in FIXED.zip(&mut kept) {
            *place = word(at);
        }
        let listener = (word(CHECK) & 0xffff) as u16;
        let [opened, skew, p0, p1, p2] = kept;
        let peer = peer([p0, p1, p2]).filter(|_| word(CHECK) == check(id, &kept, listener));
        let Some(peer) = peer else {
            return Some(Err(id));
        };
        Some(Ok(Slot {
            read: word(READ),
            written: word(WRITTEN),
            last_in: word(LAST_IN),
            chain: low(word(CHAIN)),
            id,
            opened,
            skew,
            peer,
            listener,
        }))
    }

    #[inline]
    fn far_of(&self, key: usize) -> Option<&[AtomicU64; FAR]> {
        let (slots, _) = self.fars.words().as_chunks::<FAR>();
        slots.get(..self.size.slots)?.get(key)
    }

    /// Puts the far side of a connection into its slot; its cookie, last, makes it count.
    pub(super) fn put_far(&self, key: usize, cookie: u64, read: u64, written: u64) {
        if let Some(words) = self.far_of(key) {
            words[FAR_COOKIE].store(0, Ordering::Release);
            words[FAR_READ].store(read, Ordering::Relaxed);
            words[FAR_WRITTEN].store(written, Ordering::Relaxed);
            words[FAR_COOKIE].store(cookie, Ordering::Release);
        }
    }

    /// As [`note`](Self::note), of a far side.
    #[inline]
    pub(super) fn note_far(&self, key: usize, read: u64, written: u64) {
        if let Some(words) = self.far_of(key) {
            words[FAR_READ].store(read, Ordering::Relaxed);
            words[FAR_WRITTEN].store(written, Ordering::Relaxed);
        }
    }

    /// What the kernel calls a far side, and how much was read of it and written to it.
    pub(super) fn far(&self, key: usize) -> Option<(u64, u64, u64)> {
        let words = self.far_of(key)?;
        let word = |at: usize| words[at].load(Ordering::Acquire);
        Some((word(FAR_COOKIE), word(FAR_READ), word(FAR_WRITTEN)))
    }

    fn block(&self, number: u32) -> Option<Range<usize>> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        (at < self.size.blocks).then(|| at * BLOCK..(at + 1) * BLOCK)
    }

    pub(super) fn block_head(&self, number: u32) -> Option<BlockHead> {
        let at = self.block(number)?.start / WORD;
        let words = self.blocks.words().get(at..at + 2)?;
        let first = words[0].load(Ordering::Acquire);
        Some(BlockHead {
            next: low(first),
            length: low(first >> 32),
            at: words[1].load(Ordering::Acquire),
        })
    }

    /// What stands before a block's bytes; that makes those count which are there by now.
    pub(super) fn set_block_head(&self, number: u32, head: BlockHead) {
        let Some(place) = self.block(number) else {
            return;
        };
        let at = place.start / WORD;
        let words = self.blocks.words();
        words[at + 1].store(head.at, Ordering::Release);
        let first = u64::from(head.length) << 32 | u64::from(head.next);
        words[at].store(first, Ordering::Release);
    }

    /// The bytes of a block.
    pub(super) fn block_bytes(&mut self, number: u32) -> Option<&mut [u8]> {
        let place = self.block(number)?;
        self.blocks
            .bytes()
            .get_mut(place.start + BLOCK_HEAD..place.end)
    }

    /// Blocks below `end` are used no more: their memory goes back.
    pub(super) fn give_back(&self, end: usize) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (from, length) = (self.size.blocks_at() as u64, paged(end * BLOCK) as u64);
        // It stays used, then, until there is need of it.
        let _ = fallocate(&self.file, flags, from, length);
    }
}

/// A lock that no copy of the descriptor shares: on another opening of the same file.
fn locked(file: &OwnedFd) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let lock = File::options().read(true).write(true).open(path)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

/// This boot of the machine: the shared clock and the cookies are its own.
///
/// # Errors
/// No descriptor to read it with.
fn boot() -> io::Result<[u64; 2]> {
    let text = match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        // A service may be shown processes alone (ProcSubset= of systemd).
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            String::new()
        }
        text => text?,
    };
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |range: Range<usize>| {
        let digits = digits.get(range).unwrap_or_default();
        u64::from_str_radix(digits, 16).unwrap_or_default()
    };
    Ok([half(0..16), half(16..32)])
}

/// The lower half of a word.
#[inline]
fn low(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn sum(words: &[u64]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for word in words {
        hasher.update(&word.to_le_bytes());
    }
    hasher.finalize().into()
}

fn check(id: u64, fixed: &[u64; 5], listener: u16) -> u64 {
    let [a, b, c, d, e] = *fixed;
    let sum = sum(&[id, a, b, c, d, e, listener.into()]);
    sum << 32 | u64::from(listener)
}
