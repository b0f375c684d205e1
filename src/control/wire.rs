//! The conversation on the control socket: one message a question, JSON, and its answers.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::inspect::{ConnectionInfo, Status};

/// The longest message either side sends; a longer one is refused unread.
const LONGEST: usize = 128 * 1024;

/// What is asked of a server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Question {
    Status,
    List,
    Kill { id: u64 },
    Drain,
    Stop,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Status(Status),
    /// Some of the connections; more follow until `Done`.
    Connections(Vec<ConnectionInfo>),
    /// It is done, or the last of a series.
    Done,
    /// It cannot be done; why.
    Refused(String),
}

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct Line {
    socket: OwnedFd,
}

impl Line {
    /// Both directions give up after `patience`.
    pub(crate) fn new(socket: OwnedFd, patience: Duration) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        Ok(Self { socket })
    }

    /// Whether the other end is a process of this user, or of root.
    pub(crate) fn is_of_this_user(&self) -> io::Result<bool> {
        let uid = socket_peercred(&self.socket)?.uid;
        Ok(uid == geteuid() || uid.is_root())
    }

    pub(crate) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        sendmsg(
            self.socket.as_fd(),
            &[IoSlice::new(&text)],
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// # Errors
    /// `UnexpectedEof` when the other end has hung up; `InvalidData` for what is no message.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<T> {
        let mut text = vec![0; LONGEST];
        let received = recvmsg(
            self.socket.as_fd(),
            &mut [IoSliceMut::new(&mut text)],
            &mut RecvAncillaryBuffer::default(),
            RecvFlags::CMSG_CLOEXEC,
        )?;
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
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(serde_json::from_slice(&text[..length])?),
        }
    }
}
