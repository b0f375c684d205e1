//! TLS between a connection's socket and its service: what comes is opened before the service sees it, what it sends is
//! sealed on its way out.
//!
//! Beside the socket's bytes there are three places for them: [`Sealed::torn`], what came and is no whole record;
//! [`Sealed::opened`], what of a record there was no room for; and the outbox, whose bytes are sealed already, so that a
//! takeover carries them as they are. [`Io::read`] counts what services see, [`Io::written`] what the socket takes.

mod dialled;
mod leaves;
#[cfg(control)]
mod saved;

use rustls::AlertDescription;
use std::cell::RefCell;
use std::mem;
use std::ops::Range;

use super::{Io, Pending, Turn};
use crate::inspect::TlsInfo;
use crate::io::Is;
use crate::io::door::Shaken;
use crate::liveness::close::{CloseReason, Ending, Note};
use crate::memory::{Held, WaitingKind};
use crate::tls::{Fault, Greeting, Handshake, LONGEST_RECORD, Opened, Session, Step};

pub(crate) use crate::tls::Tls as Server;
pub(crate) use dialled::Shaking;
#[cfg(control)]
pub(crate) use saved::has_come;

/// What is read, or sealed, at once, bytes.
const BATCH: usize = 64 * 1024;

/// What a record costs besides its length, in bytes of another one: as much time as opening or copying so many takes. Small
/// ones, of which thousands come at once, are read a few at a time.
const RECORD: u64 = 512;

thread_local! {
    /// Where a worker has what came while it is opened.
    static COMES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// TLS on a connection, how far it has come.
#[derive(Debug)]
pub(crate) enum Tls {
    /// What has come of a handshake that has yet to begin.
    Hello(Vec<u8>),
    Handshake(Box<Handshake>),
    /// With a server that was dialled.
    Greeting(Box<Greeting>),
    Sealed(Box<Sealed>),
    /// A session of another process's, which saves it as its last act.
    #[cfg(control)]
    Promised,
}

/// What ends a session from within.
#[derive(Clone, Copy, Debug)]
enum Judged {
    Alert(AlertDescription),
    Fault(Fault),
}

/// What is sealed and opened here.
#[derive(Debug)]
pub(crate) struct Sealed {
    session: Session,
    /// Bytes that came and are no whole record, or one that there was no room for.
    torn: Vec<u8>,
    /// Plaintext for which there was no room.
    opened: Vec<u8>,
    /// The memory of both.
    held: Held,
    /// How much longer what was sealed is than its plaintext, bytes.
    overhead: u64,
    /// What it has cost to open what came, beyond the plaintext of it, bytes.
    surcharge: u64,
    /// The last records that came were small.
    is_fine: bool,
    /// What follows from the last that was opened, once what came before it was seen.
    judged: Option<Judged>,
    /// The end came without a goodbye.
    is_truncated: bool,
    /// Ours is all that the client has not acknowledged.
    goodbye_alone: bool,
    /// How long ours was, bytes, if it was said by this process.
    goodbye: u64,
    named: Named,
    /// Who has signed the client's certificate, if the handshake was made by this process.
    issuer: Option<Box<str>>,
}

/// Who the client is, and whom it wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    /// The name that it asked for.
    asked: Option<Box<str>>,
    /// Whose certificate it has shown.
    client: Option<Box<str>>,
}

impl Sealed {
    fn new(session: Session, torn: Vec<u8>, named: Named) -> Self {
        Self {
            session,
            torn,
            named,
            opened: Vec::new(),
            held: Held::default(),
            overhead: 0,
            surcharge: 0,
            is_fine: false,
            judged: None,
            is_truncated: false,
            goodbye_alone: false,
            goodbye: 0,
            issuer: None,
        }
    }

    /// Whether the next read brings something that has come already.
    fn has_more(&self) -> bool {
        !self.opened.is_empty()
            || self.judged.is_some()
            || !matches!(self.session.whole(&self.torn), Ok(None))
    }
}

impl Pending {
    fn surcharge(&self) -> u64 {
        match &self.tls {
            Some(Tls::Sealed(sealed)) => sealed.surcharge,
            _ => 0,
        }
    }
}

impl Io {
    #[inline]
    fn sealed(&mut self) -> Option<&mut Sealed> {
        match self.pending.as_deref_mut()?.tls {
            Some(Tls::Sealed(ref mut sealed)) => Some(sealed),
            _ => None,
        }
    }

    fn sealed_ref(&self) -> Option<&Sealed> {
        match &self.pending.as_deref()?.tls {
            Some(Tls::Sealed(sealed)) => Some(sealed),
            _ => None,
        }
    }

