//! What a command has to show, on stdout.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::Failure;

/// Shows `text`. A reader that has had enough is no fault of anybody's.
///
/// # Errors
/// What else the system said.
pub(crate) fn show(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(&error)),
        _ => Ok(()),
    }
}

/// Calls `gone` when nobody reads stdout any more, be there something to write or not: a pipe whose reader has ended, a
/// connection that was reset. A terminal that hung up says so by SIGHUP, and whoever ignores that wants to go on.
///
/// # Errors
/// No thread to wait with: it blocks in poll(2), which alone can tell.
pub(crate) fn watch(gone: impl FnOnce() + Send + 'static) -> io::Result<()> {
    if io::stdout().is_terminal() {
        return Ok(());
    }
    let watching = thread::Builder::new().name("stdout watch".to_owned());
    watching.spawn(move || {
        let stdout = io::stdout();
        loop {
            // POLLERR is told whether asked for or not.
            let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
            match poll(&mut polled, None) {
                Err(Errno::INTR) => {}
                // A file, to which nothing of it applies, or a hang-up, after which bytes may still be read.
                Ok(_) if !polled[0].revents().contains(PollFlags::ERR) => return,
                Ok(_) => return gone(),
                Err(_) => return,
            }
        }
    })?;
    Ok(())
}

/// Why stdout could not be written to, in one line.
pub(crate) fn failed(error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write to stdout: {error}"))
}
