//! Options of sockets: keepalive and its kin, set on the accepted socket or, on Linux, on the listener.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::time::Duration;

use mio::Interest;
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::net::sockopt::{set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::liveness::keepalive::RTO_MAX_DEFAULT;
use crate::liveness::keepalive::{Detection, DetectionError, Keepalive};
use crate::liveness::multipath;
use crate::os::sys;

/// The options a connection gets.
///
/// On Linux all of them are inherited from the listener, as they stood when the handshake was made; elsewhere they
/// are not, and keepalive on a listener makes the system reap the listener itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketOptions {
    pub(crate) detection: Detection,
    pub(crate) user_timeout: Option<Duration>,
    /// The system's own keepalive.
    pub(crate) system: Keepalive,
}

/// A socket to try options on.
pub(crate) fn probe() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
        .or_else(|_| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)))
}

/// What every connection is registered for. Urgent data makes its own edge on Linux: `recv` stops at the mark, with
/// bytes behind it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const INTEREST: Interest = Interest::READABLE.add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const INTEREST: Interest = Interest::READABLE;

/// Whether accepted sockets have the options of their listener.
pub(crate) const INHERITED: bool = cfg!(all(target_os = "linux", not(standfast_portable)));

impl SocketOptions {
    /// Checks what is asked, tries it on a socket, and says what the system lacks.
    pub(crate) fn resolve(
        keepalive: Option<Keepalive>,
        dead_after: Option<Duration>,
        user_timeout: Option<Duration>,
    ) -> Result<Self, Unfit> {
        let probe = probe().map_err(Unfit::Untried)?;
        let system = system_keepalive(&probe);
        let detection = Detection::resolve(keepalive, dead_after, user_timeout, system)
            .map_err(Unfit::Detection)?;
        if detection.keepalive.and_then(|keepalive| keepalive.retries) == Some(NonZeroU32::MIN) {
            log::warn!("with one keepalive retry a single lost packet ends a living connection");
        }
        let options = Self {
            detection,
            user_timeout,
            system,
        };
        options.apply(&probe).map_err(Unfit::Refused)?;
        if detection.dead_after.is_some() && !sys::KERNEL_TELLS {
            log::warn!(
                "this system does not tell what a peer has acknowledged: a vanished peer is found while idle, \
                 and with output waiting by the write timeout only"
            );
        } else if options.lacks_rto_max(&probe) {
            log::warn!(
                "this kernel lacks TCP_RTO_MAX_MS (Linux 6.15): a peer that vanishes with output waiting may be \
                 found later than dead-after says"
            );
        }
        Ok(options)
    }

    /// Keepalive, with the system's values where those are kept.
    pub(crate) fn keepalive(&self) -> Option<Keepalive> {
        let asked = self.detection.keepalive;
        asked.map(|keepalive| keepalive.or(self.system))
    }

    /// The bound of our own judgement over silence: none where the system does not tell what it rests on.
    pub(crate) fn bound(&self) -> Option<Duration> {
        self.detection.dead_after.filter(|_| sys::KERNEL_TELLS)
    }