    /// Whether TLS stands between its socket and its service.
    #[inline]
    pub(crate) fn has_tls(&self) -> bool {
        self.pending.as_deref().is_some_and(|it| it.tls.is_some())
    }

    /// Whether a client at the door has begun its handshake.
    pub(crate) fn is_heard(&self) -> bool {
        let pending = self.pending.as_deref();
        match pending.and_then(|pending| pending.tls.as_ref()) {
            Some(Tls::Hello(hello)) => !hello.is_empty(),
            tls => tls.is_some(),
        }
    }

    /// The memory of what came and is no whole record, or more than there was room for.
    pub(crate) fn held_sealed(&self) -> usize {
        self.sealed_ref().map_or(0, |it| it.held.bytes())
    }

    /// Bytes that have come, and that nobody has seen.
    pub(crate) fn unopened(&self) -> usize {
        self.sealed_ref()
            .filter(|sealed| sealed.has_more())
            .map_or(0, |sealed| sealed.opened.len() + sealed.torn.len())
    }

    /// What the bytes of its client have cost so far, besides those that its service saw: a turn's budget is to count it.
    #[inline]
    pub(crate) fn surcharge(&self) -> u64 {
        match self.pending.as_deref() {
            Some(pending) => pending.surcharge(),
            None => 0,
        }
    }

    /// Bytes that its service has sent, as far as is known of those that wait.
    pub(crate) fn written_plain(&self) -> u64 {
        let overhead = self.sealed_ref().map_or(0, |sealed| sealed.overhead);
        self.written.saturating_sub(overhead)
    }

    /// Its session, as the table shows it.
    pub(crate) fn tls_info(&self) -> Option<TlsInfo> {
        let sealed = self.sealed_ref()?;
        let (version, cipher) = sealed.session.agreed();
        Some(TlsInfo {
            version: version.to_owned(),
            cipher: cipher.to_owned(),
            name: sealed.named.asked.as_deref().map(str::to_owned),
            client: sealed.named.client.as_deref().map(str::to_owned),
        })
    }

    /// Who has signed the certificate that its client has shown, where this process has seen that.
    pub(crate) fn tls_issuer(&self) -> Option<&str> {
        self.sealed_ref()?.issuer.as_deref()
    }

    /// The name that its client asked for by TLS, and whose certificate that has shown.
    pub(crate) fn named(&self) -> (Option<&str>, Option<&str>) {
        let named = self.sealed_ref().map(|sealed| &sealed.named);
        named.map_or((None, None), |named| {
            (named.asked.as_deref(), named.client.as_deref())
        })
    }

    /// Whether its end came without a goodbye.
    pub(crate) fn is_truncated(&self) -> bool {
        self.sealed_ref().is_some_and(|sealed| sealed.is_truncated)
    }

    /// The reason that it ends for, where that is that the peer was done: without a goodbye who knows.
    pub(crate) fn told_apart(&self, reason: CloseReason) -> CloseReason {
        match reason {
            CloseReason::PeerClosed if self.is_truncated() => CloseReason::TlsTruncated,
            reason => reason,
        }
    }
}

/// The handshake.
impl Io {
    /// Goes on with it, as far as what has come allows.
    pub(crate) fn shake_hands(
        &mut self,
        tls: &Server,
        buffer: &mut [u8],
        turn: &Turn<'_>,
    ) -> Shaken {
        self.flush(turn);
        // What is left over is no more than is opened at once.
        let most = buffer.len().min(LONGEST_RECORD);
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let pending = self.pending();
        if pending.tls.is_none() {
            pending.tls = Some(Tls::Hello(Vec::new()));
        }
        loop {
            let count = if self.is(Is::Readable) {
                self.receive(buffer, turn)
            } else {
                0
            };
            let Some(came) = buffer.get(..count) else {
                return Shaken::Waits;
            };
            let shaken = self.go_on_shaking(tls, came, turn);
            if shaken != Shaken::Waits || self.is_decided() {
                return shaken;
            }
            if self.peer_fin() {
                let is_silent =
                    matches!(&self.pending().tls, Some(Tls::Hello(it)) if it.is_empty());
                return match is_silent {
                    true => Shaken::End,
                    false => Shaken::Failed("cut short"),
                };
            }
            if !self.is(Is::Readable) {
                return Shaken::Waits;
            }
        }
    }

