//! The descriptors of a worker's connections, in sockets that nobody reads: the kernel keeps what waits there, and with it the
//! connections, when the process dies.
//!
//! Each message has some of them, with the keys of their slots; those that stand beside a connection's own, as its far side's,
//! have its key, too, and say which they are. None is ever taken away: a look at what waits gives copies and
//! leaves it there, so whoever recovers may die, too. What has ended meanwhile stays until most of it is such; then those that
//! live are sent anew, a few a turn, and the former sockets are given up.

use std::io::{self, IoSlice, IoSliceMut};
use std::iter::Peekable;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use slab::Slab;

use crate::connection::Connection;
use crate::handle::lifecycle::Lifecycle;
use crate::os::sys::mapping::peek_from;
use crate::vault::arena::Arena;
use crate::wire::record::DESCRIPTORS;

/// How a part of the vault is called, to a keeper.
pub(super) const NAME: &str = "vault";

/// So many descriptors go in a message.
pub(super) const BATCH: usize = DESCRIPTORS;

/// A checksum, and a word for each descriptor.
const CHECK: usize = 4;
const WORD: usize = 8;
const LONGEST: usize = CHECK + BATCH * WORD;

/// The place of a connection's own descriptor.
pub(super) const OWN: u8 = 0;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of its connection's slot.
    pub(super) key: u32,
    /// [`OWN`], or which of those that it is that travel along, from 1 on.
    pub(super) place: u8,
    /// The last 24 bits of the connection's number: far fewer have had that slot by the time the last one is gone from here.
    pub(super) number: u32,
}

impl Entry {
    pub(super) fn new(key: u32, place: u8, id: u64) -> Self {
        let [a, b, c, ..] = id.to_le_bytes();
        Self {
            key,
            place,
            number: u32::from_le_bytes([a, b, c, 0]),
        }
    }

    fn bytes(self) -> [u8; WORD] {
        let [a, b, c, d] = self.key.to_le_bytes();
        let [e, f, g, _] = self.number.to_le_bytes();
        [a, b, c, d, e, f, g, self.place]
    }

    fn of(bytes: [u8; WORD]) -> Self {
        let [a, b, c, d, e, f, g, place] = bytes;
        Self {
            key: u32::from_le_bytes([a, b, c, d]),
            place,
            number: u32::from_le_bytes([e, f, g, 0]),
        }
    }
}

/// A socket pair with what waits in it.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) near: OwnedFd,
    pub(super) far: OwnedFd,
    /// Which of the worker's it is.
    pub(super) number: u64,
    /// Descriptors that wait in it.
    pub(super) entries: usize,
}

impl Pair {
    /// # Errors
    /// No descriptors.
    pub(super) fn new(number: u64) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // As much as the system allows, which is less.
        let most = i32::MAX as usize / 2;
        if rustix::net::sockopt::set_socket_send_buffer_size_force(&near, most).is_err() {
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&near, most);
        }
        Ok(Self {
            near,
            far,
            number,
            entries: 0,
        })
    }

    /// Puts these there, each with what it is.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: it is full. Or there are too many of the user's under way (`ETOOMANYREFS`).
    pub(super) fn put(&mut self, entries: &[Entry], sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        // In one piece, which takes the system less.
        let mut text = Vec::with_capacity(CHECK + entries.len() * WORD);
        text.extend_from_slice(&[0; CHECK]);
        entries
            .iter()
            .for_each(|entry| text.extend_from_slice(&entry.bytes()));
        let (check, listed) = text.split_at_mut(CHECK);
        check.copy_from_slice(&crc32fast::hash(listed).to_le_bytes());
        let text = [IoSlice::new(&text)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| sendmsg(&self.near, &text, &mut control, flags))?;
        self.entries += entries.len();
        Ok(())
    }
}

/// Where descriptors wait that came alone, until enough of them are there to be sent anew, all together.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) pair: Pair,
    /// Of the connections that they are of.
    pub(super) keys: Vec<usize>,
    pub(super) messages: usize,
}

impl Alone {
    pub(super) const fn new(pair: Pair) -> Self {
        Self {
            pair,
            keys: Vec::new(),
            messages: 0,
        }
    }
}

/// How a pair of that worker is called, to a keeper.
pub(super) fn name(worker: usize, number: u64) -> String {
    format!("{NAME}-{worker}-{number}")
}

/// A new pair, which the keeper has before anything waits there.
///
/// # Errors
/// No descriptors, or no keeper.
pub(super) fn stored(keeper: &Arc<dyn Lifecycle>, worker: usize, number: u64) -> io::Result<Pair> {
    let pair = Pair::new(number)?;
    let ends = [pair.near.as_fd(), pair.far.as_fd()];
    keeper.store(&name(worker, number), &ends)?;
    Ok(pair)
}

/// Descriptors that go together.
#[derive(Default)]
pub(super) struct Batch<'a> {
    pub(super) entries: Vec<Entry>,
    sockets: Vec<BorrowedFd<'a>>,
}