    /// Sets all of them; says which one the system refused.
    pub(crate) fn apply(&self, socket: &impl AsFd) -> Result<(), Refused> {
        let socket_ref = SockRef::from(socket);
        if let Some(keepalive) = self.detection.keepalive {
            socket_ref.set_tcp_keepalive(&parameters(keepalive)).map_err(|source| Refused {
                option: format!("keepalive {keepalive} (the kernel takes 1 to 32767 s, and 1 to 127 retries)"),
                source,
            })?;
        }
        if let Some(wait) = self.user_timeout {
            set_user_timeout(&socket_ref, Some(wait)).map_err(|source| Refused {
                option: format!("user timeout {} ms", wait.as_millis()),
                source,
            })?;
        }
        // Small answers leave at once, and urgent data stays where it stands in the stream (RFC 6093).
        socket_ref
            .set_tcp_nodelay(true)
            .map_err(Refused::named("TCP_NODELAY"))?;
        socket_ref
            .set_out_of_band_inline(true)
            .map_err(Refused::named("SO_OOBINLINE"))?;
        if let Some(longest) = self.detection.rto_max() {
            match sys::set_rto_max(socket.as_fd(), longest) {
                Err(error) if !lacks(&error) => {
                    return Err(Refused::named("TCP_RTO_MAX_MS")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Those of connection number `nth`, which has a keepalive of its own if it is one of many.
    pub(crate) fn of_one(mut self, nth: u64, is_one_of_many: bool) -> Self {
        if is_one_of_many {
            self.detection.keepalive = self.keepalive().map(|all| all.spread(nth));
        }
        self
    }

    /// Gives a socket that has these options the keepalive of connection number `nth` among many, or of none. Whoever
    /// inherits it meanwhile has some of this and some of what it had before, with retries that fit both.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn vary(&self, socket: &impl AsFd, nth: Option<u64>) -> io::Result<()> {
        let Some(all) = self.keepalive() else {
            return Ok(());
        };
        let own = nth.map_or(all, |nth| all.spread(nth));
        let seconds = |number: NonZeroU32| Duration::from_secs(number.get().into());
        if let (Some(idle), Some(interval), Some(between), Some(retries)) =
            (own.idle, own.interval, all.retries_between(), own.retries)
        {
            set_tcp_keepcnt(socket, between.get())?;
            set_tcp_keepintvl(socket, seconds(interval))?;
            set_tcp_keepidle(socket, seconds(idle))?;
            if retries != between {
                set_tcp_keepcnt(socket, retries.get())?;
            }
        }
        Ok(())
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) fn vary(&self, _: &impl AsFd, _: Option<u64>) -> io::Result<()> {
        Ok(())
    }

    /// Sets all of them on a socket that has another process's: what is off is switched off, what is left to the system
    /// is set back to that.
    pub(crate) fn replace(&self, socket: &impl AsFd) -> Result<(), Refused> {
        let socket_ref = SockRef::from(socket);
        self.keep_alive(socket)?;
        if self.user_timeout.is_none() {
            set_user_timeout(&socket_ref, None).map_err(Refused::named("TCP_USER_TIMEOUT"))?;
        }
        if self.detection.rto_max().is_none() {
            match sys::set_rto_max(socket.as_fd(), RTO_MAX_DEFAULT) {
                Err(error) if !lacks(&error) => {
                    return Err(Refused::named("TCP_RTO_MAX_MS")(error));
                }
                _ => {}
            }
        }
        self.apply(socket)
    }

    /// As [`replace`](Self::replace), if need be on a socket that is [multipath], where there is less.
    pub(crate) fn give(&self, socket: &impl AsFd, multipath: bool) -> Result<(), Refused> {
        if !multipath {
            return self.replace(socket);
        }
        self.keep_alive(socket)?;
        SockRef::from(socket)
            .set_tcp_nodelay(true)
            .map_err(Refused::named("TCP_NODELAY"))
    }

    /// Those of a listener of this process's own. Says what cannot be had over several paths.
    pub(crate) fn begin(&self, listener: &impl AsFd, multipath: bool) -> Result<(), Refused> {
        if !multipath {
            return self.apply(listener);
        }
        self.say_what_mptcp_lacks();
        self.give(listener, true)
    }

    /// What cannot be had for clients that come over MPTCP.
    fn say_what_mptcp_lacks(&self) {
        if let Some((longest, pause)) = self.exceeded() {
            log::warn!(
                longest_ms = longest.as_millis(), tcp_rto_max_ms = pause.as_millis();
                "over MPTCP a peer that vanishes behind a closed window may be found later than dead-after says, unless the \
                 sysctl net.ipv4.tcp_rto_max_ms is lowered"
            );
        }
        if self.user_timeout.is_some() {
            log::warn!(
                "over MPTCP there is no user timeout: it holds for clients that come over TCP alone"
            );
        }
    }

    /// Over MPTCP the pause between two window probes may be longer than that: it may be as long as this.
    pub(crate) fn exceeded(&self) -> Option<(Duration, Duration)> {
        let pause = multipath::longest_pause();
        let longest = self.detection.rto_max();
        longest
            .filter(|longest| pause > *longest)
            .map(|longest| (longest, pause))
    }

    fn keep_alive(&self, socket: &impl AsFd) -> Result<(), Refused> {
        let socket = SockRef::from(socket);
        match self.detection.keepalive {
            None => socket.set_keepalive(false),
            Some(keepalive) => socket.set_tcp_keepalive(&parameters(keepalive.or(self.system))),
        }
        .map_err(Refused::named("keepalive"))
    }

    /// Whether the system lacks `TCP_RTO_MAX_MS`, which makes a vanished peer with output waiting found in time.
    pub(crate) fn lacks_rto_max(&self, socket: &impl AsFd) -> bool {
        self.detection.rto_max().is_some_and(|longest| {
            sys::set_rto_max(socket.as_fd(), longest).is_err_and(|error| lacks(&error))
        })
    }
}

/// Why options that are asked for cannot be had.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// They contradict each other.
    Detection(DetectionError),
    /// There is no socket to try them on.
    Untried(io::Error),
    Refused(Refused),
}

/// An option the system refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) option: String,
    pub(crate) source: io::Error,
}

impl Refused {
    pub(crate) fn named(option: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self {
            option: option.to_owned(),
            source,
        }
    }
}

fn lacks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(libc::ENOPROTOOPT)
}

/// What the system itself uses (`net.ipv4.tcp_keepalive_*`), as a fresh socket shows it.
pub(crate) fn system_keepalive(socket: &impl AsFd) -> Keepalive {
    let socket = SockRef::from(socket);
    let seconds = |time: io::Result<Duration>| {
        time.ok()
            .and_then(|time| u32::try_from(time.as_secs()).ok())
            .unwrap_or(0)
    };
    Keepalive::new(
        seconds(socket.tcp_keepalive_time()),
        seconds(socket.tcp_keepalive_interval()),
        socket.tcp_keepalive_retries().unwrap_or(0),
    )
}

fn parameters(keepalive: Keepalive) -> TcpKeepalive {
    let seconds = |value: NonZeroU32| Duration::from_secs(value.get().into());
    let mut parameters = TcpKeepalive::new();
    if let Some(idle) = keepalive.idle {
        parameters = parameters.with_time(seconds(idle));
    }
    if let Some(interval) = keepalive.interval {
        parameters = parameters.with_interval(seconds(interval));
    }
    if let Some(retries) = keepalive.retries {
        parameters = parameters.with_retries(retries.get());
    }
    parameters
}

#[cfg(target_os = "linux")]
fn set_user_timeout(socket: &SockRef<'_>, wait: Option<Duration>) -> io::Result<()> {
    socket.set_tcp_user_timeout(wait)
}

#[cfg(not(target_os = "linux"))]
fn set_user_timeout(_: &SockRef<'_>, _: Option<Duration>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn options_differ_from_before_and_are_read_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let system = system_keepalive(&listener);
        let options = SocketOptions {
            detection: Detection::resolve(Some(Keepalive::new(33, 0, 5)), None, None, system)
                .unwrap(),
            user_timeout: None,
            system,
        };
        options.apply(&listener).unwrap();
        let socket = SockRef::from(&listener);
        assert!(socket.keepalive().unwrap());
        let now = system_keepalive(&listener);
        assert_eq!(now, Keepalive::new(33, system.interval.unwrap().get(), 5));
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.out_of_band_inline().unwrap());
    }

    #[test]
    fn values_the_kernel_refuses_are_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let keepalive = Keepalive::new(99_999, 10, 3);
        let options = SocketOptions {
            detection: Detection::resolve(Some(keepalive), None, None, keepalive).unwrap(),
            user_timeout: None,
            system: keepalive,
        };
        let refused = options.apply(&listener).unwrap_err();
        assert!(refused.option.contains("99999:10:3"), "{}", refused.option);
    }
}
