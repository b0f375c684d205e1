//! A connection into a [`Record`], and out of it.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::close::CloseReason;
use crate::connection::Connection;
use crate::deadline::Moment;
use crate::handoff::record::{Arrival, Piece, Record, Update};
use crate::io::{Io, Pending};
use crate::reap::Progress;
use crate::service::{AnyService, Exported};

/// The longest state of a service that travels.
const LONGEST_STATE: usize = 64 * 1024;

impl Connection {
    /// What the kernel does not keep of this connection, but for its bytes. `None`: it cannot leave, because it is
    /// ending, or because its service says so.
    pub(crate) fn export(&self, service: &AnyService, now: Moment) -> Option<Record> {
        let io = &self.io;
        let pending = io.pending.as_deref();
        if io.closing
            || pending.is_some_and(|pending| pending.verdict.is_some() || pending.quota.is_some())
        {
            return None;
        }
        let exported = catch_unwind(AssertUnwindSafe(|| service.export(self.state())));
        let state = exported.unwrap_or(None)?;
        if state.bytes.len() > LONGEST_STATE {
            return None;
        }
        let until = |then: Moment| (then != Moment::NEVER).then(|| micros(then.since(now)));
        let read_until = pending.and_then(|pending| pending.paused).unwrap_or(now);
        let (input_at, input, _) = io.input();
        Some(Record {
            id: io.id,
            silence: micros(read_until.since(io.last_in)),
            shifted: io.shifted || pending.is_some_and(|pending| pending.paused.is_some()),
            read: io.read,
            written: io.written,
            output: io.waiting_output() as u64,
            input_at,
            input: input.len() as u64,
            peer_fin: io.peer_fin,
            fin_sent: io.fin_sent,
            ended: io.ended,
            finishing: io
                .finishing
                .and_then(|reason| u8::try_from(reason as usize).ok()),
            failed: pending.and_then(|pending| pending.failed),
            progress: pending
                .and_then(|pending| pending.progress)
                .map(|progress| (progress.acknowledged, micros(now.since(progress.since)))),
            watch: until(io.watch),
            linger: pending.and_then(|pending| pending.linger).and_then(until),
            state_schema: state.schema,
            state: state.bytes,
        })
    }

    /// A connection as it came, but for its bytes.
    ///
    /// # Errors
    /// In words, what its service makes of the state.
    pub(crate) fn import(
        arrival: &Arrival,
        socket: OwnedFd,
        service: &AnyService,
        now: Moment,
    ) -> Result<Self, String> {
        let record = &arrival.record;
        let opened = now.before(Duration::from_micros(arrival.age));
        let io = Io::new(socket, record.id, arrival.peer, arrival.listener, opened);
        let mut connection = Self::with_state(io, service.import(&exported(record))?);
        connection.io.restore(record, now)?;
        Ok(connection)
    }

    /// The same connection as it is now. Answers whether more of its bytes are to come.
    pub(crate) fn update(
        &mut self,
        update: &Update,
        service: &AnyService,
        now: Moment,
    ) -> Result<bool, String> {
        let record = &update.record;
        self.set_state(service.import(&exported(record))?);
        self.io.restore(record, now)?;
        self.io.take_bytes(update)
    }
}

fn exported(record: &Record) -> Exported {
    Exported {
        schema: record.state_schema,
        bytes: record.state.clone(),
    }
}

impl Arrival {
    pub(crate) fn of(io: &Io, now: Moment, record: Record) -> Self {
        Self {
            listener: io.listener,
            peer: io.peer,
            age: micros(now.since(io.opened)),
            record,
        }
    }
}

