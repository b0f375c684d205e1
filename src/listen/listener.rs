//! From a [`Listen`] to listening sockets: bound, inherited, or passed by systemd.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use socket2::{Domain, SockRef, Socket, Type};

use crate::address::Address;
use crate::address::endpoint::Endpoint;
use crate::config::Listen;
use crate::error::Error;
use crate::inspect::ListenerInfo;
use crate::listen::settings::Settings;
use crate::liveness::multipath;
use crate::liveness::sockopt;
use crate::os::holder;
use crate::os::inherited;
use crate::os::socket_file::SocketFile;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: OwnedFd,
    pub(crate) address: Endpoint,
    /// The path of a Unix socket, while the listener is open.
    pub(crate) file: Option<Arc<SocketFile>>,
    /// As it was written, where that is all that a successor's settings know of it: `systemd`, `fd:3`.
    pub(crate) inherited_as: Option<String>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) configure: Configure,
}

/// Which accepted sockets get their options one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Configure {
    /// None: they inherit them from the listener, or have none.
    None,
    /// Those that came before the listener had them: until its queue is empty.
    Queued,
    /// Every one.
    Each,
}

impl Configure {
    /// For a listener of this process's own.
    pub(crate) const OWN: Self = if sockopt::INHERITED {
        Self::None
    } else {
        Self::Each
    };
}

/// Opens the listeners of `listen`.
pub(crate) fn open(listen: &Listen, settings: &Arc<Settings>) -> Result<Vec<Listener>, Error> {
    if listen.addresses.is_empty() && listen.sockets.is_empty() {
        return Err(Error::Config("no address to listen on".to_owned()));
    }
    let mut listeners = Vec::new();
    for address in &listen.addresses {
        listeners.extend(open_one(address, listen, settings)?);
    }
    for socket in &listen.sockets {
        listeners.push(given(socket, settings)?);
    }
    let somaxconn = somaxconn();
    if let Some(cap) = somaxconn.filter(|&cap| cap < listen.backlog) {
        log::warn!(
            asked = listen.backlog, allowed = cap;
            "backlog capped by net.core.somaxconn"
        );
    }
    Ok(listeners)
}

/// Opens the listeners of one address.
pub(crate) fn open_one(
    address: &Address,
    listen: &Listen,
    settings: &Arc<Settings>,
) -> Result<Vec<Listener>, Error> {
    match address {
        Address::Fd(fd) => Ok(vec![inherit(address, *fd, settings)?]),
        Address::Systemd(name) => {
            let passed = passed_by_systemd(address, name.as_deref())?;
            let passed = passed.into_iter();
            passed.map(|fd| inherit(address, fd, settings)).collect()
        }
        _ => bind_all(address, listen, settings),
    }
}

/// What caps the backlog, where the system tells.
pub(crate) fn somaxconn() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// How often a port is chosen anew that is free on one address of a name and not on another.
const TRIES: u32 = 16;

fn bind_all(
    address: &Address,
    listen: &Listen,
    settings: &Arc<Settings>,
) -> Result<Vec<Listener>, Error> {
    let resolved = address.resolve().map_err(Error::resolving(address))?;
    let mut tries = 0;
    loop {
        tries += 1;
        match bind_each(address, &resolved, listen, settings) {
            Err(Error::Bind { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse
                    && matches!(address, Address::Host(_, 0))
                    && tries < TRIES => {}
            bound => return bound,
        }
    }
}

/// Binds all that `address` means, to one port where that is to be chosen.
fn bind_each(
    address: &Address,
    resolved: &[Endpoint],
    listen: &Listen,
    settings: &Arc<Settings>,
) -> Result<Vec<Listener>, Error> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut absent = None;
    for one in resolved {
        let first = listeners.first().and_then(|first| first.address.tcp());
        let one = &match (one, first) {
            (Endpoint::Tcp(one), Some(first)) => {
                let mut one = *one;
                one.set_port(first.port());
                one.into()
            }
            _ => one.clone(),
        };
        let opened = match (bind(one, listen, settings), address) {
            (Err(error), Address::Any(port)) if lacks_family(&error) => {
                log::warn!(address:%; "this host has no IPv6, listening on IPv4 only");
                let every = SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port));
                bind(&every.into(), listen, settings)
            }
            (opened, _) => opened,
        };
        match opened {
            Ok(listener) => listeners.push(listener),
            // A name may have addresses of a family this host does not have, as localhost often does.
            Err(error) if resolved.len() > 1 && lacks_family(&error) => absent = Some(error),
            Err(error) => return Err(error),
        }
    }
    match absent {
        Some(error) if listeners.is_empty() => return Err(error),
        Some(error) => log::warn!("{error}: not on this host, left out"),
        None => {}
    }
    Ok(listeners)
}

