//! The connections that ended last: each worker notes its own.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::address::endpoint::{Endpoint, Peer};
use crate::inspect::{EndedInfo, ListenerInfo};
use crate::liveness::close::{Ending, Errno, Note, Obituary};
use crate::time::deadline::Moment;

/// How many are shown, of all workers.
pub(crate) const SHOWN: usize = 100;

/// What is remembered of one, as it was: put into words for who asks.
#[derive(Debug)]
struct Entry {
    at: Moment,
    id: u64,
    peer: Peer,
    /// Its number.
    listener: u16,
    upstream: Option<Endpoint>,
    ending: Ending,
    note: Option<Note>,
    age: Duration,
    read: u64,
    written: u64,
}

/// The connections of one worker that ended last. Nobody else writes, and who asks reads them seldom: its lock is free.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<VecDeque<Entry>>);

impl Ended {
    /// But for probes: those of a health check would leave no room for clients. Every end pays for this, asked for or not: so
    /// nothing is copied that needs memory.
    pub(crate) fn note(&self, obituary: Obituary<'_>, listener: u16, at: Moment) {
        if obituary.note == Some(Note::Probe) {
            return;
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == SHOWN {
            entries.pop_front();
        }
        entries.push_back(Entry {
            at,
            id: obituary.id,
            peer: obituary.peer,
            listener,
            upstream: obituary.upstream,
            ending: *obituary.ending,
            note: obituary.note,
            age: obituary.age,
            read: obituary.read,
            written: obituary.written,
        });
    }

    /// All of them, with the time each ended at.
    pub(crate) fn show(&self, listeners: &[ListenerInfo], now: Moment) -> Vec<EndedInfo> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = entries.iter().filter_map(|entry| {
            let listener = listeners.get(usize::from(entry.listener))?;
            Some(entry.show(&listener.address, now))
        });
        shown.collect()
    }
}

impl Entry {
    fn show(&self, listener: &Endpoint, now: Moment) -> EndedInfo {
        let said =
            |what: fn(Note) -> Option<&'static str>| self.note.and_then(what).map(str::to_owned);
        let info = self.ending.info;
        EndedInfo {
            id: self.id,
            ago: now.since(self.at),
            peer: self.peer,
            listener: listener.clone(),
            upstream: self.upstream.clone(),
            reason: Some(self.ending.reason),
            limit: said(Note::limit),
            late: said(Note::late),
            header: said(Note::header),
            age: self.age,
            read: self.read,
            written: self.written,
            errno: self.ending.errno.map(|errno| Errno(errno).to_string()),
            probes: info.map(|info| info.probes),
            retransmits: info.map(|info| info.retransmits),
            silent_for: info.map(|info| info.silence),
        }
    }
}
