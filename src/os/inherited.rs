//! What a process has from whoever started it: descriptors, told from those it opened itself, and what was left set that
//! would make it deaf or blind.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::os::sys;

/// Numbers that are looked at where the system has no list of them.
const FEW: RawFd = 1024;

/// The number of the first descriptor that systemd passes.
const FIRST_PASSED: RawFd = 3;

/// Descriptors that this process was started with, and that nobody has claimed yet. Nothing before it is settled.
static UNCLAIMED: OnceLock<Mutex<BTreeSet<RawFd>>> = OnceLock::new();

/// Settles what this process was started with: no signal is blocked any more, an ignored SIGCHLD no longer keeps ends of
/// child processes from being known, and the descriptors that are open are those that `fd:N` and `systemd` may mean.
///
/// For a program's start, before it has threads, children and descriptors of its own: what lacks close-on-exec then was
/// inherited. Without it no server listens on such an address.
///
/// # Errors
/// What the system says, which has no reason to.
pub fn settle() -> io::Result<()> {
    UNCLAIMED.get_or_init(|| Mutex::new(inherited()));
    sys::unblock_signals()?;
    sys::expect_children()
}

/// The process that got what systemd passes, and started this one: a keeper. 0: this one got it itself.
static PASSED_TO: AtomicU32 = AtomicU32::new(0);

/// What systemd has passed was passed to process `keeper`, which started this one and has left it open.
pub fn passed_to(keeper: u32) {
    PASSED_TO.store(keeper, Ordering::Relaxed);
}

/// What the name of a descriptor begins with that a server has in systemd's store for the next one: no listener is meant by it.
pub const STORED: &str = "standfast/";

/// The descriptors that systemd has passed (`sd_listen_fds(3)`), each with its name, to this process or [to](passed_to) the
/// keeper that started it; but for those that a server has stored there.
pub(crate) fn passed_by_systemd() -> io::Result<Vec<(RawFd, String)>> {
    let mut passed = of_systemd()?;
    passed.retain(|(_, name)| !name.starts_with(STORED));
    Ok(passed)
}

/// The descriptors that a server before this one has stored with systemd, by names that begin with [`STORED`]
/// (`FileDescriptorStoreMax=`, systemd.service(5)).
///
/// # Errors
/// What systemd says of them contradicts itself.
pub fn stored_by_systemd() -> io::Result<Vec<(RawFd, String)>> {
    let mut stored = of_systemd()?;
    stored.retain(|(_, name)| name.starts_with(STORED));
    Ok(stored)
}

fn of_systemd() -> io::Result<Vec<(RawFd, String)>> {
    let number = |name: &str| -> io::Result<Option<u32>> {
        let Some(value) = env::var_os(name) else {
            return Ok(None);
        };
        let number = value.to_str().and_then(|value| value.parse().ok());
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("invalid {name}"));
        number.map(Some).ok_or_else(invalid)
    };
    let (Some(to), Some(count)) = (number("LISTEN_PID")?, number("LISTEN_FDS")?) else {
        return Ok(Vec::new());
    };
    if to != process::id() && to != PASSED_TO.load(Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let count = count as usize;
    let names = match env::var("LISTEN_FDNAMES") {
        Ok(names) => names.split(':').map(str::to_owned).collect(),
        Err(_) => vec!["unknown".to_owned(); count],
    };
    if names.len() != count {
        let what = format!(
            "LISTEN_FDNAMES has {} names, LISTEN_FDS says {count}",
            names.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok((FIRST_PASSED..).zip(names).collect())
}

/// Whether stdout was closed when this process was started (`>&-`), where the system tells. The runtime has put
/// `/dev/null` in its place, so that no other file takes its number: what is written there is lost without an error.
#[cfg(feature = "cli")]
#[must_use]
pub fn stdout_was_closed() -> bool {
    sys::stdout_was_closed()
}

/// Takes an inherited descriptor over; each once.
///
/// # Errors
/// `NotFound` for a number that this process was not started with, or that was claimed before; `Unsupported` where that
/// is not [settled](settle).
pub fn claim(fd: RawFd) -> io::Result<OwnedFd> {
    let Some(unclaimed) = UNCLAIMED.get() else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this program did not begin with standfast::process::inherited::settle()",
        ));
    };
    let mut unclaimed = unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
    claim_of(&mut unclaimed, fd)
}

fn claim_of(unclaimed: &mut BTreeSet<RawFd>, fd: RawFd) -> io::Result<OwnedFd> {
    if !unclaimed.remove(&fd) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "this process inherited no descriptor of that number",
        ));
    }
    sys::adopt(fd)
}

/// What is open without close-on-exec. The standard library sets that on all it opens, and exec(2) leaves nothing open
/// that has it: without, it was inherited.
fn inherited() -> BTreeSet<RawFd> {
    let entries = fs::read_dir("/proc/self/fd");
    let listed = entries.map(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    });
    let open: Vec<RawFd> = listed.unwrap_or_else(|_| (0..FEW).collect());
    open.into_iter()
        .filter(|&fd| sys::outlasts_exec(fd))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;

    #[test]
    fn only_what_was_inherited_can_be_claimed_and_only_once() {
        let ours = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        // As a descriptor is that came through an exec.
        fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
        let theirs = theirs.into_raw_fd();
        let mut unclaimed = inherited();
        let refused = claim_of(&mut unclaimed, ours.as_raw_fd()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        let claimed = claim_of(&mut unclaimed, theirs).unwrap();
        assert!(!sys::outlasts_exec(claimed.as_raw_fd()));
        assert!(TcpListener::from(claimed).local_addr().is_ok());
        let twice = claim_of(&mut unclaimed, theirs).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::NotFound);
        assert!(ours.local_addr().is_ok());
    }
}
