//! Whom a relay forwards to and how, and whether that would lead back to itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::dial::Dial;
#[cfg(feature = "tls")]
use crate::dial::DialTls;
use crate::dial::backoff::Backoff;
use crate::error::Error;
use crate::services::forward::proxy_header::ProxyHeader;

/// Whom a relay forwards to, and how.
///
/// ```
/// use standfast::services::forward::{Balance, ForwardOptions};
///
/// let upstreams = ForwardOptions {
///     balance: Balance::RoundRobin,
///     ..ForwardOptions::new(vec!["127.0.0.1:8080".parse().unwrap(), "127.0.0.1:8081".parse().unwrap()])
/// };
/// ```
#[derive(Clone, Debug)]
pub struct ForwardOptions {
    /// The servers; names are resolved anew for each client. At least one.
    pub addresses: Vec<Address>,
    /// Which of them is tried first. Default: the first.
    pub balance: Balance,
    /// Longest time for one attempt at one of `addresses`. Default 10 s; `None`: as long as the system tries (about two
    /// minutes).
    pub connect_timeout: Option<Duration>,
    /// For how long a client waits while no upstream can be reached: they are tried again, all of them, with `backoff`
    /// in between. Default 10 s; `None`: each is tried once. Too short a wait cuts clients off while an upstream
    /// restarts; too long a one keeps them in doubt.
    pub wait: Option<Duration>,
    /// How long to wait before all are tried again. Default: 100 ms at first, 1 s at most.
    pub backoff: Backoff,
    /// Which of them are passed over as long as another one can be reached.
    pub fails: Fails,
    /// The header that tells an upstream who its client is. Default `None`: it sees this host.
    pub send_proxy: Option<ProxyHeader>,
    /// TLS to each of them, from the first byte behind that header; its handshake is within `connect_timeout`. A certificate
    /// that is refused is not tried again for that client, but the next upstream is. Default `None`: none.
    #[cfg(feature = "tls")]
    pub tls: Option<DialTls>,
}

/// Which upstream is tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Balance {
    /// The first; the others are there for when it fails.
    #[default]
    InOrder,
    /// The one after that of the client before.
    RoundRobin,
}

/// When an upstream that cannot be reached counts as down: it is tried after all others then, but for one client now
/// and then, which finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fails {
    /// So many attempts within `timeout`, with none between them that succeeds. Default 1; `None`: it is tried whenever
    /// its turn comes, and each client waits for `connect_timeout` again.
    pub max: Option<NonZeroU32>,
    /// And for so long it is left alone then. Default 10 s.
    pub timeout: Duration,
}

impl Default for Fails {
    fn default() -> Self {
        Self {
            max: Some(NonZeroU32::MIN),
            timeout: Duration::from_secs(10),
        }
    }
}

impl ForwardOptions {
    /// `addresses`, everything else by default.
    #[must_use]
    pub fn new(addresses: Vec<Address>) -> Self {
        Self {
            addresses,
            balance: Balance::default(),
            connect_timeout: Some(Duration::from_secs(10)),
            wait: Some(Duration::from_secs(10)),
            backoff: Backoff {
                least: Duration::from_millis(100),
                most: Duration::from_secs(1),
            },
            fails: Fails::default(),
            send_proxy: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Checks what is asked.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.addresses.is_empty() {
            return Err(Error::Config(
                "no upstream: say whom to forward to, HOST:PORT".to_owned(),
            ));
        }
        if self
            .wait
            .is_some_and(|wait| wait < Duration::from_millis(1))
        {
            return Err(Error::Config(
                "upstream wait below 1 ms: off tries each once".to_owned(),
            ));
        }
        self.addresses
            .iter()
            .try_for_each(|address| self.dial(address).check())
    }

    /// One of them, as whom to dial.
    pub(crate) fn dial(&self, address: &Address) -> Dial {
        Dial {
            connect_timeout: self.connect_timeout,
            backoff: self.backoff,
            #[cfg(feature = "tls")]
            tls: self.tls.clone(),
            ..Dial::new(address.clone())
        }
    }

    /// What each of them means now, names resolved, which may take as long as the system's resolver does.
    ///
    /// # Errors
    /// A name that has no address, at least not now.
    pub fn resolve(&self) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        for address in &self.addresses {
            let resolved = address.resolve().map_err(Error::resolving(address))?;
            endpoints.extend(resolved);
        }
        Ok(endpoints)
    }

