//! A connection into a [`Record`], and out of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::connection::Connection;
use crate::io::Is;
use crate::io::door::Door;
use crate::io::end::Carried;
use crate::io::marks::Mark;
use crate::io::{Far, Io, Pending, Terms, Up};
use crate::liveness::close::CloseReason;
use crate::liveness::reap::Progress;
use crate::memory::{Memory, WaitingKind};
use crate::service::{AnyService, Exported};
use crate::time::deadline::Moment;
use crate::wire::record::{AT_DOOR, Arrival, AtDoor, Piece, Record, Secret, Update};

/// The longest state of a service that travels.
const LONGEST_STATE: usize = 64 * 1024;

/// The most descriptors that travel beside one connection's.
pub(crate) const MOST_ALONG: usize = 4;

impl Connection {
    /// What the kernel does not keep of this connection, but for its bytes. `None`: it cannot leave, because it is
    /// ending, or because its service says so.
    pub(crate) fn export(&self, service: &AnyService, now: Moment) -> Option<Record> {
        let io = &self.io;
        if io.marks.has(Mark::Closing)
            || !io.is_carriable()
            || io.travels_along().count() > MOST_ALONG
        {
            return None;
        }
        let far = match io.far() {
            Some(Far::Up(up)) if up.io.is_decided() => return None,
            Some(Far::Up(up)) => Some(Box::new((up.io.peer(), up.io.record(now)))),
            _ => None,
        };
        let state = match io.door() {
            Some(door) => AtDoor::of(io, door, now)?.exported(),
            None => {
                let exported = catch_unwind(AssertUnwindSafe(|| service.export(self.state())));
                exported.unwrap_or(None).filter(|it| it.schema != AT_DOOR)?
            }
        };
        let record = io.record(now);
        if state.bytes.len() > LONGEST_STATE {
            return None;
        }
        Some(Record {
            dialing: io.is_dialing(),
            far,
            state_schema: state.schema,
            state: state.bytes,
            ..record
        })
    }

    /// As [`export`](Self::export), for a service that begins anew with it. `None`: it cannot, because it is ending or has
    /// more than its bytes.
    pub(crate) fn export_afresh(&self, now: Moment) -> Option<Record> {
        let io = &self.io;
        let is_more = io.is(Is::GivenAway) || io.far().is_some() || !io.watched().is_empty();
        if io.marks.has(Mark::Closing) || !io.is_carriable() || is_more {
            return None;
        }
        let record = io.record(now);
        let exported = AtDoor::of(io, io.door().unwrap_or(Door::Anew), now)?.exported();
        Some(Record {
            // The end of the input is news to it.
            ended: record.ended && record.finishing.is_some(),
            alarm: None,
            state_schema: exported.schema,
            state: exported.bytes,
            ..record
        })
    }

    /// As [`export`](Self::export), of one that its service is just to hear of.
    pub(crate) fn export_unheard(&self, now: Moment) -> Record {
        let exported = AtDoor::Unheard.exported();
        Record {
            state_schema: exported.schema,
            state: exported.bytes,
            ..self.io.record(now)
        }
    }

    /// A connection as it came, but for its bytes.
    ///
    /// # Errors
    /// In words, what its service makes of the state.
    pub(crate) fn import(
        arrival: &Arrival,
        socket: OwnedFd,
        along: Vec<OwnedFd>,
        (service, terms): (&AnyService, &Arc<Terms>),
        now: Moment,
    ) -> Result<Self, String> {
        let record = &arrival.record;
        let opened = now.before(Duration::from_micros(arrival.age));
        let io = Io::new(socket, record.id, arrival.peer, arrival.listener, opened);
        let mut connection = Self::unheard(io);
        connection.restore(record, service, now)?;
        let mut along = along.into_iter();
        if let Some(far) = &record.far {
            let socket = along.next().ok_or("a far side without its socket")?;
            let mut io = Io::new(socket, record.id, far.0, arrival.listener, opened);
            io.restore(&far.1, false, now)?;
            let terms = Arc::clone(terms);
            connection.io.set_far(Far::Up(Up { io, terms }));
        }
        if along.len() > 0 {
            connection.io.watched_mut().descriptors = along.collect();
        }
        connection.io.restore_dialing(record);
        connection.io.set_aside(record, &terms.memory)?;
        if let (Some(far), Some(up)) = (&record.far, connection.io.far_up()) {
            up.io.set_aside(&far.1, &terms.memory)?;
        }
        connection.io.restore_pair();
        Ok(connection)
    }

    /// The same connection as it is now. Answers whether more of its bytes are to come.
    pub(crate) fn update(
        &mut self,
        update: &Update,
        (service, terms): (&AnyService, &Terms),
        now: Moment,
    ) -> Result<bool, String> {
        let record = &update.record;
        self.restore(record, service, now)?;
        self.io.restore_dialing(record);
        let mut more = self
            .io
            .take_bytes(record, &update.output, &update.input, terms)?;
        if let (Some(far), Some(up)) = (&record.far, self.io.far_up()) {
            up.io.restore(&far.1, false, now)?;
            more |= up
                .io
                .take_bytes(&far.1, &update.far, &Piece::default(), terms)?;
        }
        self.io.restore_pair();
        Ok(more)
    }
}

