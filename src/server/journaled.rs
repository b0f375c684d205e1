//! Services whose connections go on after a crash with what stands in a journal: who has one, and what was left in another's.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::handle::lifecycle::Lifecycle;
use crate::listen::listener::Listener;
use crate::os::journal::Journal;
use crate::os::kept::Stored;
use crate::service::{AnyService, Left, Survive};
use crate::wire::record::ListenerRecord;

/// What a keeper knows journals by, in front of their numbers.
const NAME: &str = "journal";

/// A service, once for all of its listeners.
pub(super) struct Journaled {
    service: AnyService,
    listeners: Vec<u16>,
    /// For how much there is to be room.
    room: usize,
    journal: Option<Journal>,
    left: Option<Left>,
}

impl Journaled {
    /// Those of the services that have one.
    pub(super) fn of(listeners: &[Listener]) -> Vec<Self> {
        let mut each: Vec<Self> = Vec::new();
        for (at, listener) in (0..).zip(listeners) {
            let service = &listener.settings.service;
            if service.survive() != Survive::Journal {
                continue;
            }
            let room = service.journal_room(listener.settings.limits.buffer);
            match each.iter_mut().find(|one| one.service.is_same(service)) {
                Some(same) => {
                    same.listeners.push(at);
                    same.room = same.room.max(room);
                }
                None => each.push(Self {
                    service: service.clone(),
                    listeners: vec![at],
                    room,
                    journal: None,
                    left: None,
                }),
            }
        }
        each
    }

    /// Makes it, with places for so many connections; a keeper has a copy of it from here on.
    ///
    /// # Errors
    /// The system has no descriptors or no address space; or the keeper does not hear it.
    pub(super) fn make(
        &mut self,
        listeners: &[ListenerRecord],
        connections: usize,
        keeper: &Arc<dyn Lifecycle>,
    ) -> io::Result<()> {
        let its = self.listeners.iter();
        let its = its.filter_map(|at| listeners.get(usize::from(*at)));
        let its: Vec<_> = its.collect();
        let about = postcard::to_stdvec(&its).map_err(io::Error::other)?;
        let journal = Journal::new(&about, connections, self.room)?;
        let number = self.listeners.first().copied().unwrap_or(0);
        keeper.store(&format!("{NAME}-{number}"), &[journal.file().as_fd()])?;
        self.journal = Some(journal);
        Ok(())
    }

    /// Looks among what a former server has `stored` for what that has left to this one. `living`: by listener, the connections
    /// that go on.
    pub(super) fn look(
        &mut self,
        stored: &[Arc<Stored>],
        listeners: &[ListenerRecord],
        living: &[HashSet<u64>],
    ) {
        let its = |record: &ListenerRecord| {
            let mut ours = self.listeners.iter();
            ours.any(|at| listeners.get(usize::from(*at)) == Some(record))
        };
        for one in stored {
            let is_one = one.name.split('-').next() == Some(NAME);
            let ([file], true) = (&one.descriptors[..], is_one) else {
                continue;
            };
            let found = file.try_clone().map_err(|error| error.to_string());
            let found = found.and_then(Journal::found).and_then(|(journal, about)| {
                let records: Result<Vec<ListenerRecord>, _> = postcard::from_bytes(&about);
                Ok((journal, records.map_err(|error| error.to_string())?))
            });
            match found {
                Ok((journal, records)) if records.iter().any(its) => {
                    let each = self.listeners.iter();
                    let each = each.filter_map(|at| living.get(usize::from(*at)));
                    let living = each.flatten().copied().collect();
                    self.left = Some(Left { journal, living });
                    return;
                }
                Ok(_) => {}
                Err(error) => {
                    log::error!(error = error.as_str(); "cannot go on with what the former server had");
                }
            }
        }
    }

    /// The service has it.
    pub(super) fn give(self) {
        if let Some(journal) = self.journal {
            self.service.keep_journal(journal, self.left);
        }
    }
}
