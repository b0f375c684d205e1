//! What a process leaves behind as it was in the very moment it dies: memory that is a file's. And a look at what waits in a
//! socket that leaves it there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A part of a file as memory of this process, which every store goes to at once (`MAP_SHARED`, mmap(2)).
#[derive(Debug)]
pub(crate) struct Mapping {
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: it is memory and nothing else, at one place for all threads; only its owner reaches it.
unsafe impl Send for Mapping {}
// SAFETY: who borrows it has words alone, each of which is written and read at once; for bytes it is borrowed alone.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `length` bytes of `file` from `offset` on, which is a multiple of a page. The file has them, and is sealed against
    /// becoming shorter; no other process writes to them as long as this lives.
    ///
    /// # Errors
    /// What mmap(2) says: `ENOMEM` where there is no address space.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the system's choice: no memory that anybody knows of is touched.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { at, length })
    }

    /// All of it as words, which are written one by one, in the order in which the program says so.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let count = self.length / size_of::<AtomicU64>();
        // SAFETY: the mapping has so many bytes, readable and writable, as long as `self` lives; a page's beginning is aligned
        // for words, and any bytes are a word. Nobody has them as bytes meanwhile: `bytes` borrows `self` alone.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), count) }
    }

    /// All of it as bytes.
    #[inline]
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has so many bytes, readable and writable, as long as `self` lives, and any bytes are bytes. No
        // other process writes to them, and in this one `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nobody borrows it any more. Memory that cannot be unmapped stays mapped.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// A word of some memory that stands until this is dropped, on whatever thread; it is 0 then.
#[derive(Debug)]
pub(crate) struct Standing {
    memory: Arc<Mapping>,
    at: usize,
}

impl Standing {
    pub(crate) fn new(memory: &Arc<Mapping>, at: usize) -> Self {
        Self {
            memory: Arc::clone(memory),
            at,
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        if let Some(word) = self.memory.words().get(self.at) {
            word.store(0, Ordering::Release);
        }
    }
}

/// What `recvmsg(2)` with `MSG_PEEK` shows of a Unix socket begins `offset` bytes behind what is read next, and moves on with
/// each look (`SO_PEEK_OFF`, unix(7)).
pub(crate) fn peek_from(socket: BorrowedFd<'_>, offset: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&offset)).unwrap_or(0);
    // SAFETY: the option is an int, and `offset` is one that outlives the call; `socket` is borrowed, so open.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            length,
        )
    };
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file_however_it_is_looked_at() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 8192).unwrap();
        let mut one = Mapping::new(file.as_fd(), 4096, 4096).unwrap();
        one.words()[1].store(7, Ordering::Release);
        one.bytes()[4095] = 9;
        drop(one);
        let mut other = Mapping::new(file.as_fd(), 0, 8192).unwrap();
        assert_eq!(other.words().len(), 1024);
        assert_eq!(other.words()[513].load(Ordering::Acquire), 7);
        assert_eq!(other.bytes()[8191], 9);
        assert!(Mapping::new(file.as_fd(), 1, 4096).is_err(), "no page");
    }

    #[test]
    fn a_look_leaves_what_it_shows_and_moves_on() {
        use rustix::net::{
            AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send,
        };
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        for message in ["one", "three"] {
            send(&near, message.as_bytes(), SendFlags::empty()).unwrap();
        }
        for _ in 0..2 {
            peek_from(far.as_fd(), 0).unwrap();
            for length in [3, 5] {
                let mut into = [0; 16];
                let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                assert_eq!(recv(&far, &mut into[..], flags).unwrap().1, length);
            }
        }
    }
}