    fn go_on_shaking(&mut self, tls: &Server, came: &[u8], turn: &Turn<'_>) -> Shaken {
        let id = self.id();
        let pending = self.pending();
        let mut hello = Vec::new();
        if let Some(Tls::Hello(before)) = &mut pending.tls {
            before.extend_from_slice(came);
            // Who has said nothing whole has no place among those that are under way.
            let begins = !matches!(Session::first(before), Ok(None));
            if !begins || (tls.is_held() && before.len() < LONGEST_RECORD) {
                return Shaken::Waits;
            }
            hello = mem::take(before);
            let Some(handshake) = tls.handshake() else {
                return Shaken::Failed("too many handshakes at once");
            };
            match handshake {
                Ok(handshake) => pending.tls = Some(Tls::Handshake(Box::new(handshake))),
                Err(error) => {
                    log::error!(id, error:%; "cannot begin a TLS handshake");
                    return Shaken::Failed("an error of this server");
                }
            }
        }
        let came = if hello.is_empty() { came } else { &hello };
        if came.is_empty() {
            return Shaken::Waits;
        }
        let Some(Tls::Handshake(handshake)) = &mut pending.tls else {
            return Shaken::Failed("an error of this server");
        };
        let mut out = Vec::new();
        let mut step = handshake.advance(came, &mut out);
        let bytes = handshake.waiting();
        count(bytes, &mut handshake.held, turn);
        if bytes > LONGEST_RECORD && turn.memory.is_full() && matches!(step, Step::Waits) {
            step = Step::failed("no memory for more of it");
        }
        self.put(&out, turn);
        match step {
            Step::Waits => Shaken::Waits,
            Step::Failed(failure) => {
                log::debug!(id, what = failure.what, detail = failure.detail.as_str(); "no TLS session");
                Shaken::Failed(failure.what)
            }
            Step::Done(session, facts) => {
                let counter = match facts.resumed {
                    true => &turn.stats.resumptions,
                    false => &turn.stats.handshakes,
                };
                counter.add(1);
                log::debug!(id, version = facts.version, cipher = facts.cipher, name = facts.name.as_deref(), protocol = facts.protocol.as_deref(), client = facts.client.as_deref(), resumed = facts.resumed; "TLS session");
                let pending = self.pending();
                if let Some(Tls::Handshake(handshake)) = pending.tls.take() {
                    let named = Named {
                        asked: facts.name.map(String::into_boxed_str),
                        client: facts.client.map(String::into_boxed_str),
                    };
                    let sealed = Sealed {
                        issuer: facts.issuer.map(String::into_boxed_str),
                        ..Sealed::new(*session, handshake.into_rest(), named)
                    };
                    pending.tls = Some(Tls::Sealed(Box::new(sealed)));
                }
                // What was said so far is nobody's output.
                let said = self.written + self.waiting_output() as u64;
                if let Some(sealed) = self.sealed() {
                    sealed.overhead = said;
                }
                Shaken::Done
            }
        }
    }
}

/// So much waits for a service, though none could use it yet.
fn count(bytes: usize, held: &mut Held, turn: &Turn<'_>) {
    if bytes > 0 {
        held.count_in(turn.memory, WaitingKind::Input);
    }
    held.set(bytes);
}

/// What comes.
impl Io {
    /// As [`take_in`](Self::take_in): so much plaintext as there is room for.
    #[inline(never)]
    pub(super) fn take_in_sealed(&mut self, buffer: &mut [u8], turn: &Turn<'_>) -> usize {
        let taken = COMES.with_borrow_mut(|comes| {
            comes.resize(BATCH + LONGEST_RECORD, 0);
            self.open_into(buffer, comes, turn)
        });
        if taken > 0 {
            self.note_input(taken, turn);
        }
        if let Some(sealed) = self.sealed() {
            let bytes = sealed.torn.capacity() + sealed.opened.capacity();
            count(bytes, &mut sealed.held, turn);
        }
        taken
    }

    fn open_into(&mut self, buffer: &mut [u8], comes: &mut [u8], turn: &Turn<'_>) -> usize {
        let Some(sealed) = self.sealed() else {
            // It has yet to come: nothing is read.
            self.set(Is::Readable, false);
            return 0;
        };
        if !sealed.opened.is_empty() {
            let count = sealed.opened.len().min(buffer.len());
            let rest = sealed.opened.split_off(count);
            let opened = mem::replace(&mut sealed.opened, rest);
            if let Some(place) = buffer.get_mut(..count) {
                place.copy_from_slice(&opened);
            }
            return count;
        }
        if let Some(judged) = sealed.judged.take() {
            self.carry_out(judged, turn);
            return 0;
        }
        let mut end = sealed.torn.len();
        let has_more = sealed.has_more();
        let most = if sealed.is_fine { 0 } else { buffer.len() };
        if let Some(place) = comes.get_mut(..end) {
            place.copy_from_slice(&sealed.torn);
        }
        sealed.torn = Vec::new();
        if !has_more {
            // So much that there is room for all of it, and a whole record at least.
            let most = most.clamp(LONGEST_RECORD, comes.len());
            let place = comes.get_mut(end..most.max(end)).unwrap_or_default();
            let count = self.receive(place, turn);
            end += count;
            if count == 0 {
                return self.put_torn_back(comes.get(..end).unwrap_or_default());
            }
        }
        self.open_all(buffer, comes.get_mut(..end).unwrap_or_default(), turn)
    }