/// Whether every IPv4 address of this `port` is asked for by an address of its own: `[::]` means those of IPv6 then.
fn has_every_ipv4(listen: &Listen, port: u16) -> bool {
    let every = |address: &Address| match address {
        Address::Host(host, of) => *of == port && host.parse() == Ok(Ipv4Addr::UNSPECIFIED),
        _ => false,
    };
    port != 0 && listen.addresses.iter().any(every)
}

fn lacks_family(error: &Error) -> bool {
    matches!(error, Error::Bind { source, .. } if is_lacking(source))
}

fn is_lacking(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// What [`bind_all`] would make of `resolved`, the endpoints of `address`: those that are listened on, and those that
/// this host does not have, as `lacks` says. Where it has none all are meant: a server that is taken over from may have
/// them.
pub(crate) fn foresee(
    address: &Address,
    resolved: Vec<Endpoint>,
    lacks: impl Fn(&Endpoint) -> bool,
) -> (Vec<Endpoint>, Vec<Endpoint>) {
    match (address, resolved.as_slice()) {
        (Address::Any(port), [every]) if lacks(every) => {
            let every = SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port));
            (vec![every.into()], resolved)
        }
        _ if resolved.iter().all(&lacks) => (resolved.clone(), resolved),
        _ => resolved.into_iter().partition(|one| !lacks(one)),
    }
}

/// Whether this host has no such address: then no port of it can be had either.
pub(crate) fn is_elsewhere(endpoint: &Endpoint) -> bool {
    let Some(address) = endpoint.tcp() else {
        return false;
    };
    let mut any_port = address;
    any_port.set_port(0);
    let tried = Socket::new(Domain::for_address(address), Type::STREAM, None)
        .and_then(|socket| socket.bind(&any_port.into()));
    tried.is_err_and(|error| is_lacking(&error))
}

/// Binds and listens.
pub(crate) fn bind(
    endpoint: &Endpoint,
    listen: &Listen,
    settings: &Arc<Settings>,
) -> Result<Listener, Error> {
    match endpoint {
        Endpoint::Tcp(address) => bind_tcp(*address, listen, settings),
        Endpoint::Unix(_) | Endpoint::Abstract(_) => bind_unix(endpoint, listen, settings),
    }
}

/// A Unix socket's own options are none, so neither are those of its connections; its path is this process's alone.
fn bind_unix(
    endpoint: &Endpoint,
    listen: &Listen,
    settings: &Arc<Settings>,
) -> Result<Listener, Error> {
    let open = || {
        let backlog = i32::try_from(listen.backlog).unwrap_or(i32::MAX);
        let (socket, file) = match endpoint {
            Endpoint::Unix(path) => {
                let file = SocketFile::claim(path, settings.permit(path))?;
                let socket = file.bind(rustix::net::SocketType::STREAM)?;
                rustix::net::listen(&socket, backlog)?;
                (socket, Some(Arc::new(file)))
            }
            other => (abstract_listener(other, backlog)?, None),
        };
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok((socket, file))
    };
    let (socket, file) = open().map_err(|source| Error::Bind {
        address: endpoint.clone(),
        holder: None,
        source,
    })?;
    Ok(Listener {
        socket,
        address: endpoint.clone(),
        file,
        inherited_as: None,
        settings: Arc::clone(settings),
        configure: Configure::None,
    })
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn abstract_listener(endpoint: &Endpoint, backlog: i32) -> io::Result<OwnedFd> {
    let Endpoint::Abstract(name) = endpoint else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let socket = OwnedFd::from(UnixListener::bind_addr(&address)?);
    // A second listen(2) sets the backlog.
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn abstract_listener(_: &Endpoint, _: i32) -> io::Result<OwnedFd> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this system has no abstract names",
    ))
}