impl Connection {
    /// What its service knows of it, or that it waits at the door, and how its socket stands.
    fn restore(
        &mut self,
        record: &Record,
        service: &AnyService,
        now: Moment,
    ) -> Result<(), String> {
        if record.state_schema != AT_DOOR {
            self.set_state(service.import(&exported(record))?);
            return self.io.restore(record, service.hears_out(), now);
        }
        let at_door = AtDoor::decode(&record.state)?;
        self.io.restore(record, service.hears_out(), now)?;
        // What is behind the bytes of a header tells an event.
        self.io.set(Is::ReadOn, false);
        self.io.wait_at(at_door.door(now), now);
        if let AtDoor::Handshake(_, hello) = at_door {
            self.io.set_hello(hello);
        }
        Ok(())
    }
}

impl AtDoor {
    /// `None`: no other process can go on with it.
    fn of(io: &Io, door: Door, now: Moment) -> Option<Self> {
        Some(match door {
            Door::Header(until) => Self::Header(micros(until.since(now))),
            Door::Turn(at) => Self::Turn(micros(at.since(now))),
            Door::Handshake(until) => {
                Self::Handshake(micros(until.since(now)), io.hello()?.to_vec())
            }
            Door::Unheard => Self::Unheard,
            Door::Anew => Self::Anew,
        })
    }

    fn door(&self, now: Moment) -> Door {
        let after = |micros| now.after(Duration::from_micros(micros));
        match *self {
            Self::Header(left) => Door::Header(after(left)),
            Self::Turn(left) => Door::Turn(after(left)),
            Self::Handshake(left, _) => Door::Handshake(after(left)),
            Self::Unheard => Door::Unheard,
            Self::Anew => Door::Anew,
        }
    }

    fn exported(&self) -> Exported {
        Exported {
            schema: AT_DOOR,
            bytes: self.encode(),
        }
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
            peer: io.peer(),
            dialled: io.dialled(),
            age: micros(now.since(io.opened())),
            // More than that are not exported.
            along: u8::try_from(io.travels_along().count()).unwrap_or(u8::MAX),
            record,
        }
    }
}

impl Io {
    /// The descriptors that go along with the socket's: the far side's, then those that the service watches.
    pub(crate) fn travels_along(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let far = self.far_io().map(Self::descriptor);
        far.into_iter()
            .chain(self.watched().iter().map(AsFd::as_fd))
    }

