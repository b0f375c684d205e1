//! The system calls that no safe crate offers, and nothing else: with `mapping.rs`, `reserve.rs` and `users.rs`, the only `unsafe` of the package.
//!
//! Each function is one system call on a descriptor the caller lends. What Linux alone has (`TCP_INFO`,
//! `SIOCOUTQ`, `TCP_RTO_MAX_MS`, `IP_BIND_ADDRESS_NO_PORT`) answers [`io::ErrorKind::Unsupported`] elsewhere, and
//! each caller does without it: `liveness/sockopt.rs` says once what is lacking. Building with `--cfg standfast_portable`
//! forces that answer on Linux too, so that the fallback is compiled and tested.
#![expect(
    unsafe_code,
    reason = "no safe crate offers these calls; each block is one call on a borrowed descriptor"
)]

#[cfg(control)]
pub(crate) mod mapping;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
mod multipath;
pub(crate) mod reserve;
pub(crate) mod users;

use std::io;
#[cfg(control)]
use std::os::fd::AsRawFd;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub(crate) use multipath::multipath_info;

/// What the kernel knows of a connection's peer: the part of `TCP_INFO` that tells the living from the vanished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// Time since the peer was last heard of: the smaller of `tcpi_last_ack_recv` and `tcpi_last_data_recv`.
    pub(crate) silence: Duration,
    /// `tcpi_probes`: keepalive or window probes sent since the last answer.
    pub(crate) probes: u8,
    /// `tcpi_rtt`: the smoothed round-trip time.
    pub(crate) round_trip: Duration,
    /// `tcpi_retransmits`: retransmissions of the oldest unacknowledged segment since the last answer.
    pub(crate) retransmits: u8,
    /// Of a connection over several paths, how many there are; one that the kernel has given up counts no more.
    pub(crate) flows: Option<u8>,
    /// What a process has to know of a socket whose bytes pass it by.
    pub(crate) journal: Journal,
}

/// The kernel's own account of a connection's bytes and of its ends: the rest of `TCP_INFO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Journal {
    /// `tcpi_last_data_recv`: time since the last byte came, or since the connection was made.
    pub(crate) idle: Duration,
    /// `tcpi_bytes_received`: a FIN counts as one.
    pub(crate) received: u64,
    /// `tcpi_bytes_acked`: bytes the peer has acknowledged; a FIN counts as one.
    pub(crate) acknowledged: u64,
    /// `tcpi_bytes_sent`, less what was sent again (`tcpi_bytes_retrans`); a FIN does not count.
    pub(crate) sent: u64,
    /// `tcpi_state`.
    pub(crate) state: TcpState,
}

/// `tcpi_state`, as far as it matters here: who has sent a FIN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    not(all(target_os = "linux", not(standfast_portable))),
    expect(dead_code, reason = "Linux alone tells")
)]
pub(crate) enum TcpState {
    /// Neither, or the system does not tell.
    #[default]
    Open,
    /// This side has: `FIN_WAIT1`, `FIN_WAIT2`.
    FinSent,
    /// The peer has: `CLOSE_WAIT`.
    PeerFin,
    /// Both have, and the last acknowledgement is out: `LAST_ACK`, `CLOSING`, `TIME_WAIT`.
    BothFin,
    /// It is over: `CLOSE`.
    Over,
}

impl TcpState {
    pub(crate) fn peer_fin(self) -> bool {
        matches!(self, Self::PeerFin | Self::BothFin)
    }

    pub(crate) fn fin_sent(self) -> bool {
        matches!(self, Self::FinSent | Self::BothFin)
    }
}

