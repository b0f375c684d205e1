//! A listening socket that outlives its server: what a process that stays has of it, and gives to the next server.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use socket2::SockRef;

use crate::os::socket_file::{Place, SocketFile};

/// A listening socket that a [keeper](crate::control::Keeper) has a copy of. To the keeper it is descriptors and a name that
/// it need not understand.
#[derive(Debug)]
pub struct Kept {
    pub(crate) socket: OwnedFd,
    /// Of a Unix socket the lock of its path, and what was bound there.
    path: Option<(OwnedFd, Place)>,
}

impl Kept {
    pub(crate) fn new(socket: OwnedFd, file: Option<&SocketFile>) -> io::Result<Self> {
        let path = file.and_then(SocketFile::lend);
        let path = path.map(|(lock, place)| io::Result::Ok((lock.try_clone()?.into(), place)));
        Ok(Self {
            socket,
            path: path.transpose()?,
        })
    }

    /// What [`descriptors`](Self::descriptors) and [`name`](Self::name) said.
    ///
    /// # Errors
    /// It was another form of this, or the socket does not listen.
    pub fn from_parts(descriptors: Vec<OwnedFd>, name: &str) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no kept socket");
        let mut descriptors = descriptors.into_iter();
        let socket = descriptors.next().ok_or_else(wrong)?;
        if !SockRef::from(&socket).is_listener()? {
            return Err(wrong());
        }
        let path = match (descriptors.next(), name) {
            (None, NO_PATH) => None,
            (Some(lock), place) => Some((lock, place.parse().map_err(|()| wrong())?)),
            _ => return Err(wrong()),
        };
        Ok(Self { socket, path })
    }

    /// The socket, and what belongs to it.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let lock = self.path.iter().map(|(lock, _)| lock.as_fd());
        std::iter::once(self.socket.as_fd()).chain(lock)
    }

    /// What else there is to know: letters, digits and dashes.
    #[must_use]
    pub fn name(&self) -> String {
        let place = self.path.as_ref();
        place.map_or_else(|| NO_PATH.to_owned(), |(_, place)| place.to_string())
    }

    /// The path is that of `file` from here on.
    pub(crate) fn give_path(&self, file: &Arc<SocketFile>) -> io::Result<()> {
        if let Some((lock, place)) = &self.path {
            file.resume(lock.try_clone()?, *place);
        }
        Ok(())
    }
}

const NO_PATH: &str = "tcp";

/// Something else that a server has given to a keeper for the next one: a part of its vault.
#[derive(Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "descriptors with a name, and nothing else to the keeper"
)]
pub struct Stored {
    /// What it is called: letters, digits and dashes.
    pub name: String,
    /// What it is.
    pub descriptors: Vec<OwnedFd>,
}