impl<'a> Batch<'a> {
    /// Adds those of a connection from the one on that is said, if it is in its slot. Answers whether there was room.
    pub(super) fn add(
        &mut self,
        arena: &Arena,
        connections: &'a Slab<Connection>,
        (key, first): (usize, u8),
    ) -> bool {
        let connection = connections.get(key).filter(|_| arena.who(key).is_some());
        let (Some(connection), Ok(key)) = (connection, u32::try_from(key)) else {
            return true;
        };
        let io = &connection.io;
        let sockets = std::iter::once(io.descriptor()).chain(io.travels_along());
        let before = self.entries.len();
        let places = (0..=u8::MAX).zip(sockets);
        for (place, socket) in places.skip(first.into()).take(BATCH) {
            if self.entries.len() == BATCH {
                self.entries.truncate(before);
                self.sockets.truncate(before);
                return false;
            }
            self.entries.push(Entry::new(key, place, io.id()));
            self.sockets.push(socket);
        }
        true
    }

    /// Puts them into a pair. Answers whether that was full.
    pub(super) fn put(&self, pair: &mut Pair) -> io::Result<bool> {
        if self.entries.is_empty() {
            return Ok(false);
        }
        match pair.put(&self.entries, &self.sockets) {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && pair.entries > 0 => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// How many descriptors wait behind `far`, or a few more: it is by the bytes that wait beside them, which the kernel adds up
/// (`unix_inq_len` in `net/unix/af_unix.c`).
pub(super) fn waiting(far: &OwnedFd) -> usize {
    let bytes = rustix::io::ioctl_fionread(far).unwrap_or(0);
    usize::try_from(bytes).unwrap_or(usize::MAX) / WORD
}

/// A descriptor that was found, the key of its connection, and its place there.
pub(super) type Socket = (u32, u8, OwnedFd);

/// Hands copies of all that waits behind `far` to `each`, with what they are, and leaves it there.
///
/// # Errors
/// No descriptors for the copies; or something waits there that none of us has put there.
pub(super) fn look(far: &OwnedFd, mut each: impl FnMut(Entry, OwnedFd)) -> io::Result<()> {
    peek_from(far.as_fd(), 0)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a damaged queue");
    loop {
        let mut text = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(far, &mut [IoSliceMut::new(&mut text)], &mut control, flags) {
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => continue,
            got => got?,
        };
        let sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let sockets: Vec<OwnedFd> = sockets.flatten().collect();
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("no descriptors for the connections"));
        }
        let text = text.get(..got.bytes).ok_or_else(damaged)?;
        let (check, listed) = text.split_first_chunk::<CHECK>().ok_or_else(damaged)?;
        let (entries, rest) = listed.as_chunks::<WORD>();
        let is_whole = u32::from_le_bytes(*check) == crc32fast::hash(listed);
        if !is_whole || !rest.is_empty() || entries.len() != sockets.len() {
            return Err(damaged());
        }
        for (entry, socket) in entries.iter().zip(sockets) {
            each(Entry::of(*entry), socket);
        }
    }
}

/// The next connection's, of descriptors in order: its key, its own, and those beside that.
pub(super) fn next(
    sockets: &mut Peekable<impl Iterator<Item = Socket>>,
) -> Option<(u32, Option<OwnedFd>, Vec<OwnedFd>)> {
    let &(key, ..) = sockets.peek()?;
    let (mut own, mut along, mut last) = (None, Vec::new(), OWN);
    while let Some((_, place, socket)) = sockets.next_if(|(of, ..)| *of == key) {
        if place == OWN {
            own = Some(socket);
        } else {
            if place == last {
                along.pop();
            }
            along.push(socket);
        }
        last = place;
    }
    Some((key, own, along))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_look_gives_copies_time_and_again() {
        let mut pair = Pair::new(0).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let entries = [(7, 0, 1), (8, 0, 0x0102_0304), (8, 1, 0x0102_0304)];
        let entries = entries.map(|(key, place, id)| Entry::new(key, place, id));
        pair.put(&entries[..1], &[ours.as_fd()]).unwrap();
        pair.put(&entries[1..], &[ours.as_fd(), ours.as_fd()])
            .unwrap();
        drop(ours);
        for _ in 0..3 {
            assert!((3..=4).contains(&waiting(&pair.far)), "there are 3");
            let mut found = Vec::new();
            look(&pair.far, |entry, socket| found.push((entry, socket))).unwrap();
            let seen: Vec<Entry> = found.iter().map(|(entry, _)| *entry).collect();
            assert_eq!(seen, entries);
            assert_eq!(seen[2].number, 0x02_03_04);
            for (_, socket) in found {
                UnixStream::from(socket).write_all(b"x").unwrap();
            }
        }
        drop(pair);
        let mut all = String::new();
        theirs.read_to_string(&mut all).unwrap();
        assert_eq!(all, "xxxxxxxxx", "and then nobody has it any more");
    }

    #[test]
    fn a_full_one_says_so_and_what_is_damaged_is_not_believed() {
        let mut pair = Pair::new(0).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&pair.near, 4096);
        let full = loop {
            if let Err(error) = pair.put(&[Entry::new(1, 0, 1)], &[ours.as_fd()]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let pair = Pair::new(0).unwrap();
        rustix::net::send(&pair.near, b"what is this", SendFlags::empty()).unwrap();
        assert!(look(&pair.far, |_, _| {}).is_err());
    }
}
