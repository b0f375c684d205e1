//! A process that was started to take over.

use std::io::{self, PipeReader, Read};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, kill_process};

/// A process that was started to take over. It need not be a child of this one.
#[derive(Debug)]
pub struct Successor {
    /// Its number.
    pub pid: u32,
    /// The other end is the successor's alone: that it has ended is seen here, and before that it says why, if it may not
    /// take over.
    pub life: PipeReader,
    /// What it had said there by the time that its number was known.
    pub said: Vec<u8>,
}

/// More than that is no reason, bytes.
const LONGEST: u64 = 4096;

impl Successor {
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.life, PollFlags::empty())];
        let at_once = Timespec::default();
        Ok(retry_on_intr(|| poll(&mut polled, Some(&at_once)))? > 0)
    }

    /// Why one that has ended could not take over, in its own words.
    pub(crate) fn words(&self) -> Option<String> {
        let mut said = self.said.clone();
        // What has come until then is as good.
        let _ = (&self.life).take(LONGEST).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    pub(crate) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid.cast_signed()) {
            // It may have ended by now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