    /// Refuses a loop, as far as it can be seen: an upstream that is one of `listeners`, so that each connection would
    /// make another one. Only names with a listener's port are resolved, so nearly never one.
    ///
    /// # Errors
    /// The upstream, and the listener that it is.
    pub fn refuse_loop(&self, listeners: &[Endpoint]) -> Result<(), Error> {
        for address in &self.addresses {
            if let Address::Host(_, port) = address
                && !listeners
                    .iter()
                    .filter_map(Endpoint::tcp)
                    .any(|listener| listener.port() == *port)
            {
                continue;
            }
            // What has no address now can be no loop now.
            let resolved = address.resolve().unwrap_or_default();
            if let Some((upstream, listener)) = find_loop(&resolved, listeners, is_own) {
                let shown = upstream.to_string();
                let named = address.to_string();
                let meant = if shown == named {
                    shown
                } else {
                    format!("{named} ({shown})")
                };
                return Err(Error::Config(format!(
                    "cannot forward to {meant}: this server itself listens there, on {listener}"
                )));
            }
        }
        Ok(())
    }
}

/// The first upstream that would be accepted by one of `listeners`, and by which. `is_own` says whether an address is one
/// of this host's.
fn find_loop<'a>(
    upstreams: &'a [Endpoint],
    listeners: &'a [Endpoint],
    is_own: impl Fn(SocketAddr) -> bool,
) -> Option<(&'a Endpoint, &'a Endpoint)> {
    upstreams.iter().find_map(|upstream| {
        let listener =
            listeners
                .iter()
                .find(|listener| match (upstream.tcp(), listener.tcp()) {
                    (Some(upstream), Some(listener)) => catches(listener, upstream, &is_own),
                    _ => upstream == *listener || is_same_path(upstream, listener),
                })?;
        Some((upstream, listener))
    })
}

/// Whether `listener` accepts what is dialled as `upstream`.
fn catches(
    listener: SocketAddr,
    upstream: SocketAddr,
    is_own: impl Fn(SocketAddr) -> bool,
) -> bool {
    if listener.port() != upstream.port() {
        return false;
    }
    // To dial no address in particular is to dial this host (ip(7)).
    let dialled = match upstream.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    match listener.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() && dialled.is_ipv6() => false,
        // Every address, and that of IPv6 both families.
        ip if ip.is_unspecified() => dialled.is_loopback() || is_own(upstream),
        ip => ip == dialled,
    }
}

/// Whether both are Unix sockets under one path, however it is spelled.
fn is_same_path(upstream: &Endpoint, listener: &Endpoint) -> bool {
    let (Endpoint::Unix(upstream), Endpoint::Unix(listener)) = (upstream, listener) else {
        return false;
    };
    plain(upstream).is_some_and(|upstream| Some(upstream) == plain(listener))
}

/// A path without links and detours; of a socket that is not there yet, its folder's.
fn plain(path: &Path) -> Option<PathBuf> {
    let whole = path.canonicalize();
    whole.ok().or_else(|| {
        let folder = match path.parent()? {
            folder if folder.as_os_str().is_empty() => Path::new("."),
            folder => folder,
        };
        Some(folder.canonicalize().ok()?.join(path.file_name()?))
    })
}

