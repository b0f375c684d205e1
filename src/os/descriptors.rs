//! How many descriptors a process may have, and how many of them are left for connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept free of connections: standard streams, event loops, listeners, logs, name look-ups.
const RESERVE: usize = 64;

/// How many connections the descriptor limit allows.
#[must_use]
pub fn descriptors_for_connections() -> usize {
    let limit = getrlimit(Resource::Nofile)
        .current
        .and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX).saturating_sub(RESERVE).max(1)
}

/// How many descriptors this process may have; `None`: unlimited.
#[must_use]
pub(crate) fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many descriptors of this process are open, where the system tells without using one for it: that may be the one
/// that is lacking (proc(5): the size of `/proc/self/fd`, since Linux 6.2).
#[must_use]
pub(crate) fn descriptors_open() -> Option<u64> {
    let folder = std::fs::metadata("/proc/self/fd").ok()?;
    Some(folder.len()).filter(|&open| open > 0)
}

/// Makes the table of descriptors large enough for so many more in one step, as far as the limit allows: in a process that
/// has threads each step waits for all of them (`expand_fdtable` in the kernel's fs/file.c).
#[cfg(control)]
pub(crate) fn reserve_descriptors(count: usize) {
    const SPARE: usize = 256;
    let most = descriptor_limit().unwrap_or(u64::MAX).saturating_sub(1);
    let highest = u64::try_from(count.saturating_add(SPARE)).map_or(most, |it| it.min(most));
    let highest = i32::try_from(highest).unwrap_or(i32::MAX);
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), highest) {
        log::debug!(error:% = std::io::Error::from(error); "descriptors are not reserved");
    }
}

/// Raises the soft limit on descriptors to the hard one, and answers what it is now (`None`: unlimited).
///
/// For a program's start: the soft limit is low for the sake of programs that use select(2).
#[expect(clippy::must_use_candidate, reason = "raising it is the point")]
pub fn raise_descriptor_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
        .is_ok()
    {
        return maximum;
    }
    current
}
