//! A connection into a [`Record`], and out of it.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::net::TcpStream;

use crate::close::CloseReason;
use crate::connection::Connection;
use crate::deadline::Moment;
use crate::handoff::record::{Record, Which};
use crate::io::Io;
use crate::reap::Progress;
use crate::service::{AnyService, Exported};

/// The longest state of a service that travels.
const LONGEST_STATE: usize = 64 * 1024;

impl Connection {
    /// What the kernel does not keep of this connection. `None`: it cannot leave, because it is ending, or because
    /// its service says so.
    pub(crate) fn export(&self, service: &AnyService, now: Moment) -> Option<Record> {
        let io = &self.io;
        let pending = io.pending.as_deref();
        if io.closing
            || pending.is_some_and(|pending| pending.verdict.is_some() || pending.quota.is_some())
        {
            return None;
        }
        let state = service.export(self.state())?;
        if state.bytes.len() > LONGEST_STATE {
            return None;
        }
        let since = |then: Moment| micros(now.since(then));
        let until = |then: Moment| (then != Moment::NEVER).then(|| micros(then.since(now)));
        let read_until = pending.and_then(|pending| pending.paused).unwrap_or(now);
        Some(Record {
            id: io.id,
            listener: io.listener,
            peer: io.peer,
            age: since(io.opened),
            silence: micros(read_until.since(io.last_in)),
            read: io.read,
            written: io.written,
            peer_fin: io.peer_fin,
            fin_sent: io.fin_sent,
            ended: io.ended,
            finishing: io
                .finishing
                .and_then(|reason| u8::try_from(reason as usize).ok()),
            failed: pending.and_then(|pending| pending.failed),
            progress: pending
                .and_then(|pending| pending.progress)
                .map(|progress| (progress.acknowledged, since(progress.since))),
            watch: until(io.watch),
            linger: pending.and_then(|pending| pending.linger).and_then(until),
            outbox: io.waiting_output() as u64,
            kept: io.kept_bytes().len() as u64,
            state_schema: state.schema,
            state: state.bytes,
        })
    }

    /// A connection as `record` has it, but for its bytes.
    ///
    /// # Errors
    /// In words, what its service makes of the state.
    pub(crate) fn import(
        record: &Record,
        stream: TcpStream,
        service: &AnyService,
        now: Moment,
    ) -> Result<Self, String> {
        let io = Io::new(stream, record.id, record.peer, record.listener, now);
        let mut connection = Self::with_state(io, service.import(&exported(record))?);
        connection.io.restore(record, now)?;
        Ok(connection)
    }

    /// The same connection as `record` has it now; its bytes follow.
    pub(crate) fn update(
        &mut self,
        record: &Record,
        service: &AnyService,
        now: Moment,
    ) -> Result<(), String> {
        self.set_state(service.import(&exported(record))?);
        self.io.restore(record, now)
    }
}

fn exported(record: &Record) -> Exported {
    Exported {
        schema: record.state_schema,
        bytes: record.state.clone(),
    }
}

impl Io {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether it has bytes that the kernel does not keep.
    pub(crate) fn holds_bytes(&self) -> bool {
        self.waiting_output() > 0 || !self.kept_bytes().is_empty()
    }

    pub(crate) fn outbox_bytes(&self) -> (&[u8], &[u8]) {
        self.pending
            .as_ref()
            .map_or((&[], &[]), |pending| pending.outbox.pieces())
    }

    pub(crate) fn kept_bytes(&self) -> &[u8] {
        self.pending.as_ref().map_or(&[], |pending| &pending.kept)
    }

    /// Ends the connection although a copy of it lives elsewhere.
    pub(crate) fn end_for_all(&self) {
        // It may have ended by itself.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn restore(&mut self, record: &Record, now: Moment) -> Result<(), String> {
        let ago = |micros| now.before(Duration::from_micros(micros));
        let within = |micros| now.after(Duration::from_micros(micros));
        self.opened = ago(record.age);
        self.last_in = ago(record.silence);
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
        self.pending = None;
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

    /// Takes a piece of its bytes in; pieces come in order.
    ///
    /// # Errors
    /// One that is out of order, or that does not belong.
    pub(crate) fn take_piece(&mut self, which: Which, at: u64, bytes: &[u8]) -> Result<(), String> {
        let written = self.written;
        let pending = self.pending();
        let expected = match which {
            Which::Outbox => written + pending.outbox.len() as u64,
            Which::Kept => pending.kept.len() as u64,
        };
        if at != expected {
            return Err("a piece of a connection's bytes out of order".to_owned());
        }
        match which {
            Which::Outbox => pending.outbox.push(bytes),
            Which::Kept => {
                pending.kept.extend_from_slice(bytes);
                pending.offer = true;
            }
        }
        Ok(())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
