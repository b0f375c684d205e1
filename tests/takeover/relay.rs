//! Somebody between the two processes, who changes what they say.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, accept_with, recvmsg, sendmsg,
    shutdown,
};

use crate::control::strangers::seqpacket;
use crate::support::pass;

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Old,
    New,
}

/// What is passed on for a message: as many as there are, with its descriptors; `None` hangs up.
pub(crate) type Passed = Option<Vec<Vec<u8>>>;

/// Given a message of a takeover: whose it is, the how manieth of that side, and its bytes.
type Act = dyn Fn(Side, usize, Vec<u8>) -> Passed + Send + Sync;

/// The place of a message's kind: the first byte behind the envelope.
pub(crate) const KIND: usize = 16;

/// The kind of the messages with which connections are sent, with their descriptors.
pub(crate) const CONNECTIONS: u8 = 1;

/// The kind of the message with which the new process says that it has taken one in.
pub(crate) const TAKEN: u8 = 4;

/// The kind of the messages that say how connections stand.
pub(crate) const UPDATES: u8 = 2;

/// The kind of the message with which the new process says that it is prepared.
pub(crate) const PREPARED: u8 = 6;

/// The kind of the message with which the old process says that it serves again for a moment, and the new one that it has
/// heard so.
pub(crate) const THAW: u8 = 14;

/// The kind of the message with which either says that it gives up, which the other may not live to hear.
pub(crate) const ABORT: u8 = 10;

/// A control socket that passes everything on to another one.
pub(crate) struct Relay {
    over: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn start(
        path: &Path,
        real: &Path,
        act: impl Fn(Side, usize, Vec<u8>) -> Passed + Send + Sync + 'static,
    ) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = seqpacket::listen(path);
        let over = Arc::new(AtomicBool::new(false));
        let (ended, real) = (Arc::clone(&over), real.to_owned());
        let act: Arc<Act> = Arc::new(act);
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match accept_with(&listener, SocketFlags::CLOEXEC) {
                    Ok(new) => connect(new, &real, &act),
                    Err(_) => pass(Duration::from_millis(1)),
                }
            }
        });
        Self { over }
    }
}

/// Has the new process's word that it is prepared come so many times only once the old one serves again.
pub(crate) fn too_late(times: usize) -> impl Fn(Side, usize, Vec<u8>) -> Passed + Send + Sync {
    let late = AtomicUsize::new(times);
    let held = Mutex::new(Vec::new());
    move |side, _, message| {
        let mut held = held.lock().unwrap();
        let kind = (side, message.get(KIND).copied());
        let less = |left: usize| left.checked_sub(1);
        if kind == (Side::New, Some(PREPARED))
            && late
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_ok()
        {
            held.push(message);
            return Some(vec![]);
        }
        let mut messages = Vec::new();
        if kind == (Side::New, Some(THAW)) {
            messages.append(&mut held);
        }
        messages.push(message);
        Some(messages)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn connect(new: OwnedFd, real: &Path, act: &Arc<Act>) {
    let old = seqpacket::connect(real).unwrap();
    rustix::io::ioctl_fionbio(&old, false).unwrap();
    let (new, old) = (Arc::new(new), Arc::new(old));
    let begun = Arc::new(AtomicBool::new(false));
    for (side, from, to) in [(Side::New, &new, &old), (Side::Old, &old, &new)] {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        let (begun, act) = (Arc::clone(&begun), Arc::clone(act));
        thread::spawn(move || {
            pump(side, from.as_fd(), to.as_fd(), &begun, &*act);
            for end in [&from, &to] {
                let _ = shutdown(end, Shutdown::Both);
            }
        });
    }
}

fn pump(side: Side, from: BorrowedFd<'_>, to: BorrowedFd<'_>, begun: &AtomicBool, act: &Act) {
    let count = AtomicUsize::new(0);
    let mut bytes = vec![0; 256 * 1024];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = match recvmsg(from, &mut buffer, &mut control, flags) {
            Ok(received) if received.bytes > 0 => received.bytes,
            Ok(_) | Err(_) => return,
        };
        let mut passed: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                passed.extend(descriptors);
            }
        }
        let message = bytes[..length].to_vec();
        if side == Side::New && message.windows(9).any(|part| part == b"take-over") {
            begun.store(true, Ordering::Relaxed);
        }
        let of_takeover = begun.load(Ordering::Relaxed) && message.starts_with(b"stdf");
        let messages = if of_takeover {
            act(side, count.fetch_add(1, Ordering::Relaxed), message)
        } else {
            Some(vec![message])
        };
        let Some(messages) = messages else { return };
        let descriptors: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
        for message in messages {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            let _ = sendmsg(
                to,
                &[IoSlice::new(&message)],
                &mut control,
                SendFlags::NOSIGNAL,
            );
        }
    }
}
