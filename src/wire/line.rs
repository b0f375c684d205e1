//! One end of the control socket: messages with bounds, descriptors beside them, and how long to wait.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketType, connect, recvmsg,
    sendmsg, shutdown,
};
use rustix::process::geteuid;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::os::socket_file;
use crate::os::sys;
use crate::time::allowance::Allowance;
use crate::wire::record::{DESCRIPTORS, LONGEST, Message};

/// Bytes that may be under way in a takeover.
const ROOM: usize = 4 * 1024 * 1024;

/// How often it is looked whether who waits for a thread that hangs has given up.
const GLANCE: Duration = Duration::from_secs(1);

/// One end of the conversation.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    socket: Arc<OwnedFd>,
}

impl Line {
    /// Both directions give up after `patience`.
    pub(crate) fn new(socket: Arc<OwnedFd>, patience: Duration) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        Ok(Self { socket })
    }

    /// Connects to the server at `path`, and waits for that, as for each word it says then, at most until `until`.
    pub(crate) fn connect(path: &Path, until: Instant) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = Arc::new(socket_file::socket(SocketType::SEQPACKET)?);
        loop {
            // Zero would be for ever.
            let left = until.saturating_duration_since(now());
            let line = Self::new(Arc::clone(&socket), left.max(Duration::from_millis(1)))?;
            // Its queue may be full; a timeout for sending is one for connecting, too (unix(7)).
            match connect(&socket, &address) {
                Ok(()) => return Ok(line),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let why = "it takes nobody in: it is stopped, or too busy";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the other end has hung up.
    pub(crate) fn is_hung_up(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let at_once = Timespec::default();
        Ok(retry_on_intr(|| poll(&mut polled, Some(&at_once)))? > 0)
    }

    /// Answers, from any thread, whether the other end still waits: neither end has hung up.
    pub(crate) fn waits(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let socket = Arc::downgrade(&self.socket);
        move || {
            let socket = socket.upgrade();
            socket.is_some_and(|socket| Self { socket }.is_hung_up().is_ok_and(|it| !it))
        }
    }

    /// The next of what threads of this process say to the other end, `None` at its end. It is waited for as long as the
    /// other end waits.
    ///
    /// # Errors
    /// The other end has hung up.
    pub(crate) fn hear<T>(&self, threads: &Receiver<T>) -> io::Result<Option<T>> {
        loop {
            match threads.recv_timeout(GLANCE) {
                Ok(said) => return Ok(Some(said)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.is_hung_up()? => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Whether the other end is a process of this user.
    pub(crate) fn is_of_this_user(&self) -> io::Result<bool> {
        let (user, _) = sys::peer(self.socket.as_fd())?;
        Ok(user == geteuid().as_raw())
    }

    /// Waits until the other end has hung up; what it says meanwhile is not heard.
    pub(crate) fn until_hung_up(&self) {
        const LONG: Duration = Duration::from_secs(3600);
        loop {
            match self.take(now() + LONG) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::InvalidData | io::ErrorKind::TimedOut
                    ) =>
                {
                    return;
                }
                _ => {}
            }
        }
    }

    /// The process at the other end, where it can be named here.
    pub(crate) fn peer(&self) -> Option<u32> {
        let (_, process) = sys::peer(self.socket.as_fd()).ok()?;
        process.map(NonZeroU32::get)
    }

    pub(crate) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        // With a timeout on the socket even SIGCONT interrupts (signal(7)).
        retry_on_intr(|| {
            sendmsg(
                self.socket.as_fd(),
                &[IoSlice::new(&text)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            )
        })?;
        Ok(())
    }

    /// # Errors
    /// `UnexpectedEof` when the other end has hung up; `InvalidData` for what is no message.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<T> {
        let mut text = Vec::new();
        // Its length first: who answers many is to hold no more than what they say.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        let peeked = retry_on_intr(|| rustix::net::recv(&self.socket, &mut [0; 0], peek));
        let received = peeked.and_then(|(_, length)| {
            text.resize(length.min(LONGEST), 0);
            retry_on_intr(|| {
                recvmsg(
                    self.socket.as_fd(),
                    &mut [IoSliceMut::new(&mut text)],
                    &mut RecvAncillaryBuffer::default(),
                    RecvFlags::CMSG_CLOEXEC,
                )
            })
        });
        let received = match received {
            Err(Errno::AGAIN) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it did not answer in time",
                ));
            }
            received => received?,
        };
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message too long, or with descriptors",
            ));
        }
        match received.bytes {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it hung up without a word",
            )),
            length => Ok(serde_json::from_slice(&text[..length])?),
        }
    }

    /// Has the other end answer `question` to whoever waits at the other end of `client`, or do what nobody waits for.
    pub(crate) fn pass_on(
        &self,
        question: &impl Serialize,
        client: Option<&Self>,
        until: Instant,
    ) -> io::Result<()> {
        let client: Vec<_> = client.iter().map(|client| client.socket.as_fd()).collect();
        self.pass(&serde_json::to_vec(question)?, &client, Some(until))
    }

    /// Both ends hear nothing more, and nothing more is said.
    pub(crate) fn hang_up(&self) {
        // It may have been hung up already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Room for what is under way during a takeover.
    pub(crate) fn widen(&self) {
        // Less room only makes it slower.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&self.socket, ROOM);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&self.socket, ROOM);
    }

    /// Sends a message of a takeover, waiting for room until `until`, or not at all.
    pub(crate) fn pass(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(
                self.socket.as_fd(),
                &[IoSlice::new(message)],
                &mut control,
                flags,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // In flight descriptors count against the sender's limit: they come free as they are taken.
                Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS) => match until {
                    None => return Err(io::ErrorKind::WouldBlock.into()),
                    Some(until) => self.wait(PollFlags::OUT, until)?,
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until something has come that was not taken yet, or the other end has hung up.
    pub(crate) fn until_spoken_to(&self, until: Instant) -> io::Result<()> {
        self.wait(PollFlags::IN, until)
    }

    /// Takes the next message of a takeover, and its descriptors. What the other end said before it hung up is heard,
    /// whether it heard everything or not.
    ///
    /// # Errors
    /// `TimedOut` at `until`, `UnexpectedEof` when the other end is gone, `InvalidData` where a message or
    /// descriptors did not arrive whole.
    pub(crate) fn take(&self, until: Instant) -> io::Result<(Message, Vec<OwnedFd>)> {
        let mut bytes = Vec::new();
        let descriptors = self.take_bytes(&mut bytes, until)?;
        Ok((decode(&bytes)?, descriptors))
    }

    /// As [`take`](Self::take), the message as bytes, which [`decode`] makes one of.
    pub(crate) fn take_bytes(
        &self,
        bytes: &mut Vec<u8>,
        until: Instant,
    ) -> io::Result<Vec<OwnedFd>> {
        bytes.resize(LONGEST, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(
                self.socket.as_fd(),
                &mut [IoSliceMut::new(bytes)],
                &mut control,
                flags,
            );
            let received = match received {
                Ok(received) => received,
                Err(Errno::AGAIN) => {
                    self.wait(PollFlags::IN, until)?;
                    continue;
                }
                // It left something unread: told once, before the messages it sent and the end
                // (`unix_release_sock` in the kernel's net/unix/af_unix.c).
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Err(error) => return Err(error.into()),
            };
            // What has come is owned from here on, and closed when it is not used.
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    descriptors.extend(passed);
                }
            }
            if received
                .flags
                .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
            {
                return Err(invalid(
                    "descriptors were lost on the way: the limit is too low".to_owned(),
                ));
            }
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.truncate(received.bytes);
            return Ok(descriptors);
        }
    }

    fn wait(&self, what: PollFlags, until: Instant) -> io::Result<()> {
        let mut left = Allowance::new(until.saturating_duration_since(now()));
        while let Some(piece) = left.piece() {
            let piece = Timespec::try_from(piece).map_err(|_| io::ErrorKind::InvalidInput)?;
            match poll(&mut [PollFd::new(&self.socket, what)], Some(&piece)) {
                Ok(0) => {}
                Ok(_) | Err(Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// The message of a takeover that these bytes are.
pub(crate) fn decode(bytes: &[u8]) -> io::Result<Message> {
    Message::decode(bytes).map_err(invalid)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The clock of the conversation, which no worker's turn is concerned with.
#[expect(
    clippy::disallowed_methods,
    reason = "a conversation between processes has its own deadlines"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds of a clock that all processes of this host share: `CLOCK_MONOTONIC`.
pub(crate) fn shared_clock() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}