    /// The far side's output that waits, in the form of [`output`](Self::output).
    pub(crate) fn far_output(&self) -> (u64, &[u8], &[u8]) {
        self.far_io().map_or((0, &[], &[]), Self::output)
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
            Some(pending) if !pending.kept.is_empty() => {
                let (front, back) = pending.kept.pieces();
                (pending.kept_at, front, back)
            }
            _ => (self.read, &[], &[]),
        }
    }

    /// What the kernel does not keep of this socket, but for the bytes and what a service knows.
    fn record(&self, now: Moment) -> Record {
        let pending = self.pending.as_deref();
        let until = |then: Moment| (then != Moment::NEVER).then(|| micros(then.since(now)));
        let read_until = pending.and_then(|pending| pending.stopped).unwrap_or(now);
        let (input_at, front, back) = self.input();
        let end = self.carried();
        Record {
            id: self.id(),
            silence: micros(read_until.since(self.last_in)),
            shifted: self.is(Is::Shifted)
                || pending.is_some_and(|pending| pending.stopped.is_some()),
            read: self.read,
            written: self.written,
            output: self.waiting_output() as u64,
            input_at,
            input: (front.len() + back.len()) as u64,
            peer_fin: end.peer_fin,
            fin_wanted: end.fin_wanted,
            fin_sent: end.fin_sent,
            ended: end.told,
            finishing: end
                .finishing
                .and_then(|reason| u8::try_from(reason as usize).ok()),
            failed: end.write_error,
            progress: pending
                .and_then(|pending| pending.progress)
                .map(|progress| (progress.moved, micros(now.since(progress.since)))),
            look_at: until(self.look_at),
            linger: end.linger.and_then(until),
            given_away: self.is(Is::GivenAway),
            alarm: until(self.alarm()),
            tls: self.saved_tls(false).map(|saved| Secret(saved.to_vec())),
            dialing: false,
            far: None,
            state_schema: 0,
            state: Vec::new(),
        }
    }

    /// Everything but the bytes as `record` has it; of the bytes it has already those stay that still wait.
    fn restore(&mut self, record: &Record, hears_out: bool, now: Moment) -> Result<(), String> {
        let ago = |micros| now.before(Duration::from_micros(micros));
        let within = |micros| now.after(Duration::from_micros(micros));
        let former = (self.written, self.pending.take());
        self.last_in = ago(record.silence);
        self.set(Is::Shifted, record.shifted);
        self.read = record.read;
        self.written = record.written;
        let finishing = match record.finishing {
            None => None,
            Some(number) => Some(
                *CloseReason::ALL
                    .get(usize::from(number))
                    .ok_or("a connection with an unknown reason")?,
            ),
        };
        let end = Carried {
            peer_fin: record.peer_fin,
            fin_wanted: record.fin_wanted,
            fin_sent: record.fin_sent,
            told: record.ended,
            finishing,
            write_error: record.failed,
            linger: record.linger.map(within),
        };
        self.go_on_from(&end, hears_out);
        self.look_at = record.look_at.map_or(Moment::NEVER, within);
        // An edge came to the old process, or comes to us: looking costs one read.
        self.set(Is::Readable, !record.peer_fin);
        self.set(Is::ReadOn, self.is(Is::Readable));
        self.set(Is::GivenAway, record.given_away);
        if let Some(saved) = &record.tls {
            self.restore_tls(&saved.0)?;
        }
        if let (written, Some(mut former)) = former {
            if let Some(far) = former.far.take() {
                self.pending().far = Some(far);
            }
            if let Some(watched) = former.watched.take() {
                self.pending().watched = Some(watched);
            }
            self.keep_bytes(former, written, record);
        }
        if self.watches().is_some() || record.given_away || record.alarm.is_some() {
            self.set_alarm(record.alarm.map_or(Moment::NEVER, within));
            // What was given away goes on with an end decided only while it is recalled.
            self.watched_mut().recalled = record.given_away && finishing.is_some();
        }
        if let Some((moved, ago_micros)) = record.progress {
            self.pending().progress = Some(Progress {
                moved,
                since: ago(ago_micros),
            });
        }
        Ok(())
    }

    /// Its far side is dialled anew if that was under way. One that is connected came with the connection.
    fn restore_dialing(&mut self, record: &Record) {
        if record.dialing {
            self.set_far(Far::Interrupted);
        } else if record.far.is_none() {
            self.take_far();
        }
    }

    /// Keeps of the bytes it had in `former` what `record` says still waits.
    fn keep_bytes(&mut self, former: Box<Pending>, written: u64, record: &Record) {
        let mut outbox = former.outbox;
        if !outbox.is_empty() {
            let gone = record.written.saturating_sub(written);
            outbox.advance(
                outbox
                    .len()
                    .min(usize::try_from(gone).unwrap_or(usize::MAX)),
            );
        }
        if record.output > 0 {
            self.pending().outbox = outbox;
        }
        let mut kept = former.kept;
        let gone = record.input_at.saturating_sub(former.kept_at);
        kept.advance(kept.len().min(usize::try_from(gone).unwrap_or(usize::MAX)));
        if record.input > 0 && !kept.is_empty() {
            let pending = self.pending();
            pending.kept = kept;
            pending.kept_at = record.input_at;
            pending.offer = true;
        }
    }

    /// Sets memory aside for output that is to come. That of all connections comes later, so the budget counts it before
    /// any of them gets room for more.
    ///
    /// # Errors
    /// There is none.
    fn set_aside(&mut self, record: &Record, memory: &Memory) -> Result<(), String> {
        if record.output == 0 {
            return Ok(());
        }
        let needed = usize::try_from(record.output).unwrap_or(usize::MAX);
        let memory = (memory, WaitingKind::Output);
        let reserved = self.pending().outbox.reserve(needed, needed, memory);
        reserved.map_err(|error| error.to_string())
    }

    /// Takes in what comes of its bytes, in order. Answers whether more are to come.
    ///
    /// # Errors
    /// Bytes out of order, or more than there are, or no memory for them.
    fn take_bytes(
        &mut self,
        record: &Record,
        output: &Piece,
        input: &Piece,
        terms: &Terms,
    ) -> Result<bool, String> {
        let behind = |piece: &Piece, end: u64| {
            if piece.bytes.is_empty() || piece.at == end {
                Ok(end + piece.bytes.len() as u64)
            } else {
                Err("a piece of a connection's bytes out of order".to_owned())
            }
        };
        let memory = &terms.memory;
        // Filled to the brim it would all be copied for the next byte; and that of every client in the first turn of all.
        let room = |bytes: u64| {
            let whole = usize::try_from(bytes).unwrap_or(usize::MAX);
            (whole, memory.mark(terms.limits.buffer).max(whole))
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
            let (whole, most) = room(record.output);
            let outbox = &mut self.pending().outbox;
            if outbox.is_empty() {
                // What was set aside is made anew, as large as the old process's: there is nothing in it to be copied.
                outbox.clear();
            }
            let memory = (memory, WaitingKind::Output);
            let reserved = outbox.reserve(whole, most, memory);
            let pushed = reserved.and_then(|()| outbox.push(&output.bytes, most, memory));
            pushed.map_err(|error| error.to_string())?;
        }
        if !input.bytes.is_empty() {
            let pending = self.pending();
            let (_, most) = room(record.input);
            let pushed = pending
                .kept
                .push(&input.bytes, most, (memory, WaitingKind::Input));
            pushed.map_err(|error| error.to_string())?;
            pending.kept_at = record.input_at;
            pending.offer = true;
        }
        Ok(output_end < record.output_end() || input_end < record.input_end())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