/// Whether an address is one of this host's, as far as the routing table tells: what goes to an own address comes from
/// it. Connecting a UDP socket sends nothing (connect(2)).
fn is_own(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip().to_canonical() == address.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `upstream` leads back to `listener`, on a host that has 10.0.0.1 and `fd00::1`.
    fn loops(upstream: &str, listener: &str) -> bool {
        let own: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let upstream = [upstream.parse().unwrap()];
        let listener = [listener.parse().unwrap()];
        find_loop(&upstream, &listener, |address| own.contains(&address.ip())).is_some()
    }

    #[test]
    fn the_listener_itself_is_a_loop() {
        for same in ["127.0.0.1:7", "[::1]:7", "10.0.0.1:7", "unix:/x", "unix:@x"] {
            assert!(loops(same, same), "{same}");
        }
        assert!(loops("[::ffff:127.0.0.1]:7", "127.0.0.1:7"));
    }

    #[test]
    fn a_listener_on_every_address_catches_what_is_dialled_to_this_host() {
        for upstream in [
            "127.0.0.1:7",
            "127.9.9.9:7",
            "[::1]:7",
            "10.0.0.1:7",
            "[fd00::1]:7",
            "0.0.0.0:7",
            "[::]:7",
        ] {
            assert!(loops(upstream, "[::]:7"), "{upstream}");
        }
        for upstream in ["127.0.0.1:7", "10.0.0.1:7", "0.0.0.0:7"] {
            assert!(loops(upstream, "0.0.0.0:7"), "{upstream}");
        }
        assert!(!loops("[::1]:7", "0.0.0.0:7"));
    }

    #[test]
    fn no_address_in_particular_is_this_host() {
        assert!(loops("0.0.0.0:7", "127.0.0.1:7"));
        assert!(loops("[::]:7", "[::1]:7"));
        assert!(!loops("0.0.0.0:7", "10.0.0.1:7"));
    }

    #[test]
    fn others_are_no_loop() {
        for (upstream, listener) in [
            ("127.0.0.1:8", "127.0.0.1:7"),
            ("127.0.0.2:7", "127.0.0.1:7"),
            ("10.0.0.2:7", "[::]:7"),
            ("10.0.0.1:7", "127.0.0.1:7"),
            ("[::1]:7", "127.0.0.1:7"),
            ("unix:/x", "unix:/y"),
            ("unix:/x", "127.0.0.1:7"),
        ] {
            assert!(!loops(upstream, listener), "{upstream} {listener}");
        }
    }

    #[test]
    fn another_spelling_of_a_path_is_the_same_socket() {
        let folder = std::env::temp_dir().join(format!("standfast-loop-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("in")).unwrap();
        let folder = folder.canonicalize().unwrap();
        let shown = folder.display();
        let listener = format!("unix:{shown}/x");
        let spelled = format!("unix:{shown}/in/../x");
        assert!(loops(&spelled, &listener), "not there yet");
        let _there = std::os::unix::net::UnixListener::bind(folder.join("x")).unwrap();
        assert!(loops(&spelled, &listener));
        std::os::unix::fs::symlink("../x", folder.join("in/link")).unwrap();
        assert!(loops(&format!("unix:{shown}/in/link"), &listener));
        assert!(!loops(&format!("unix:{shown}/in/x"), &listener));
        assert!(!loops(&format!("unix:{shown}/none/x"), &listener));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn own_addresses_are_told_from_others() {
        assert!(is_own("127.0.0.1:7".parse().unwrap()));
        // Set aside for documentation (RFC 5737): nobody's.
        assert!(!is_own("192.0.2.1:7".parse().unwrap()));
    }

    #[test]
    fn a_loop_is_refused_by_name() {
        let refused = |upstream: &str| {
            let upstreams = ForwardOptions::new(vec![upstream.parse().unwrap()]);
            let listeners = ["[::]:7".parse().unwrap()];
            upstreams
                .refuse_loop(&listeners)
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            refused("127.0.0.1:7").unwrap_err(),
            "cannot forward to 127.0.0.1:7: this server itself listens there, on [::]:7"
        );
        let named = refused("localhost:7").unwrap_err();
        assert!(
            named.starts_with("cannot forward to localhost:7 ("),
            "{named}"
        );
        assert_eq!(refused("localhost:8"), Ok(()));
    }

    #[test]
    fn what_nobody_could_forward_to_is_refused() {
        let refused = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| text.parse().unwrap());
            let error = ForwardOptions::new(addresses.collect())
                .check()
                .unwrap_err();
            error.to_string()
        };
        for (addresses, hint) in [
            (&[][..], "no upstream"),
            (&[":80"], "names no server"),
            (&["127.0.0.1:80", "fd:3"], "for servers"),
            (&["systemd"], "for servers"),
            (&["localhost:0"], "port 0"),
        ] {
            let error = refused(addresses);
            assert!(error.contains(hint), "{addresses:?}: {error}");
        }
        let none = ForwardOptions {
            wait: Some(Duration::ZERO),
            ..ForwardOptions::new(vec!["127.0.0.1:7".parse().unwrap()])
        };
        assert!(none.check().is_err());
    }
}
