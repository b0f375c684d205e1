//! What is said to the clients: each gets what lies before its place in the feed, or loses what is out of reach.

use std::io::IoSlice;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Hub;
use super::client::{HubClient, Place};
use super::cursor::Cursor;
use super::options::Slow;
use super::rounds::micros;
use crate::os::fault::may_die;
use crate::service::Context;

/// Pieces of the feed that go to a client in one write, at most.
const PIECES: usize = 16;

/// How often it is said that lines are lost.
const REMINDER: Duration = Duration::from_secs(60);

impl Hub {
    /// Writes what the client has not got, as far as the socket takes that: never a part of a line, for the rest of
    /// such a one waits.
    pub(super) fn deliver(&self, client: &mut HubClient, conn: &mut Context<'_>) {
        let own = self.own(conn);
        let until = client.until.unwrap_or(u64::MAX);
        let (ledger, entry) = (self.ledger.get(), client.entry);
        let Some(cursor) = self.catch_up(client, conn, own) else {
            return;
        };
        // What comes meanwhile has a round of its own: no client keeps the others waiting.
        let end = self.feed.end().min(until);
        while conn.waiting() == 0 && !conn.has_failed() && cursor.position() < end {
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let (mut count, mut offered) = (0, 0);
            for (place, stretch) in pieces.iter_mut().zip(cursor.stretches(own, end)) {
                *place = IoSlice::new(stretch);
                count += 1;
                offered += stretch.len();
            }
            if let Some(ledger) = ledger {
                ledger.begins(entry, cursor, conn.output_end());
            }
            let sent = conn.send_vectored(&pieces[..count]);
            may_die("hub-sent");
            let rest = cursor.advance(sent, own);
            if sent < offered
                && let Some(rest) = rest
            {
                let line_end = cursor.block.line_end(rest.start);
                conn.write(&cursor.block.bytes[rest.start..line_end]);
                cursor.at = line_end;
            }
            if let Some(ledger) = ledger {
                ledger.note(entry, cursor, conn.output_end());
                may_die("hub-stands");
            }
        }
    }

    /// Ends the connection once the client has got what it is to get. That stays in the feed until then: a copy for each
    /// of many that leave at once would be more than all that was said.
    pub(super) fn leave(&self, client: &mut HubClient, conn: &mut Context<'_>) {
        let end = self.feed.end();
        let until = client.until.map_or(end, |until| until.min(end));
        client.until = Some(until);
        self.deliver(client, conn);
        let behind = matches!(&client.place, Place::Here(cursor) if cursor.position() < until);
        if behind && !conn.has_failed() {
            return conn.finish_later();
        }
        client.place = Place::Over;
        if client.lost > 0 {
            log::info!(id = conn.id(), peer:% = conn.peer(), lost = client.lost; "a slow client has lost lines");
        }
        conn.finish();
    }

    /// The client's place, which is further on if it was too far behind. `None`: it gets nothing more.
    fn catch_up<'a>(
        &self,
        client: &'a mut HubClient,
        conn: &mut Context<'_>,
        own: Option<u64>,
    ) -> Option<&'a mut Cursor> {
        let mut lost = 0;
        if let Place::Predecessor(position, line) = client.place {
            let cursor;
            (cursor, lost) = self.feed.reader_at(position, line);
            client.place = Place::Here(cursor);
        }
        let Place::Here(cursor) = &mut client.place else {
            return None;
        };
        if cursor.position() < self.feed.oldest() {
            lost += cursor.jump(self.feed.oldest_reader(), own);
        }
        if lost > 0 {
            if self.options.slow == Slow::Disconnect {
                log::info!(id = conn.id(), peer:% = conn.peer(), buffer = self.options.buffer; "disconnected: further behind than the buffer");
                client.place = Place::Over;
                conn.abort();
                return None;
            }
            client.lost += lost;
            if let Some(ledger) = self.ledger.get() {
                ledger.loses(client.entry, client.lost);
            }
            self.note_lost(lost, conn.now());
        }
        match &mut client.place {
            Place::Here(cursor) => Some(cursor),
            _ => None,
        }
    }

    /// Counts lost lines, and says so now and then.
    fn note_lost(&self, lost: u64, now: Duration) {
        let all = self.lost.fetch_add(lost, Ordering::Relaxed) + lost;
        if let Some(ledger) = self.ledger.get() {
            ledger.set_lost(all);
        }
        let (now, said) = (micros(now), self.said.load(Ordering::Relaxed));
        let due = said == 0 || now.saturating_sub(said) >= micros(REMINDER);
        let swap = || {
            let swapped =
                self.said
                    .compare_exchange(said, now, Ordering::Relaxed, Ordering::Relaxed);
            swapped.is_ok()
        };
        if due && swap() {
            log::warn!(lost = all; "slow clients lose lines");
        }
    }
}