/// `SO_REUSEADDR`, so that a restart works past every state its predecessor left behind (socket(7)), options before
/// the first handshake, and a backlog worth the name.
fn bind_tcp(
    address: SocketAddr,
    listen: &Listen,
    settings: &Arc<Settings>,
) -> Result<Listener, Error> {
    let failed = |source: io::Error| {
        let in_use = source.kind() == io::ErrorKind::AddrInUse;
        let holder = in_use.then(|| holder::of(address)).flatten();
        Error::Bind {
            address: address.into(),
            holder,
            source,
        }
    };
    let (socket, multipath) = multipath::or_tcp(address, listen.mptcp).map_err(failed)?;
    socket.set_reuse_address(true).map_err(failed)?;
    if address.is_ipv6() {
        socket
            .set_only_v6(!address.ip().is_unspecified() || has_every_ipv4(listen, address.port()))
            .map_err(failed)?;
    }
    if sockopt::INHERITED {
        let given = settings.options.begin(&socket, multipath);
        given.map_err(|refused| Error::Option {
            option: refused.option,
            source: refused.source,
        })?;
    }
    socket.bind(&address.into()).map_err(failed)?;
    // Two sockets bound with SO_REUSEADDR and not listening yet do not see each other: listen() may say EADDRINUSE.
    socket
        .listen(i32::try_from(listen.backlog).unwrap_or(i32::MAX))
        .map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let local = socket.local_addr().map_err(failed)?;
    Ok(Listener {
        socket: socket.into(),
        address: local.as_socket().unwrap_or(address).into(),
        file: None,
        inherited_as: None,
        settings: Arc::clone(settings),
        configure: Configure::OWN,
    })
}

/// Takes over an inherited listening socket.
fn inherit(address: &Address, fd: RawFd, settings: &Arc<Settings>) -> Result<Listener, Error> {
    if matches!(fd, 1 | 2) {
        return Err(Error::Config(format!(
            "{address} is where this program's own output goes"
        )));
    }
    let claimed = inherited::claim(fd).map_err(|source| Error::Inherit {
        address: address.to_string(),
        source,
    })?;
    foreign(claimed, address.to_string(), settings)
}

/// A listening socket of [`Listen::sockets`].
pub(crate) fn given(socket: &OwnedFd, settings: &Arc<Settings>) -> Result<Listener, Error> {
    let named = named(socket).map_or_else(|| "a given socket".to_owned(), |it| it.to_string());
    match socket.try_clone() {
        Ok(socket) => foreign(socket, named, settings),
        Err(source) => Err(Error::Inherit {
            address: named,
            source,
        }),
    }
}

/// Where a socket listens, if that can be said.
pub(crate) fn named(socket: &OwnedFd) -> Option<Endpoint> {
    Endpoint::of(&SockRef::from(socket).local_addr().ok()?)
}

/// A listening socket that somebody else made. Its options stay as they are: it may be shared with others.
fn foreign(socket: OwnedFd, named: String, settings: &Arc<Settings>) -> Result<Listener, Error> {
    let failed = |source| Error::Inherit {
        address: named.clone(),
        source,
    };
    let not = |what| failed(io::Error::new(io::ErrorKind::InvalidInput, what));
    let socket = Socket::from(socket);
    let socket_ref = SockRef::from(&socket);
    match socket_ref.r#type() {
        Ok(Type::STREAM) => {}
        Ok(_) => return Err(not("not a stream socket")),
        Err(_) => return Err(not("not a socket")),
    }
    if !socket_ref.is_listener().map_err(failed)? {
        return Err(not("a socket, but not listening"));
    }
    let local = socket_ref.local_addr().map_err(failed)?;
    let Some(endpoint) = Endpoint::of(&local) else {
        return Err(not("listening, but neither on TCP nor on a Unix socket"));
    };
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(Listener {
        socket: socket.into(),
        configure: if endpoint.tcp().is_some() {
            Configure::Each
        } else {
            Configure::None
        },
        address: endpoint,
        // Whoever made the socket takes its path away.
        file: None,
        inherited_as: Some(named),
        settings: Arc::clone(settings),
    })
}

