//! The asking side of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SocketAddrUnix, SocketType, connect};

use crate::control::line::Line;
use crate::control::path;
use crate::control::question::{Answer, Hello, Question};
use crate::inspect::{ConnectionInfo, Status, Takeover};
use crate::socket_file;

/// How long a client waits for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A running server, asked from another process.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The server whose control socket is at `path`.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The control sockets this user's servers have, of those that listen first on `port`, or of all.
    #[must_use]
    pub fn candidates(port: Option<u16>) -> Vec<PathBuf> {
        path::existing(port)
    }

    /// Where it is asked.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ask(&self, question: &Question) -> io::Result<Line> {
        let socket = socket_file::socket(SocketType::SEQPACKET)?;
        connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        let line = Line::new(Arc::new(socket), ANSWER)?;
        if !line.is_of_this_user()? {
            return Err(io::Error::other(format!(
                "the server at {} is another user's: ask as that user",
                self.path.display()
            )));
        }
        line.send(question)?;
        Ok(line)
    }

    /// Asks for the server itself.
    pub(crate) fn take_over(&self, hello: Hello) -> io::Result<Line> {
        let line = self.ask(&Question::TakeOver(hello))?;
        match line.receive()? {
            Answer::Giving => Ok(line),
            answer => Err(refused(answer)),
        }
    }

    /// Asks for something that is done or refused.
    fn order(&self, question: &Question) -> io::Result<()> {
        match self.ask(question)?.receive()? {
            Answer::Done => Ok(()),
            answer => Err(refused(answer)),
        }
    }

    /// The server, its listeners and its counters.
    ///
    /// # Errors
    /// No server answers there, or it refuses.
    pub fn status(&self) -> io::Result<Status> {
        match self.ask(&Question::Status)?.receive()? {
            Answer::Status(status) => Ok(*status),
            answer => Err(refused(answer)),
        }
    }

    /// Every open connection, in the order of their numbers.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn connections(&self) -> io::Result<Vec<ConnectionInfo>> {
        let line = self.ask(&Question::List)?;
        let mut all = Vec::new();
        loop {
            match line.receive()? {
                Answer::Connections(batch) => all.extend(batch),
                Answer::Done => break,
                answer => return Err(refused(answer)),
            }
        }
        all.sort_by_key(|connection: &ConnectionInfo| connection.id);
        Ok(all)
    }

    /// Ends connection `id`.
    ///
    /// # Errors
    /// As [`status`](Self::status); there is no such connection.
    pub fn kill(&self, id: u64) -> io::Result<()> {
        self.order(&Question::Kill { id })
    }

    /// Makes the server drain.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn drain(&self) -> io::Result<()> {
        self.order(&Question::Drain)
    }

    /// Ends the server at once.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn stop(&self) -> io::Result<()> {
        self.order(&Question::Stop)
    }

    /// Has the server start its own successor, and waits for what comes of it.
    ///
    /// # Errors
    /// As [`status`](Self::status); and in words, why the server goes on by itself.
    pub fn restart(&self) -> io::Result<Takeover> {
        match self.ask(&Question::Restart)?.receive()? {
            Answer::Restarted(takeover) => Ok(takeover),
            answer => Err(refused(answer)),
        }
    }
}

fn refused(answer: Answer) -> io::Error {
    match answer {
        Answer::Refused(why) => io::Error::other(why),
        _ => io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"),
    }
}
