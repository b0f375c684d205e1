//! Descriptors that are sent anew: those that live, so that those can be given up that do not.

use std::io;

use slab::Slab;

use super::queue::{Alone, Batch};
use super::{REST, Renewal, Vault};
use crate::connection::Connection;
use crate::io::marks::Mark;
use crate::os::fault::may_die;
use crate::time::deadline::Moment;

/// Batches of descriptors that are sent anew in a turn: a fraction of a millisecond, which live clients wait for.
const SLICE: usize = 4;

/// So many sockets are not too many, for few clients and for more of them.
const FEW_PAIRS: usize = 8;
const LIVING_OF_PAIR: usize = 2048;

impl Vault {
    /// Whether more has ended, or stands in more places, than is worth it.
    pub(super) fn is_stale(&self) -> bool {
        let entries: usize = self.pairs.iter().map(|pair| pair.entries).sum();
        let dead = entries.saturating_sub(self.living);
        dead > self.few + self.living / 4
            || self.pairs.len() > FEW_PAIRS + self.living / LIVING_OF_PAIR
    }

    pub(super) fn begin_renewal(&mut self) -> io::Result<()> {
        // What comes meanwhile goes elsewhere.
        let (first, rest, alone) = (self.new_pair()?, self.new_pair()?, self.new_pair()?);
        let former = std::mem::replace(&mut self.alone, Alone::new(alone));
        self.pairs.push(former.pair);
        self.renewal = Some(Renewal {
            pairs: vec![first],
            cursor: 0,
            former: self.pairs.len(),
        });
        self.pairs.push(rest);
        Ok(())
    }

    /// Sends those anew that live of the ones that came alone, and gives up where they waited.
    pub(super) fn put_together(&mut self, connections: &Slab<Connection>) -> io::Result<()> {
        self.alone.keys.sort_unstable();
        self.alone.keys.dedup();
        let mut from = 0;
        while from < self.alone.keys.len() {
            let mut batch = Batch::default();
            let mut to = from;
            while let Some(&key) = self.alone.keys.get(to) {
                if !batch.add(&self.arena, connections, (key, 0)) {
                    break;
                }
                to += 1;
            }
            let full = match self.pairs.last_mut() {
                Some(pair) => batch.put(pair)?,
                None => true,
            };
            if full {
                let pair = self.new_pair()?;
                self.pairs.push(pair);
            } else {
                from = to;
            }
        }
        let pair = self.new_pair()?;
        may_die("vault-gathered");
        let former = std::mem::replace(&mut self.alone, Alone::new(pair));
        self.give_up(&former.pair);
        may_die("vault-gathered-given-up");
        Ok(())
    }

    /// Sends some of those that live anew, and gives the former sockets up once all were.
    pub(super) fn renew(&mut self, connections: &mut Slab<Connection>) -> io::Result<()> {
        let Some(mut renewal) = self.renewal.take() else {
            return Ok(());
        };
        let end = connections.capacity();
        for _ in 0..SLICE {
            if renewal.cursor >= end {
                break;
            }
            let mut batch = Batch::default();
            let mut cursor = renewal.cursor;
            while cursor < end {
                let shared = connections.get(cursor);
                if shared.is_some_and(|one| one.io.marks.has(Mark::Shared))
                    && !batch.add(&self.arena, connections, (cursor, 0))
                {
                    break;
                }
                cursor += 1;
            }
            let put = match renewal.pairs.last_mut() {
                Some(pair) => batch.put(pair),
                None => Ok(true),
            };
            match put {
                Ok(false) => renewal.cursor = cursor,
                Ok(true) => match self.new_pair() {
                    Ok(pair) => renewal.pairs.push(pair),
                    Err(error) => {
                        self.renewal = Some(renewal);
                        return Err(error);
                    }
                },
                Err(error) => {
                    self.renewal = Some(renewal);
                    return Err(error);
                }
            }
        }
        // Who is on the way is in none of the new ones.
        if renewal.cursor < end || !self.arena.moving.is_empty() {
            self.renewal = Some(renewal);
            return Ok(());
        }
        may_die("vault-renewed");
        let later = self.pairs.split_off(renewal.former);
        for former in std::mem::replace(&mut self.pairs, renewal.pairs) {
            self.give_up(&former);
        }
        self.pairs.extend(later);
        may_die("vault-given-up");
        Ok(())
    }

    /// Gives up all that is there, for want of room beside it: the living are sent anew then.
    pub(super) fn begin_anew(&mut self, connections: &Slab<Connection>) {
        let renewed = self.renewal.take().map(|renewal| renewal.pairs);
        let pairs = std::mem::take(&mut self.pairs);
        for pair in pairs.into_iter().chain(renewed.into_iter().flatten()) {
            self.give_up(&pair);
        }
        if let Ok(pair) = self.new_pair() {
            let former = std::mem::replace(&mut self.alone, Alone::new(pair));
            self.give_up(&former.pair);
        }
        self.there.clear();
        self.living = 0;
        let keys = connections.iter().map(|(key, _)| key);
        let living = keys.filter(|key| self.arena.who(*key).is_some());
        self.unsent = living.map(|key| (key, 0)).collect();
    }

    /// A connection has ended whose socket somebody else has yet: nothing here is to hold that for long.
    pub(crate) fn let_go(&mut self, now: Moment) {
        let (at, least) = &mut self.let_go;
        *at = (*at).min(now.max(*least));
    }

    pub(super) fn lets_go(&self, now: Moment) -> bool {
        self.let_go.0 <= now && self.renewal.is_none()
    }

    pub(super) fn begin_letting_go(&mut self, now: Moment) -> io::Result<()> {
        self.begin_renewal()?;
        self.let_go = (Moment::NEVER, now.after(REST));
        Ok(())
    }

    /// When there is something to do, though no connection has anything.
    pub(crate) fn due(&self) -> Moment {
        let (let_go, _) = self.let_go;
        let is_under_way = self.renewal.is_some() || !self.unsent.is_empty();
        let at = if is_under_way {
            Moment::at_start()
        } else {
            let_go
        };
        at.max(self.again)
    }
}
