//! What the process that started this one makes of its end, once another has taken over: where that would end the other
//! as well, and everybody with it, a takeover is refused.

use std::env;
use std::fs;
use std::io;
use std::process;

use rustix::fs::{FileType, fstat};

use crate::{kept, supervisor};

/// Init programs of containers: they end with the program they started, and the container with them.
const ENDS_WITH_ITS_CHILD: [&str; 6] = [
    "tini",
    "tini-static",
    "docker-init",
    "dumb-init",
    "catatonit",
    "podman-init",
];

/// Supervisors that start a program anew when it ends, whoever listens in its place.
const STARTS_ANOTHER: [&str; 4] = ["runsv", "supervise", "s6-supervise", SUPERVISORD];

/// Unlike the others it reads what the program prints by itself, until that ends.
const SUPERVISORD: &str = "supervisord";

/// Why process `pid` may not take over from this one, if it may not.
pub(crate) fn objection(pid: u32) -> Option<String> {
    // With its keeper everything ends as well that would end with this process.
    let own = kept::by().unwrap_or_else(process::id);
    if own == 1 {
        return Some(
            "this is process 1, with which everything else in here ends: start the server below a process 1 that \
             stays, or with --keep"
                .to_owned(),
        );
    }
    if let Some(init) = process_one_ends_with(own) {
        return Some(format!(
            "process 1 ({init}) ends with this process, and everything else in here with it: start the server below a \
             process 1 that stays, or with --keep"
        ));
    }
    // Set for what systemd itself starts, from version 248 on (systemd.exec(5)); without a socket to notify it cannot
    // be told who is next.
    let is_main = env::var("SYSTEMD_EXEC_PID").is_ok_and(|main| main.parse() == Ok(own));
    if is_main && env::var_os("NOTIFY_SOCKET").is_none() && supervisor::is_of_this_service(pid) {
        return Some(
            "this is the main process of a systemd service, which ends with it: Type=notify lets another one be the \
             main process"
                .to_owned(),
        );
    }
    None
}

/// Whether process `pid` was started by process `parent`.
pub(crate) fn is_child_of(parent: u32, pid: u32) -> bool {
    Process::read(&pid.to_string()).is_some_and(|process| process.parent == parent)
}

/// The supervisor that would start another server, in vain and for ever, beside one that has taken over from this.
pub(crate) fn would_start_another() -> Option<String> {
    let parent = Process::read(&Process::read("self")?.parent.to_string())?;
    STARTS_ANOTHER.contains(&parent.name.as_str()).then(|| {
        format!(
            "{}, which started this process, would start another one beside its successor, in vain and for ever: with \
             --replace in its command each takes over from the one before",
            parent.name
        )
    })
}

/// Why nobody would read what a successor prints, if nobody would: its stdout is this process's, and ends with it.
pub(crate) fn would_close_stdout() -> Option<String> {
    let stdout = io::stdout();
    // The terminal hangs up on all who have it when the leader of its session ends (`disassociate_ctty` in the kernel's
    // drivers/tty/tty_jobctrl.c).
    if rustix::termios::tcgetsid(&stdout) == Ok(rustix::process::getpid()) {
        return Some(
            "this process leads the session of the terminal that is its stdout, which hangs up with it: start it below a \
             shell, or send stdout elsewhere"
                .to_owned(),
        );
    }
    let is_pipe = fstat(&stdout).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
    let parent = Process::read(&Process::read("self")?.parent.to_string())?;
    (is_pipe && parent.name == SUPERVISORD).then(|| {
        format!(
            "{SUPERVISORD} closes the pipe that is this process's stdout when it ends: start it by a shell that sends \
             stdout elsewhere"
        )
    })
}

/// The name of process 1, if it is one that ends with process `own`: of its children it started the oldest, and
/// inherited all others.
fn process_one_ends_with(own: u32) -> Option<String> {
    let init = Process::read("1")?;
    if !ENDS_WITH_ITS_CHILD.contains(&init.name.as_str()) {
        return None;
    }
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = pids.filter_map(|pid| {
        let process = Process::read(&pid.to_string())?;
        (process.parent == 1).then_some((process.started, pid))
    });
    (children.min()?.1 == own).then_some(init.name)
}

/// What `/proc/PID/stat` tells of a process (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Process {
    name: String,
    parent: u32,
    /// Clock ticks from the system's start.
    started: u64,
}

impl Process {
    fn read(pid: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let (head, fields) = stat.rsplit_once(") ")?;
        let (_, name) = head.split_once(" (")?;
        let mut fields = fields.split(' ');
        Some(Self {
            name: name.to_owned(),
            parent: fields.nth(1)?.parse().ok()?,
            started: fields.nth(17)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3";
        let process = Process::parse(stat).unwrap();
        assert_eq!((process.name.as_str(), process.parent), ("a) b (c", 1));
        assert_eq!(process.started, 4711);
        let this = Process::read("self").unwrap();
        assert!(this.parent > 0 && this.started > 0, "{this:?}");
    }
}
