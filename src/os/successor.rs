//! A process that was started to take over.

use std::io::{self, PipeReader};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, kill_process};

/// A process that was started to take over. It need not be a child of this one.
#[derive(Debug)]
pub struct Successor {
    /// Its number.
    pub pid: u32,
    /// The other end is the successor's alone: that it has ended is seen here.
    pub life: PipeReader,
}

impl Successor {
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.life, PollFlags::empty())];
        let at_once = Timespec::default();
        Ok(retry_on_intr(|| poll(&mut polled, Some(&at_once)))? > 0)
    }

    pub(crate) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid.cast_signed()) {
            // It may have ended by now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
