//! What a keeper and one of its servers say to one another, and what goes along.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::fstat;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::logger;

/// No message is longer.
const MESSAGE: usize = 4096;

/// The keeper's end of a socket that is between the two alone.
pub(super) struct Line(pub(super) OwnedFd);

impl Line {
    /// With the server's end.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (domain, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(domain, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    /// The next message, if there is one, and what came along; `None`: there was one, and it was the last.
    pub(super) fn receive(&self) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
        let mut text = [0; MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut into = [IoSliceMut::new(&mut text)];
        let got = recvmsg(&self.0, &mut into, &mut control, flags)?;
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let mut descriptors: Vec<_> = descriptors.flatten().collect();
        if got.flags.contains(ReturnFlags::CTRUNC) {
            // Half of something is of no use.
            descriptors.clear();
            logger::fail_here(
                "the keeper has no descriptor left: it cannot keep what a server gave it",
            );
        }
        let text = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
        Ok((got.bytes > 0).then_some((text, descriptors)))
    }

    /// Says it to a server that may have gone.
    pub(super) fn say(&self, text: &str) {
        let text = [IoSlice::new(text.as_bytes())];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = sendmsg(&self.0, &text, &mut SendAncillaryBuffer::default(), flags);
    }
}

/// What a server has given to be kept.
pub(super) struct Held {
    pub(super) name: String,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Held {
    /// If it is something, by a name that can be told.
    pub(super) fn by(name: &str, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let is_whole = is_name(name) && !descriptors.is_empty();
        let name = name.to_owned();
        is_whole.then_some(Self { name, descriptors })
    }

    /// Whether that is the same socket or file.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let place = |held: &Self| {
            let stat = fstat(held.descriptors.first()?).ok()?;
            Some((stat.st_dev, stat.st_ino))
        };
        place(self).is_some_and(|it| place(other) == Some(it))
    }
}

/// Whether the next server can be told of something by this name: one that somebody else has got hold of shall tell the next
/// one, which may begin as root, nothing else.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !name.is_empty() && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_nothing_but_itself() {
        for name in ["tcp", "remains", "2049-4711"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "tcp:3", "tcp 7:8", "a\nb", "ä"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
