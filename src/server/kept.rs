//! A server with a keeper: listens with the sockets that the keeper has, and gives it copies of all that it listens with; goes
//! on with the connections of one that crashed, and has its own where the next one finds them.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Server;
use super::metrics::{self, Lent};
use super::takeover::{Meant, Refused, assemble};
use crate::config::Config;
use crate::error::Error;
use crate::handoff::take::Taker;
use crate::inspect::ListenerInfo;
use crate::listen::listener;
use crate::liveness::close::{self, CloseReason, Ending};
use crate::os::kept::{Kept, Stored};
use crate::os::threads;
use crate::service::Survive;
use crate::vault::found::{self, Former, Found};
use crate::vault::{self, Vault};
use crate::wire::record::{ListenerRecord, Update};
use crate::worker::Worker;

/// Connections beyond the limit, which are told so: they have a slot, too.
const SPARE_SLOTS: usize = 64;

impl Server {
    /// A server that takes over from nobody, with the sockets that a keeper has.
    pub(super) fn afresh(config: &Config) -> Result<(Self, Lent), Error> {
        let mut server = Self::open_kept(config)?;
        if let Some(keeper) = &config.keeper {
            let found = server.go_on(&keeper.stored);
            if let Some(remains) = &keeper.remains {
                server.handle.shared.go_on_after_a_crash(remains, &found);
            }
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
            tls: None,
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

    /// Takes in what the server before this one had in its vault, and answers how many connections that are, by listener.
    fn go_on(&mut self, stored: &[Arc<Stored>]) -> Vec<u64> {
        let surviving = &self.takeover.surviving;
        let goes_on = |theirs: &ListenerRecord| {
            let at = surviving.iter().position(|(one, _)| one == theirs)?;
            Some((u16::try_from(at).ok()?, surviving[at].1))
        };
        let formers = found::found(stored, goes_on);
        for former in &formers {
            self.handle.shared.continue_from(former.last_id);
        }
        let shares = share_out(formers, self.workers.len());
        let shares = self.workers.iter_mut().zip(shares).collect();
        let went_on = threads::share("found", shares, |(worker, found)| {
            take_in(worker, found, surviving)
        });
        let mut counts = vec![0; surviving.len()];
        for (at, _) in went_on.iter().flatten() {
            counts[*at] += 1;
        }
        let journals = &mut self.takeover.journals;
        if !journals.is_empty() {
            let mut living = vec![HashSet::new(); surviving.len()];
            for (at, id) in went_on.into_iter().flatten() {
                living[at].insert(id);
            }
            let listeners: Vec<_> = surviving.iter().map(|(record, _)| record.clone()).collect();
            for journaled in journals {
                journaled.look(stored, &listeners, &living);
            }
        }
        let connections: u64 = counts.iter().sum();
        if connections > 0 {
            log::info!(connections; "goes on with connections of the former server");
        }
        counts
    }

    /// Has what connections there are, from here on, where the next server finds them, if this one crashes.
    pub(super) fn keep_connections(&mut self, config: &Config, memory: usize) {
        let surviving = &self.takeover.surviving;
        if !surviving
            .iter()
            .any(|(_, survive)| *survive != Survive::Close)
        {
            return;
        }
        let listeners: Vec<_> = surviving.iter().map(|(record, _)| record.clone()).collect();
        let workers = self.workers.len();
        let allowed = config.connections_allowed();
        let asked = config.max_conns.map_or(allowed, usize::from);
        let connections = allowed.min(asked) + SPARE_SLOTS;
        let lifecycle = &self.handle.shared.lifecycle;
        let mut journals = self.takeover.journals.iter_mut();
        let room = vault::fitting((connections, memory), workers);
        let room = room.and_then(|room| {
            let places = connections.min(room.0 * workers);
            journals.try_for_each(|one| one.make(&listeners, places, lifecycle))?;
            Ok(room)
        });
        let room = match room {
            Ok(room) => room,
            Err(error) => {
                log::warn!(error:%; "a crash would close all connections");
                return;
            }
        };
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let vault = Vault::new((index, workers), &listeners, room, self.clock, lifecycle);
            let vault = vault.and_then(|vault| Ok((vault.buffer()?, vault)));
            match vault {
                Ok((buffer, vault)) => {
                    worker.keep_in(vault, buffer);
                    // Without it the end of this process takes longer, and that is all.
                    let _ = worker.store_events(lifecycle);
                }
                Err(error) => {
                    log::warn!(error:%, worker = index; "a crash would close its connections");
                }
            }
        }
    }

    /// Has services go on with their journals: before they start.
    pub(super) fn give_journals(&mut self) {
        for journaled in std::mem::take(&mut self.takeover.journals) {
            journaled.give();
        }
    }

    /// The connections are this process's: what a keeper has of another's is given up.
    pub(super) fn seal(&mut self) {
        let shared = &self.handle.shared;
        if shared.takeover.keeper().is_none() {
            return;
        }
        for worker in &mut self.workers {
            // What the former server has under way counts as well, for a moment yet: the worker tries again.
            if let Err(error) = worker.seal_vault()
                && !vault::are_too_many(&error)
            {
                log::warn!(error:%; "a crash would close some of the connections");
            }
        }
        if let Err(error) = shared.lifecycle.owns() {
            log::warn!(error:%; "a crash would close all connections");
            self.workers.iter_mut().for_each(Worker::leave_vault);
            return;
        }
        let mut each = self.takeover.surviving.iter();
        let outlives = each.all(|(_, survive)| *survive != Survive::Close)
            && self.workers.iter().all(Worker::is_kept);
        shared.takeover.outlives.store(outlives, Ordering::Release);
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

/// What each of so many workers is to take in: as the former workers had it, unless it would be much more for one than for others.
fn share_out(formers: Vec<Former>, workers: usize) -> Vec<Vec<Found>> {
    let all: usize = formers.iter().map(|former| former.found.len()).sum();
    let each = all / workers.max(1) + 1;
    let fits = |former: &Former| !former.dials && former.found.len() <= each + each / 4;
    if formers.len() == workers && formers.iter().all(fits) {
        return formers.into_iter().map(|former| former.found).collect();
    }
    let shares = (0..workers).map(|_| Vec::with_capacity(each));
    let mut shares: Vec<Vec<Found>> = shares.collect();
    let mut turns = (0..workers).cycle();
    for one in formers.into_iter().flat_map(|former| former.found) {
        // One worker dials, so that upstreams see clients in their order.
        let dials = one.arrival.record.dialing;
        let turn = turns.next().filter(|_| !dials).unwrap_or(0);
        shares[turn].push(one);
    }
    shares
}

/// A worker takes its share of what was found in, and answers the listener and the number of each that goes on.
fn take_in(
    worker: &mut Worker,
    found: Vec<Found>,
    listeners: &[(ListenerRecord, Survive)],
) -> Vec<(usize, u64)> {
    let mut went_on = Vec::with_capacity(found.len());
    worker.expect(found.len());
    let (mut first, mut in_step) = (Vec::new(), Vec::new());
    for one in found {
        let record = &one.arrival.record;
        let (id, peer, at) = (
            record.id,
            one.arrival.peer,
            usize::from(one.arrival.listener),
        );
        let is_first = record.has_to_be_served();
        let was_in_step = one.in_step.then(|| had_input(&one, listeners[at].1));
        match restore(worker, one) {
            Ok(key) => {
                went_on.push((at, id));
                first.extend(is_first.then_some((id, key)));
                in_step.extend(was_in_step.map(|had_input| (key, had_input)));
            }
            Err(why) => {
                let listener = &listeners[at].0.address;
                log::error!(id, peer:%, listener:%, reason:% = CloseReason::Crash, detail = why.as_str(); "closed");
            }
        }
    }
    for (key, had_input) in in_step {
        worker.suspect(key, had_input);
    }
    // What the next server finds is there by then: that is not left for one thread alone.
    worker.flush_vault();
    first.sort_unstable();
    worker.own(first.into_iter().map(|(_, key)| key));
    went_on
}

/// Whether a connection that was being served had input of its own, as far as anybody can say now: its service is given that
/// again, or finds it, or its end, in the socket.
fn had_input(one: &Found, survive: Survive) -> bool {
    let is_given_again = matches!(survive, Survive::Fresh | Survive::State | Survive::Journal);
    let what = PollFlags::IN | PollFlags::RDHUP;
    let mut polled = [PollFd::new(&one.socket, what)];
    !is_given_again
        || !one.input.bytes.is_empty()
        || poll(&mut polled, Some(&Timespec::default())) != Ok(0)
}

/// A connection goes on at that worker. Answers its key.
///
/// # Errors
/// Why it cannot.
fn restore(worker: &mut Worker, one: Found) -> Result<usize, String> {
    if let Some(why) = one.amiss {
        // Somebody else who has its socket keeps it. Else what waits of it elsewhere would have it end as if all were well.
        let sockets = std::iter::once(&one.socket).chain(&one.along);
        for socket in sockets.filter(|_| !one.is_given_away) {
            close::end_shared(socket, &Ending::reset(CloseReason::Crash));
        }
        return Err(why.to_owned());
    }
    let key = worker.import(&one.arrival, one.socket, one.along)?;
    if one.arrival.record.has_bytes() {
        let update = Update {
            record: one.arrival.record,
            output: one.output,
            input: one.input,
            far: one.far,
        };
        let more = worker.update(key, &update);
        let whole = more.and_then(|more| {
            (!more)
                .then_some(())
                .ok_or_else(|| "bytes were lost".to_owned())
        });
        whole.inspect_err(|_| worker.forget(key))?;
    }
    Ok(key)
}