/// A listening socket that a predecessor had.
pub(crate) fn taken_over(
    socket: OwnedFd,
    info: &ListenerInfo,
    settings: &Arc<Settings>,
) -> Listener {
    let configure = match (info.address.tcp(), &info.inherited_as) {
        (None, _) => Configure::None,
        // It may be shared with others, so its options stay as they are.
        (Some(_), Some(_)) => Configure::Each,
        (Some(_), None) => Configure::Queued,
    };
    if configure == Configure::Queued {
        multipath::compare(&socket, &info.address, settings.mptcp);
    }
    let file = match &info.address {
        Endpoint::Unix(path) if info.inherited_as.is_none() => {
            let file = SocketFile::inheriting(path, settings.permit(path));
            Some(Arc::new(file))
        }
        _ => None,
    };
    Listener {
        socket,
        address: info.address.clone(),
        file,
        inherited_as: info.inherited_as.clone(),
        settings: Arc::clone(settings),
        configure,
    }
}

/// The descriptors systemd passed to this process under `name`, or all.
fn passed_by_systemd(address: &Address, name: Option<&str>) -> Result<Vec<RawFd>, Error> {
    let failed = |source| Error::Inherit {
        address: address.to_string(),
        source,
    };
    let passed = inherited::passed_by_systemd().map_err(failed)?;
    let chosen: Vec<RawFd> = passed
        .iter()
        .filter(|(_, passed)| name.is_none_or(|name| name == passed))
        .map(|&(fd, _)| fd)
        .collect();
    if chosen.is_empty() {
        let what = match passed.as_slice() {
            [] => "systemd passed no sockets (LISTEN_FDS, LISTEN_PID)".to_owned(),
            names => format!(
                "systemd passed none of that name, only {}",
                names
                    .iter()
                    .map(|(_, name)| name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, what)));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a host without IPv6.
    fn foreseen(address: &str, resolved: &[&str]) -> [Vec<String>; 2] {
        let resolved = resolved.iter().map(|one| one.parse().unwrap());
        let (here, elsewhere) = foresee(&address.parse().unwrap(), resolved.collect(), |one| {
            one.tcp().is_some_and(|address| address.is_ipv6())
        });
        [here, elsewhere].map(|list| list.iter().map(Endpoint::to_string).collect())
    }

    #[test]
    fn what_is_listened_on_without_ipv6_is_known_before() {
        let [here, elsewhere] = foreseen(":7000", &["[::]:7000"]);
        assert_eq!(here, ["0.0.0.0:7000"]);
        assert_eq!(elsewhere, ["[::]:7000"]);
        let [here, elsewhere] = foreseen("localhost:7", &["[::1]:7", "127.0.0.1:7"]);
        assert_eq!(here, ["127.0.0.1:7"]);
        assert_eq!(elsewhere, ["[::1]:7"]);
        let [here, elsewhere] = foreseen("[::1]:7", &["[::1]:7"]);
        assert_eq!(
            (&here[..], &elsewhere[..]),
            (&["[::1]:7".to_owned()][..], &here[..])
        );
        let [here, elsewhere] = foreseen("unix:/x", &["unix:/x"]);
        assert_eq!((here.len(), elsewhere.len()), (1, 0));
        let [here, elsewhere] = foreseen("systemd", &[]);
        assert_eq!((here.len(), elsewhere.len()), (0, 0));
    }
}