    /// No more came. Where that is the end, and nobody had said goodbye, it was cut off.
    fn put_torn_back(&mut self, torn: &[u8]) -> usize {
        let is_end = self.peer_fin();
        if let Some(sealed) = self.sealed() {
            sealed.torn = torn.to_vec();
            sealed.is_truncated |= is_end && !sealed.session.is_over();
        }
        0
    }

    /// Opens the whole records in `comes`, as far as there is room in `buffer`, or for the first of them.
    fn open_all(&mut self, buffer: &mut [u8], mut comes: &mut [u8], turn: &Turn<'_>) -> usize {
        let (mut taken, mut records) = (0, 0);
        let all = comes.len() as u64;
        let mut answers = Vec::new();
        let outcome = loop {
            let Some(sealed) = self.sealed() else {
                return taken;
            };
            if sealed.session.is_over() {
                // Nothing counts any more.
                comes = &mut [];
                break Ok(Opened::Nothing);
            }
            let whole = match sealed.session.whole(comes) {
                Ok(Some(whole)) if taken == 0 || whole <= buffer.len() - taken => whole,
                Ok(_) => break Ok(Opened::Nothing),
                Err(fault) => break Err(fault),
            };
            let (record, rest) = comes.split_at_mut(whole);
            records += 1;
            match sealed.session.open(record, &mut answers) {
                Ok(Opened::Nothing) => {}
                Ok(Opened::Data(range)) => {
                    taken += sealed.deliver(record, range, buffer.get_mut(taken..));
                }
                other => {
                    comes = rest;
                    break other;
                }
            }
            comes = rest;
            if !sealed.opened.is_empty() {
                break Ok(Opened::Nothing);
            }
        };
        let Some(sealed) = self.sealed() else {
            return taken;
        };
        sealed.overhead += answers.len() as u64;
        sealed.torn = comes.to_vec();
        let opened = all - comes.len() as u64;
        sealed.surcharge += records * RECORD + opened.saturating_sub(taken as u64);
        sealed.is_fine = opened < records * RECORD;
        let mut is_over = false;
        match outcome {
            Ok(Opened::Closed) => is_over = true,
            Ok(Opened::Alert(alert)) => sealed.judged = Some(Judged::Alert(alert)),
            Ok(Opened::Nothing | Opened::Data(_)) => {}
            Err(fault) => sealed.judged = Some(Judged::Fault(fault)),
        }
        // What came in order is the service's first.
        let judged = sealed.judged.take_if(|_| taken == 0);
        if sealed.has_more() {
            // No event tells of what has come already.
            self.set(Is::Readable, true);
        }
        self.put(&answers, turn);
        if is_over {
            self.reads_end();
        }
        if let Some(judged) = judged {
            self.carry_out(judged, turn);
        }
        taken
    }

    fn carry_out(&mut self, judged: Judged, turn: &Turn<'_>) {
        match judged {
            Judged::Alert(alert) => {
                self.set_remark(Note::Tls(alert.as_str().unwrap_or("an alert")));
                self.overrule(Ending::fin(CloseReason::TlsAlert));
            }
            Judged::Fault(fault) => self.refuse(fault, turn),
        }
    }

    /// The client is told what it did, and nothing more.
    fn refuse(&mut self, fault: Fault, turn: &Turn<'_>) {
        self.seal_with(0, turn, |session, out| session.give_up(fault.alert, out));
        if let Some(sealed) = self.sealed() {
            sealed.torn = Vec::new();
        }
        self.set_remark(Note::Tls(fault.what));
        self.finish_for(CloseReason::TlsAlert);
    }
}

impl Sealed {
    /// What of a record's plaintext there is room for goes to `buffer`, the rest waits. Answers how much went.
    fn deliver(&mut self, record: &[u8], range: Range<usize>, buffer: Option<&mut [u8]>) -> usize {
        let plain = record.get(range).unwrap_or_default();
        let buffer = buffer.unwrap_or_default();
        let (now, later) = plain.split_at(plain.len().min(buffer.len()));
        if let Some(place) = buffer.get_mut(..now.len()) {
            place.copy_from_slice(now);
        }
        if !later.is_empty() {
            self.opened = later.to_vec();
        }
        now.len()
    }
}