impl Io {
    /// Whether it has bytes that the kernel does not keep.
    pub(crate) fn holds_bytes(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| !pending.outbox.is_empty() || !pending.kept.is_empty())
    }

    /// Output that waits, in two pieces, and the position of its first byte.
    pub(crate) fn output(&self) -> (u64, &[u8], &[u8]) {
        let pieces = self.pending.as_ref().map(|pending| pending.outbox.pieces());
        let (front, back) = pieces.unwrap_or_default();
        (self.written, front, back)
    }

    /// Input that the service left, in the same form.
    pub(crate) fn input(&self) -> (u64, &[u8], &[u8]) {
        match &self.pending {
            Some(pending) if !pending.kept.is_empty() => (pending.kept_at, &pending.kept, &[]),
            _ => (self.read, &[], &[]),
        }
    }

    /// Everything but the bytes as `record` has it; of the bytes it has already those stay that still wait.
    fn restore(&mut self, record: &Record, now: Moment) -> Result<(), String> {
        let ago = |micros| now.before(Duration::from_micros(micros));
        let within = |micros| now.after(Duration::from_micros(micros));
        let former = (self.written, self.pending.take());
        self.last_in = ago(record.silence);
        self.shifted = record.shifted;
        self.read = record.read;
        self.written = record.written;
        self.peer_fin = record.peer_fin;
        self.fin_sent = record.fin_sent;
        self.ended = record.ended;
        self.finishing = match record.finishing {
            None => None,
            Some(number) => Some(
                *CloseReason::ALL
                    .get(usize::from(number))
                    .ok_or("a connection with an unknown reason")?,
            ),
        };
        self.watch = record.watch.map_or(Moment::NEVER, within);
        // An edge came to the old process, or comes to us: looking costs one read.
        self.readable = !record.peer_fin;
        self.read_on = self.readable;
        if let (written, Some(former)) = former {
            self.keep_bytes(former, written, record);
        }
        if let Some(errno) = record.failed {
            self.pending().failed = Some(errno);
        }
        if let Some((acknowledged, ago_micros)) = record.progress {
            self.pending().progress = Some(Progress {
                acknowledged,
                since: ago(ago_micros),
            });
        }
        if let Some(left) = record.linger {
            self.pending().linger = Some(within(left));
        }
        Ok(())
    }

    /// Keeps of the bytes it had in `former` what `record` says still waits.
    fn keep_bytes(&mut self, former: Box<Pending>, written: u64, record: &Record) {
        let mut outbox = former.outbox;
        let gone = record.written.saturating_sub(written);
        outbox.advance(
            outbox
                .len()
                .min(usize::try_from(gone).unwrap_or(usize::MAX)),
        );
        if record.output > 0 && !outbox.is_empty() {
            self.pending().outbox = outbox;
        }
        let mut kept = former.kept;
        let gone = record.input_at.saturating_sub(former.kept_at);
        kept.drain(..kept.len().min(usize::try_from(gone).unwrap_or(usize::MAX)));
        if record.input > 0 && !kept.is_empty() {
            let pending = self.pending();
            pending.kept = kept;
            pending.kept_at = record.input_at;
            pending.offer = true;
        }
    }

    /// Takes in what comes of its bytes, in order. Answers whether more are to come.
    ///
    /// # Errors
    /// Bytes out of order, or more than there are.
    fn take_bytes(&mut self, update: &Update) -> Result<bool, String> {
        let Update {
            record,
            output,
            input,
        } = update;
        let behind = |piece: &Piece, end: u64| {
            if piece.bytes.is_empty() || piece.at == end {
                Ok(end + piece.bytes.len() as u64)
            } else {
                Err("a piece of a connection's bytes out of order".to_owned())
            }
        };
        let written = self.written;
        let output_end = behind(output, written + self.waiting_output() as u64)?;
        let kept = self
            .pending
            .as_ref()
            .map_or(0, |pending| pending.kept.len());
        let input_end = behind(input, record.input_at.saturating_add(kept as u64))?;
        if output_end > record.output_end() || input_end > record.input_end() {
            return Err("more bytes than the connection has".to_owned());
        }
        if !output.bytes.is_empty() {
            self.pending().outbox.push(&output.bytes);
        }
        if !input.bytes.is_empty() {
            let pending = self.pending();
            pending.kept.extend_from_slice(&input.bytes);
            pending.kept_at = record.input_at;
            pending.offer = true;
        }
        Ok(output_end < record.output_end() || input_end < record.input_end())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
