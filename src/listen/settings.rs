//! From a [`Listen`] to what it means.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::config::{AcceptRate, Listen, WhenFull};
use crate::error::Error;
use crate::io::door::Door;
use crate::io::tls::Server;
use crate::listen::access::{Access, Proxies};
use crate::listen::admission::{Admission, Limit};
use crate::liveness::multipath;
use crate::liveness::reap::Limits;
use crate::liveness::sockopt::SocketOptions;
use crate::memory::Memory;
use crate::os::socket_file::Permit;
use crate::os::users;
use crate::service::AnyService;
use crate::time::deadline::Moment;

/// A [`Listen`] as meant: what all connections of its listeners share.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) service: AnyService,
    pub(crate) options: SocketOptions,
    pub(crate) limits: Limits,
    pub(super) mptcp: bool,
    pub(crate) when_full: WhenFull,
    pub(crate) access: Access,
    pub(crate) admission: Admission,
    pub(crate) accept_rate: Option<AcceptRate>,
    pub(crate) proxies: Option<Proxies>,
    pub(crate) tls: Option<Server>,
    /// Who may connect to which Unix sockets.
    permits: Vec<(PathBuf, Permit)>,
}

impl Settings {
    /// Checks what `listen` asks and fills in what it left open. `total` and `memory`: the limits of the whole server.
    pub(crate) fn new(listen: &Listen, total: &Arc<Limit>, memory: &Memory) -> Result<Self, Error> {
        if listen.buffer == 0 {
            let what = "buffer is 0: no output could ever wait";
            return Err(Error::Config(what.to_owned()));
        }
        for (name, time) in [
            ("read timeout", listen.read_timeout),
            ("write timeout", listen.write_timeout),
            ("half-close timeout", listen.half_close_timeout),
            ("age", listen.max_age),
        ] {
            if time.is_some_and(|time| time < Duration::from_millis(1)) {
                let what = format!("{name} below 1 ms: nobody could meet it");
                return Err(Error::Config(what));
            }
        }
        let options =
            SocketOptions::resolve(listen.keepalive, listen.dead_after, listen.user_timeout)?;
        Ok(Self {
            service: listen.service.clone(),
            options,
            limits: Limits {
                read_timeout: listen.read_timeout,
                dead_after: options.bound(),
                write_timeout: listen.write_timeout,
                slowest_reader: listen.slowest_reader,
                half_close_timeout: listen.half_close_timeout,
                max_age: listen.max_age,
                buffer: memory.buffer(listen.buffer),
            },
            mptcp: listen.mptcp && multipath::lacks().is_none(),
            when_full: listen.when_full,
            access: Access::new(&listen.allow, &listen.deny),
            accept_rate: listen.accept_rate,
            proxies: listen.accept_proxy.as_ref().map(Proxies::new).transpose()?,
            #[cfg(feature = "tls")]
            tls: listen.tls.clone(),
            #[cfg(not(feature = "tls"))]
            tls: None,
            admission: Admission::new(
                Limit::new(listen.max_conns.map_or(usize::MAX, usize::from)),
                Arc::clone(total),
                listen.max_conns_per_ip.map(usize::from),
                listen.ip_prefix,
            )
            .paced(listen.accept_rate_per_ip),
            permits: permits(listen)?,
        })
    }

    /// What its clients have to do before a service hears of them, if they do.
    pub(crate) fn handshake(&self, now: Moment) -> Option<Door> {
        let tls = self.tls.as_ref()?;
        Some(Door::Handshake(now.after(tls.handshake_timeout())))
    }

    pub(super) fn permit(&self, path: &Path) -> Permit {
        let mut permits = self.permits.iter();
        let permit = permits.find(|(of, _)| of == path);
        permit.map_or_else(Permit::default, |(_, permit)| *permit)
    }
}

/// Who may connect to which Unix sockets, where that was said.
fn permits(listen: &Listen) -> Result<Vec<(PathBuf, Permit)>, Error> {
    let mut permits = Vec::new();
    for address in &listen.addresses {
        let Address::Unix(path, ownership) = address else {
            continue;
        };
        let wrong = |source: io::Error| Error::Config(format!("{address}: {source}"));
        let named = |name: &Option<String>, number: fn(&str) -> io::Result<u32>| {
            name.as_deref().map(number).transpose()
        };
        let permit = Permit {
            mode: ownership.mode,
            owner: named(&ownership.owner, users::uid).map_err(wrong)?,
            group: named(&ownership.group, users::gid).map_err(wrong)?,
        };
        permits.push((std::path::absolute(path).map_err(wrong)?, permit));
    }
    Ok(permits)
}
