//! A server with a keeper: listens with the sockets that the keeper has, and gives it copies of all that it listens with.

use std::io;

use super::Server;
use super::metrics::{self, Lent};
use super::takeover::{Meant, Refused, assemble};
use crate::config::Config;
use crate::error::Error;
use crate::inspect::ListenerInfo;
use crate::listen::listener;
use crate::os::kept::Kept;

impl Server {
    /// A server that takes over from nobody, with the sockets that a keeper has.
    pub(super) fn afresh(config: &Config) -> Result<(Self, Lent), Error> {
        let server = Self::open_kept(config)?;
        let keeper = config.keeper.as_ref();
        if let Some(remains) = keeper.and_then(|keeper| keeper.remains.as_ref()) {
            server.handle.shared.go_on_after_a_crash(remains);
        }
        let lent = metrics::kept(config, &server.addresses);
        Ok((server, lent))
    }

    fn open_kept(config: &Config) -> Result<Self, Error> {
        let kept = config.keeper.iter().flat_map(|keeper| &keeper.kept);
        let kept = kept.filter_map(|kept| Some((listener::named(&kept.socket)?, kept)));
        let kept: Vec<_> = kept.collect();
        if kept.is_empty() {
            return Self::open(config);
        }
        let failed = |source| Error::Start {
            what: "go on listening",
            source,
        };
        let listeners = kept.iter().map(|(address, _)| ListenerInfo {
            address: address.clone(),
            inherited_as: None,
            service: String::new(),
            accepted: 0,
            open: 0,
            closed: Vec::new(),
        });
        let listeners: Vec<_> = listeners.collect();
        let Meant {
            wanted,
            services,
            memory,
        } = Meant::by(config, &listeners)?;
        let given = kept.iter().map(|(address, kept)| {
            let copy = kept.socket.try_clone().map_err(failed)?;
            Ok((address.clone(), copy))
        });
        let given = given.collect::<Result<_, Error>>()?;
        let (listeners, _) = assemble(wanted, given, true).map_err(|refused| match refused {
            Refused::Ours(error) => error,
            Refused::Theirs(why) => failed(io::Error::other(why)),
        })?;
        for listener in &listeners {
            let kept = kept
                .iter()
                .find(|(address, _)| *address == listener.address);
            if let (Some(file), Some((_, kept))) = (&listener.file, kept) {
                kept.give_path(file).map_err(failed)?;
            }
        }
        let server = Self::start(listeners, services, config, &memory)?;
        if let Some(worker) = server.workers.first() {
            worker.configure_listeners();
        }
        Ok(server)
    }

    /// Tells a keeper what it is to have, if there is one.
    pub(super) fn keep(&mut self) {
        let shared = &self.handle.shared;
        if shared.takeover.keeper().is_none() {
            return;
        }
        let listening = std::mem::take(&mut self.takeover.kept).into_iter();
        let listening = listening.map(|(socket, file)| Kept::new(socket, file.as_deref()));
        let mut all: Vec<_> = listening.collect();
        all.extend(self.kept_beside());
        match all.into_iter().collect::<io::Result<_>>() {
            Ok(all) => shared.lifecycle.keep(all),
            Err(error) => {
                log::error!(error:%; "the keeper does not get the listening sockets: a crash would close them");
            }
        }
    }
}