/// Whether `fd` is open and goes through an exec: it has no close-on-exec (`FD_CLOEXEC`, fcntl(2)).
pub(crate) fn outlasts_exec(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no argument and touches no memory; a number that is not open is answered with EBADF.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

/// Takes over a descriptor that this process inherited, such as the `N` of `fd:N`. For `os/inherited.rs` alone, which gives
/// each number once, and only if this process was started with it.
///
/// # Errors
/// `EBADF` if `fd` is not open; close-on-exec is set on it, and what `fcntl` says of that is returned.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an integer and touches no memory; a bad descriptor is answered with EBADF.
    let answer = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above showed that `fd` is open. No value in this process owns it: `os/inherited.rs` found it open
    // as the program began, without close-on-exec, which everything has that the standard library opens, and crosses
    // its number out before it calls this. So it was opened by whoever started this process, and named to us for our use.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of a descriptor whose owner does not lend it otherwise, as an event queue's.
///
/// # Errors
/// There are no descriptors.
#[cfg(control)]
pub(crate) fn duplicate(of: &impl AsRawFd) -> io::Result<OwnedFd> {
    const FIRST: libc::c_int = 3;
    // SAFETY: takes integers and touches no memory; a bad descriptor is answered with EBADF.
    let copy = unsafe { libc::fcntl(of.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST) };
    if copy == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has just opened it, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Lets every signal through to this thread and to those that it starts (`pthread_sigmask(3)`).
pub(crate) fn unblock_signals() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set it is given, which is large enough.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: reads the set, which the call above has initialised; no old one is asked for.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    Ok(())
}

/// Gives SIGCHLD its default: where it is ignored, ended children are gone before anybody can wait for them (wait(2)).
pub(crate) fn expect_children() -> io::Result<()> {
    // SAFETY: sets a disposition that runs no code of ours.
    let former = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if former == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(all(target_os = "linux", not(standfast_portable)))]
mod imp {
    use std::num::NonZeroU32;
    use std::os::fd::AsRawFd;

    use super::{BorrowedFd, Duration, Journal, TcpInfo, TcpState, io};

    /// `TCP_RTO_MAX_MS` of `include/uapi/linux/tcp.h`, Linux 6.15; the C library's headers do not have it yet.
    const TCP_RTO_MAX_MS: libc::c_int = 44;

    /// `struct tcp_info` of `include/uapi/linux/tcp.h`, as far as it matters here: the C library's is longer or shorter,
    /// by version. A kernel that knows less of it fills in less.
    #[repr(C)]
    pub(super) struct Info {
        pub(super) state: u8,
        _ca_state: u8,
        pub(super) retransmits: u8,
        pub(super) probes: u8,
        _bytes: [u8; 4],
        _timeouts: [u32; 4],
        unacked: u32,
        _lost: [u32; 4],
        _last_data_sent: u32,
        _last_ack_sent: u32,
        pub(super) last_data_recv: u32,
        pub(super) last_ack_recv: u32,
        _mtu: [u32; 2],
        pub(super) rtt: u32,
        _windows: [u32; 8],
        _pacing: [u64; 2],
        bytes_acked: u64,
        bytes_received: u64,
        _segments: [u32; 6],
        _rates: [u64; 4],
        _delivered: [u32; 2],
        bytes_sent: u64,
        bytes_retrans: u64,
    }

    const _: () = {
        assert!(std::mem::offset_of!(Info, unacked) == 24);
        assert!(std::mem::offset_of!(Info, last_data_recv) == 52);
        assert!(std::mem::offset_of!(Info, rtt) == 68);
        assert!(std::mem::offset_of!(Info, bytes_acked) == 120);
        assert!(std::mem::offset_of!(Info, bytes_sent) == 200);
    };

    /// States of a connection (`include/net/tcp_states.h`).
    const FIN_WAIT1: u8 = 4;
    const FIN_WAIT2: u8 = 5;
    const TIME_WAIT: u8 = 6;
    pub(super) const CLOSE: u8 = 7;
    const CLOSE_WAIT: u8 = 8;
    const LAST_ACK: u8 = 9;
    const CLOSING: u8 = 11;

    /// Reads `TCP_INFO` (tcp(7)).
    fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
        let mut info = std::mem::MaybeUninit::<Info>::zeroed();
        let mut length = libc::socklen_t::try_from(size_of::<Info>()).unwrap_or(0);
        // SAFETY: `info` is writable for `length` bytes and both outlive the call; `fd` is borrowed, so open.
        let answer = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if answer == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the struct is plain integers, zeroed before the kernel filled in as much as it knows.
        Ok(unsafe { info.assume_init() })
    }

    /// How many connections wait in a listener's queue (`tcpi_unacked`; `tcp_get_info` in the kernel's net/ipv4/tcp.c).
    pub(crate) fn queued(listener: BorrowedFd<'_>) -> io::Result<u32> {
        Ok(info(listener)?.unacked)
    }

    /// What the kernel knows of a connection's peer, and its account of the connection.
    pub(crate) fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
        let info = info(fd)?;
        Ok(TcpInfo {
            silence: Duration::from_millis(info.last_ack_recv.min(info.last_data_recv).into()),
            probes: info.probes,
            round_trip: Duration::from_micros(info.rtt.into()),
            retransmits: info.retransmits,
            flows: None,
            journal: Journal {
                idle: Duration::from_millis(info.last_data_recv.into()),
                received: info.bytes_received,
                acknowledged: info.bytes_acked,
                sent: info.bytes_sent.saturating_sub(info.bytes_retrans),
                state: match info.state {
                    FIN_WAIT1 | FIN_WAIT2 => TcpState::FinSent,
                    CLOSE_WAIT => TcpState::PeerFin,
                    LAST_ACK | CLOSING | TIME_WAIT => TcpState::BothFin,
                    CLOSE => TcpState::Over,
                    _ => TcpState::Open,
                },
            },
        })
    }

    /// Sets close-on-exec on every descriptor but stdin, stdout and stderr (`CLOSE_RANGE_CLOEXEC`, `close_range(2)`): those
    /// that somebody left open for this process are not for the programs that it runs.
    ///
    /// # Errors
    /// `ENOSYS` or `EINVAL` before Linux 5.11.
    pub(crate) fn keep_descriptors() -> io::Result<()> {
        let first: libc::c_uint = 3;
        // SAFETY: sets a flag on descriptors, touches no memory, closes nothing; numbers that are not open are skipped.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                first,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if answer == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Who is at the other end of a Unix socket (`SO_PEERCRED`, unix(7)): the user, and the process if it has a number in
    /// this one's namespace. Of a socket that connected it is who called listen(2) there.
    ///
    /// The kernel says 0 for a process of another namespace: no value of rustix's `Pid`, which is why that cannot be
    /// asked here.
    pub(crate) fn peer(fd: BorrowedFd<'_>) -> io::Result<(u32, Option<NonZeroU32>)> {
        let mut of = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>())
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the call writes at most `length` bytes, and `of` has them; any bytes are a `ucred`. `fd` is borrowed,
        // so open.
        let answer = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut of).cast(),
                &raw mut length,
            )
        };
        if answer == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok((of.uid, u32::try_from(of.pid).ok().and_then(NonZeroU32::new)))
    }

    /// Reads `SIOCOUTQ` (tcp(7)): bytes in the send queue that the peer has not acknowledged; a FIN counts as one.
    pub(crate) fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<u64> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one int, and `bytes` is one; `fd` is borrowed, so open.
        let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if answer == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// Reads `SO_MEMINFO` (`sk_get_meminfo` of the kernel's net/core/sock.c): how far the send buffer is from full, in
    /// bytes as the kernel reckons them, its own beside ours.
    pub(crate) fn send_room(fd: BorrowedFd<'_>) -> io::Result<u32> {
        /// Places in what comes back (`SK_MEMINFO_*` of `include/uapi/linux/sock_diag.h`).
        const WMEM_ALLOC: usize = 2;
        const SNDBUF: usize = 3;
        const WMEM_QUEUED: usize = 5;
        let mut info = [0_u32; 9];
        let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
        // SAFETY: `info` is writable for `length` bytes and both outlive the call; `fd` is borrowed, so open.
        let answer = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if answer == -1 {
            return Err(io::Error::last_os_error());
        }
        // TCP counts in the one, Unix sockets in the other.
        Ok(info[SNDBUF].saturating_sub(info[WMEM_ALLOC].max(info[WMEM_QUEUED])))
    }

    /// `struct tcp_zerocopy_receive` of `include/uapi/linux/tcp.h`, as far as it matters here.
    #[repr(C)]
    struct Receive {
        _address: u64,
        _length: u32,
        unread: u32,
        unread_with_fin: u32,
        // To the alignment of the whole: the kernel is not told of it.
        _rest: u32,
    }

    /// Whether the peer has sent its FIN, also where a reset came behind it and the error was told to somebody:
    /// `TCP_ZEROCOPY_RECEIVE` counts what is unread with the FIN and without, and where that is nothing but the FIN it
    /// answers `EIO` (`tcp_zerocopy_receive` in the kernel's net/ipv4/tcp.c). It receives nothing here.
    ///
    /// # Errors
    /// `EINVAL` where a page or more is unread; what is no TCP has no such thing.
    pub(crate) fn fin_came(fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut receive = std::mem::MaybeUninit::<Receive>::zeroed();
        let known = std::mem::offset_of!(Receive, _rest);
        let mut length = libc::socklen_t::try_from(known).unwrap_or(0);
        // SAFETY: `receive` is writable for more than `length` bytes and both outlive the call; its address and length of a
        // mapping are zero, so nothing is mapped; `fd` is borrowed, so open.
        let answer = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_ZEROCOPY_RECEIVE,
                receive.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if answer == -1 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EIO) => Ok(true),
                _ => Err(error),
            };
        }
        // SAFETY: the struct is plain integers, zeroed before the kernel filled in as much as it was asked for.
        let receive = unsafe { receive.assume_init() };
        Ok(receive.unread_with_fin > receive.unread)
    }

    /// The first child process that has ended, if any has, and leaves it as it is (waitid(2), `WNOWAIT`).
    pub(crate) fn first_ended() -> Option<rustix::process::Pid> {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is writable and outlives the call, which reaps nothing.
        let answer = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) };
        if answer == -1 {
            return None;
        }
        // SAFETY: zeroed it is a value of its type, and the call has filled it in, or left it where nobody has ended.
        let info = unsafe { info.assume_init() };
        // SAFETY: what waitid(2) fills in has this field; zeroed it is no process.
        rustix::process::Pid::from_raw(unsafe { info.si_pid() })
    }

    /// A command that has the kernel load the program at `path`, and stops before its first instruction (`PTRACE_TRACEME`,
    /// ptrace(2)): whoever starts it is to end it then. What execve(2) says of the program is the error of the start; where
    /// it may not be traced, that is `EPERM`.
    pub(crate) fn stopped_at_exec(path: std::ffi::CString) -> std::process::Command {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("/proc/self/exe");
        let exec = move || {
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: asks for the calling process, the forked one, to be traced; reads and writes no memory.
            if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, none, none) } == -1 {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            let (arguments, environment) = ([path.as_ptr(), std::ptr::null()], [std::ptr::null()]);
            // Not by the standard library, whose execvp(3) gives to a shell what the kernel does not know.
            // SAFETY: each is a list of strings that ends with a null pointer, and lives until the call returns, if it does.
            unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            Err(io::Error::last_os_error())
        };
        // SAFETY: the closure runs between fork and exec, makes two system calls, and neither allocates nor locks.
        let _ = unsafe { command.pre_exec(exec) };
        command
    }

    /// Sets `TCP_RTO_MAX_MS`: the longest pause between two retransmissions or window probes, 1 s to 120 s.
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 6.15.
    pub(crate) fn set_rto_max(fd: BorrowedFd<'_>, longest: Duration) -> io::Result<()> {
        let millis = libc::c_int::try_from(longest.as_millis()).unwrap_or(libc::c_int::MAX);
        set_int(fd, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, millis)
    }

    /// Sets `IP_BIND_ADDRESS_NO_PORT` (ip(7)): bind(2) with port 0 leaves the choice of the port to connect(2).
    pub(crate) fn set_bind_address_no_port(fd: BorrowedFd<'_>) -> io::Result<()> {
        set_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
    }

    /// Sets an option that is one int.
    fn set_int(
        fd: BorrowedFd<'_>,
        level: libc::c_int,
        option: libc::c_int,
        value: libc::c_int,
    ) -> io::Result<()> {
        // SAFETY: the option reads one int from `value`, which outlives the call; `fd` is borrowed, so open.
        let answer = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0),
            )
        };
        if answer == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Reads `TCP_RTO_MAX_MS` back.
    #[cfg(test)]
    pub(crate) fn rto_max(fd: BorrowedFd<'_>) -> io::Result<Duration> {
        let mut millis: libc::c_int = 0;
        let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
        // SAFETY: the option writes one int into `millis`, whose size `length` states; `fd` is borrowed, so open.
        let answer = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::IPPROTO_TCP,
                TCP_RTO_MAX_MS,
                (&raw mut millis).cast(),
                &raw mut length,
            )
        };
        if answer == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
    }
}

