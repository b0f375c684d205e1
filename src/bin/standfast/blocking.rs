//! Waiting for a file that is not ready, also where somebody made it non-blocking: a terminal or a pipe shared with others
//! may be.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr, write};
use standfast::process::Allowance;

/// Waits until the file has what is `wanted`, or its other end is closed. Answers what it has.
pub(crate) fn until(file: &impl AsFd, wanted: PollFlags) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(file, wanted)];
    retry_on_intr(|| poll(&mut polled, None))?;
    Ok(polled[0].revents())
}

/// The same for no longer than `bound`. Answers whether that was in time.
pub(crate) fn wait(file: &impl AsFd, wanted: PollFlags, bound: Duration) -> io::Result<bool> {
    let mut bound = Allowance::new(bound);
    while let Some(piece) = bound.piece() {
        let piece = Timespec::try_from(piece).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(file, wanted)], Some(&piece)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Does what the file blocks for, or would.
pub(crate) fn patiently<T>(
    file: &impl AsFd,
    wanted: PollFlags,
    mut call: impl FnMut() -> rustix::io::Result<T>,
) -> io::Result<T> {
    loop {
        match retry_on_intr(&mut call) {
            Err(Errno::AGAIN) => drop(until(file, wanted)?),
            done => return Ok(done?),
        }
    }
}

/// Writes all of it.
pub(crate) fn write_whole(file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match patiently(file, PollFlags::OUT, || write(file, bytes))? {
            0 => return Err(ErrorKind::WriteZero.into()),
            count => bytes = &bytes[count..],
        }
    }
    Ok(())
}
