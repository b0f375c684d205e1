//! What a server tells whoever runs it, from its first turn to its end, and asks before another takes over.

use std::fmt;
#[cfg(control)]
use std::io;
#[cfg(control)]
use std::os::fd::BorrowedFd;
#[cfg(control)]
use std::path::Path;

use super::Handle;
use crate::inspect::Takeover;
#[cfg(control)]
use crate::os::kept::Kept;
#[cfg(control)]
use crate::os::successor::Successor;

/// What a server tells whoever runs it: given with its [`Config`](crate::Config), called from threads of the server, in
/// about this order. Every call does nothing unless it is written.
///
/// ```
/// use standfast::{Config, Handle, Lifecycle, Listen, Server, services::Echo};
/// use std::sync::Arc;
///
/// #[derive(Debug)]
/// struct Told;
///
/// impl Lifecycle for Told {
///     fn running(&self, server: &Handle) {
///         println!("listening on {}", server.addresses()[0]);
/// #       server.drain();
///     }
/// }
///
/// # fn main() -> Result<(), standfast::Error> {
/// let server = Server::bind(Config {
///     listen: vec![Listen::new("127.0.0.1:0".parse()?, Echo)],
///     lifecycle: Arc::new(Told),
///     ..Config::default()
/// })?;
/// server.run()?;
/// # Ok(())
/// # }
/// ```
pub trait Lifecycle: fmt::Debug + Send + Sync + 'static {
    /// It serves: after a takeover, that is when the predecessor does not any more.
    fn running(&self, server: &Handle) {
        let _ = server;
    }

    /// It listens with these: for a [keeper](crate::Config::keeper), if the settings name one. From then on they are all that is
    /// to be kept; said before it is [running](Self::running).
    #[cfg(control)]
    fn keep(&self, listening: Vec<Kept>) {
        let _ = listening;
    }

    /// Has a [keeper](crate::Config::keeper), if the settings name one, hold these beside what it has, for the server after this
    /// one: by a name of letters, digits and dashes. Called from any thread, and is not to wait long.
    ///
    /// # Errors
    /// There is none (default), or it does not hear it.
    #[cfg(control)]
    fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _ = (name, descriptors);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What was [stored](Self::store) by that name is to be held no more.
    ///
    /// # Errors
    /// As of that.
    #[cfg(control)]
    fn give_up(&self, name: &str) -> io::Result<()> {
        let _ = name;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Its connections are its own from here on: what it has [stored](Self::store) is what a next one is to have of them, and
    /// nothing that one before it has.
    ///
    /// # Errors
    /// As of that.
    #[cfg(control)]
    fn owns(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Its connections are just becoming another process's, or, where that came to nothing, are its own still: what it has
    /// [stored](Self::store) is no next one's meanwhile. Said before the other process touches them.
    #[cfg(control)]
    fn gives(&self, gives: bool) {
        let _ = gives;
    }

    /// It serves and, if it has taken over, whoever watches over the predecessor knows of it.
    fn settled(&self, server: &Handle) {
        let _ = server;
    }

    /// It is the only one, just before [`Handle::wait_until_alone`] returns: a predecessor has ended and writes nothing any
    /// more.
    fn alone(&self, server: &Handle) {
        let _ = server;
    }

    /// Why process `pid` may not take over, if it may not. With this process's own number it is asked before a successor is
    /// started.
    fn objection(&self, pid: u32) -> Option<String> {
        let _ = pid;
        None
    }

    /// Starts the program that takes over, when the control socket at `control` is asked for a restart.
    ///
    /// # Errors
    /// Why there is none (default: that this server knows of none); the server goes on.
    #[cfg(control)]
    fn successor(&self, control: &Path) -> io::Result<Successor> {
        let _ = control;
        Err(io::Error::other("this server knows of none"))
    }

    /// Another process has taken over. When this returns that one is told so, and this one may end.
    fn handed_over(&self, takeover: &Takeover) {
        let _ = takeover;
    }

    /// It is told to end, by whomever: said before it is, or its end may come first.
    fn ending(&self) {}

    /// All is over. When this returns the control socket goes, which a successor takes for this one's end.
    fn ended(&self) {}
}

/// Nobody wants to know.
impl Lifecycle for () {}