#[cfg(not(all(target_os = "linux", not(standfast_portable))))]
mod imp {
    use super::{BorrowedFd, Duration, TcpInfo, io};

    pub(crate) fn tcp_info(_: BorrowedFd<'_>) -> io::Result<TcpInfo> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn multipath_info(_: BorrowedFd<'_>) -> io::Result<TcpInfo> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn queued(_: BorrowedFd<'_>) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn unacknowledged(_: BorrowedFd<'_>) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn send_room(_: BorrowedFd<'_>) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn fin_came(_: BorrowedFd<'_>) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn set_rto_max(_: BorrowedFd<'_>, _: Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn set_bind_address_no_port(_: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) use imp::*;

/// Whether stdout was closed when this process was started.
#[cfg(all(feature = "cli", target_os = "linux"))]
pub(crate) use before_main::stdout_was_closed;

#[cfg(all(feature = "cli", not(target_os = "linux")))]
pub(crate) fn stdout_was_closed() -> bool {
    false
}

/// What can be seen only before the runtime's own start, which opens `/dev/null` wherever one of the first three
/// descriptors is closed. Afterwards nothing tells that file from one that somebody meant: daemon(3), Python and libuv
/// open theirs with the same flags.
#[cfg(all(feature = "cli", target_os = "linux"))]
mod before_main {
    use std::sync::atomic::{AtomicBool, Ordering};

    static CLOSED: AtomicBool = AtomicBool::new(false);

    pub(crate) fn stdout_was_closed() -> bool {
        CLOSED.load(Ordering::Relaxed)
    }

    extern "C" fn look() {
        // SAFETY: F_GETFD takes no argument and touches no memory; it is defined for every number.
        let answer = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
        CLOSED.store(answer == -1, Ordering::Relaxed);
    }

    // SAFETY: the C library calls each pointer in this section, with arguments that `look` may ignore, once, on the only
    // thread, before main. `look` makes one system call and stores into an atomic: it needs nothing of the runtime.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static LOOK: extern "C" fn() = look;
}

/// Whether the kernel tells what a peer has acknowledged: what detection beyond keepalive rests on.
pub(crate) const KERNEL_TELLS: bool = cfg!(all(target_os = "linux", not(standfast_portable)));

#[cfg(test)]
mod tests;
