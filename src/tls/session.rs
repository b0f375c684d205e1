//! A session behind its handshake: what is sealed and opened, and what alerts and `KeyUpdates` make of it.

use std::fmt;
use std::ops::Range;

use rustls::{
    AlertDescription, CipherSuite, ConnectionTrafficSecrets, ContentType, ExtractedSecrets,
};
use zeroize::Zeroizing;

use super::keys::{Direction, FRAGMENT, HEADER, Suite, Unopened};

/// The longest record, its header included: what may come of TLS 1.2, of which more is allowed.
pub(crate) const LONGEST_RECORD: usize = HEADER + FRAGMENT + 2048;

/// How many of them a peer may send: warnings in all, `KeyUpdates` with no data between them.
const WARNINGS: u8 = 4;
const UPDATES: u8 = 32;

/// The longest message behind the handshake, bytes: a `ClientHello` that asks for another one, which is refused; or of a
/// server's a ticket. A takeover may have to carry a part of it.
const LONGEST_MESSAGE: usize = FRAGMENT;
const LONGEST_TICKET: usize = 32 * 1024;

/// The form of what is saved.
const FORM: u8 = 1;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// What a peer did that ends the session, and the alert that tells it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) alert: AlertDescription,
    pub(crate) what: &'static str,
}

impl Fault {
    const fn new(alert: AlertDescription, what: &'static str) -> Self {
        Self { alert, what }
    }
}

/// What was in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Nothing for a service.
    Nothing,
    /// Data: there, within the record.
    Data(Range<usize>),
    /// The peer has said that no more comes.
    Closed,
    /// The peer gives the session up, for that reason.
    Alert(AlertDescription),
}

/// The keys are used up: nothing more can be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UsedUp;

/// One side of a session.
pub(crate) struct Session {
    suite: Suite,
    /// It is the client's side.
    is_client: bool,
    out: Direction,
    into: Direction,
    /// What has come of a message that is not whole.
    message: Vec<u8>,
    /// The last record was sealed: `close_notify`, or a fatal alert.
    is_closed: bool,
    /// The peer's last record was opened.
    is_over: bool,
    /// A `KeyUpdate` was answered by one, and nothing was sealed since: the next needs no answer.
    has_answered: bool,
    warnings: u8,
    renegotiations: u8,
    /// `KeyUpdates` and tickets with no data between them.
    updates: u8,
    /// How many records a key may seal.
    limit: u64,
}

impl Session {
    /// What a handshake has led to. `heard`: of TLS 1.3 the traffic secrets, ours first.
    ///
    /// `None`: a suite that is not known here, or secrets that are not those of the keys.
    pub(super) fn of_handshake(
        suite: CipherSuite,
        extracted: &ExtractedSecrets,
        heard: (&[u8], &[u8]),
    ) -> Option<Self> {
        let suite = Suite::of(suite)?;
        let direction = |(number, keys): &(u64, ConnectionTrafficSecrets), secret: &[u8]| {
            let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = keys
            else {
                return None;
            };
            if suite.is_13 {
                let direction = Direction::of_secret(suite, secret, *number)?;
                return Some(direction).filter(|it| it.is_of(key.as_ref(), iv.as_ref()));
            }
            let iv = iv.as_ref().try_into().ok()?;
            Direction::of_key(suite, key.as_ref(), iv, *number)
        };
        let out = direction(&extracted.tx, heard.0)?;
        Some(Self::new(suite, out, direction(&extracted.rx, heard.1)?))
    }

    fn new(suite: Suite, out: Direction, into: Direction) -> Self {
        Self {
            suite,
            is_client: false,
            out,
            into,
            message: Vec::new(),
            is_closed: false,
            is_over: false,
            has_answered: false,
            warnings: 0,
            renegotiations: 0,
            updates: 0,
            limit: suite.limit(),
        }
    }

    /// As the client's side of it.
    pub(super) fn of_client(self) -> Self {
        Self {
            is_client: true,
            ..self
        }
    }

    /// The version and the cipher.
    pub(crate) fn agreed(&self) -> (&'static str, &'static str) {
        let version = if self.suite.is_13 { "1.3" } else { "1.2" };
        (version, self.suite.name())
    }

    /// Whether nothing more may be sealed.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether the peer's last record was opened.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Seals `data` behind what `out` holds; nothing once it is [closed](Self::is_closed). A key that is used up gives way
    /// to the next one.
    ///
    /// # Errors
    /// There is none: `out` ends with a `close_notify` behind the last that could be sealed.
    pub(crate) fn seal(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), UsedUp> {
        if self.is_closed {
            return Ok(());
        }
        self.has_answered = false;
        for fragment in data.chunks(FRAGMENT) {
            // One is left for the KeyUpdate, or for the goodbye.
            if self.out.number + 1 >= self.limit && self.update(out).is_none() {
                self.close(out);
                return Err(UsedUp);
            }
            self.put(ContentType::ApplicationData, fragment, out);
            if self.is_closed {
                // What follows a fragment that is missing is none.
                break;
            }
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        self.say_at_last([WARNING, CLOSE_NOTIFY], out);
    }

    /// Gives the session up: nothing that comes is opened any more.
    pub(crate) fn give_up(&mut self, alert: AlertDescription, out: &mut Vec<u8>) {
        self.is_over = true;
        self.say_at_last([FATAL, alert.into()], out);
    }

    fn say_at_last(&mut self, alert: [u8; 2], out: &mut Vec<u8>) {
        if !self.is_closed {
            self.put(ContentType::Alert, &alert, out);
            self.is_closed = true;
        }
    }

    pub(super) fn put(&mut self, kind: ContentType, data: &[u8], out: &mut Vec<u8>) {
        let from = out.len();
        if self.out.seal(kind, data, out).is_err() {
            // Of so few bytes ring refuses none. What is behind `from` by then is no record, and may be plaintext.
            out.truncate(from);
            self.is_closed = true;
        }
    }

    /// The keys of what goes out give way to the next ones. `None`: TLS 1.2 has no such thing.
    fn update(&mut self, out: &mut Vec<u8>) -> Option<()> {
        if !self.suite.is_13 {
            return None;
        }
        let next = self.out.next()?;
        self.put(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 0], out);
        self.out = next;
        Some(())
    }

    /// How long the first record in `bytes` is, header included, if it is whole.
    pub(crate) fn whole(&self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        whole(bytes, if self.suite.is_13 { 256 } else { 2048 })
    }

    /// The same of the first record of all.
    pub(crate) fn first(bytes: &[u8]) -> Result<Option<usize>, Fault> {
        whole(bytes, 2048)
    }

    /// Opens a whole record in place; what is to be said to it goes behind what `out` holds.
    pub(crate) fn open(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Opened, Fault> {
        type A = AlertDescription;
        if self.is_over {
            // RFC 8446, 6.1: what follows the last word is ignored.
            return Ok(Opened::Nothing);
        }
        if self.suite.is_13 && record.first() != Some(&ContentType::ApplicationData.into()) {
            return Err(Fault::new(
                A::UnexpectedMessage,
                "a record that is not sealed",
            ));
        }
        let base = record.as_ptr() as usize;
        let (kind, data) = self.into.open(record).map_err(|unopened| match unopened {
            Unopened::Forged => Fault::new(A::BadRecordMac, "a record that was damaged"),
            Unopened::TooLong => Fault::new(A::RecordOverflow, "a record that is too long"),
            Unopened::Untyped => Fault::new(A::UnexpectedMessage, "a record without a type"),
        })?;
        if !self.message.is_empty() && kind != ContentType::Handshake {
            return Err(Fault::new(A::UnexpectedMessage, "a message cut short"));
        }
        match kind {
            ContentType::ApplicationData if data.is_empty() => Ok(Opened::Nothing),
            ContentType::ApplicationData => {
                self.updates = 0;
                let from = data.as_ptr() as usize - base;
                Ok(Opened::Data(from..from + data.len()))
            }
            ContentType::Alert => {
                let &mut [level, alert] = data else {
                    return Err(Fault::new(A::DecodeError, "an alert of a wrong length"));
                };
                self.hear(level, alert)
            }
            ContentType::Handshake if !data.is_empty() => {
                self.message.extend_from_slice(data);
                self.answer(out)?;
                Ok(Opened::Nothing)
            }
            _ => Err(Fault::new(A::UnexpectedMessage, "a record of a wrong type")),
        }
    }

    fn hear(&mut self, level: u8, alert: u8) -> Result<Opened, Fault> {
        match (level, alert) {
            (_, CLOSE_NOTIFY) => {
                self.is_over = true;
                Ok(Opened::Closed)
            }
            // Of TLS 1.3 every other one is fatal, whatever its level.
            (WARNING, _) if !self.suite.is_13 || alert == USER_CANCELED => {
                self.warnings += 1;
                if self.warnings > WARNINGS {
                    let alert = AlertDescription::UnexpectedMessage;
                    return Err(Fault::new(alert, "too many warnings"));
                }
                Ok(Opened::Nothing)
            }
            _ => {
                self.is_over = true;
                // Nobody is left to say goodbye to.
                self.is_closed = true;
                Ok(Opened::Alert(alert.into()))
            }
        }
    }

    /// What has come behind the handshake: a `KeyUpdate`, of TLS 1.2 a wish for another handshake, or a server's tickets,
    /// which nobody uses here.
    fn answer(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        type A = AlertDescription;
        while let Some((&[kind, a, b, c], body)) = self.message.split_first_chunk::<4>() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            match (self.suite.is_13, kind) {
                (true, KEY_UPDATE) if length == 1 => {
                    let wants = match *body {
                        [] => return Ok(()),
                        [0] => false,
                        [1] => true,
                        [_] => {
                            return Err(Fault::new(
                                A::IllegalParameter,
                                "a KeyUpdate of a wrong kind",
                            ));
                        }
                        // The next record has another key.
                        _ => {
                            return Err(Fault::new(
                                A::UnexpectedMessage,
                                "bytes behind a KeyUpdate",
                            ));
                        }
                    };
                    self.message = Vec::new();
                    self.updates += 1;
                    if self.updates > UPDATES {
                        return Err(Fault::new(A::UnexpectedMessage, "too many KeyUpdates"));
                    }
                    let next = self.into.next();
                    self.into = next.ok_or(Fault::new(A::InternalError, "no next key"))?;
                    if wants && !self.has_answered && !self.is_closed {
                        self.update(out);
                        self.has_answered = true;
                    }
                }
                (true, NEW_SESSION_TICKET) if self.is_client && length <= LONGEST_TICKET => {
                    if body.len() < length {
                        return Ok(());
                    }
                    self.message.drain(..4 + length);
                    self.updates += 1;
                    if self.updates > UPDATES {
                        return Err(Fault::new(A::UnexpectedMessage, "too many tickets"));
                    }
                }
                (false, kind) if self.asks_anew(kind, length) => {
                    if body.len() < length {
                        return Ok(());
                    }
                    self.message.drain(..4 + length);
                    self.renegotiations += 1;
                    if self.renegotiations > 1 {
                        return Err(Fault::new(A::NoRenegotiation, "renegotiation"));
                    }
                    // The last is the goodbye's.
                    if !self.is_closed && self.out.number + 1 < self.limit {
                        self.put(ContentType::Alert, &[WARNING, NO_RENEGOTIATION], out);
                    }
                }
                _ => return Err(Fault::new(A::UnexpectedMessage, "an unexpected message")),
            }
        }
        Ok(())
    }

    /// Whether the peer wants another handshake by that message.
    fn asks_anew(&self, kind: u8, length: usize) -> bool {
        match kind {
            HELLO_REQUEST => self.is_client && length == 0,
            CLIENT_HELLO => !self.is_client && length <= LONGEST_MESSAGE,
            _ => false,
        }
    }

    /// What [`restored`](Self::restored) makes the session of again, to go on where it was. From here on it must not seal
    /// any more, unless nobody ever will.
    pub(crate) fn save(&self) -> Zeroizing<Vec<u8>> {
        // Room for all of it: what grows leaves copies behind.
        let length = 8 + 2 * Direction::saved_length(self.suite) + 4 + self.message.len();
        let mut saved = Zeroizing::new(Vec::with_capacity(length));
        let [high, low] = self.suite.number().to_be_bytes();
        let flags = [
            self.is_closed,
            self.is_over,
            self.has_answered,
            self.is_client,
        ];
        let flags = (0..)
            .zip(flags)
            .map(|(place, it)| u8::from(it) << place)
            .sum();
        saved.extend_from_slice(&[FORM, high, low, flags]);
        saved.extend_from_slice(&[self.warnings, self.renegotiations, self.updates]);
        self.out.save(&mut saved);
        self.into.save(&mut saved);
        saved.extend_from_slice(&self.message);
        saved
    }

    /// `None`: it was not [saved](Self::save) by one that this one understands.
    pub(crate) fn restored(saved: &[u8]) -> Option<Self> {
        let (&[form, high, low, flags, warnings, renegotiations, updates], mut rest) =
            saved.split_first_chunk::<7>()?;
        let suite = Suite::of(CipherSuite::from(u16::from_be_bytes([high, low])))?;
        if form != FORM || flags > 0b1111 {
            return None;
        }
        let out = Direction::restored(suite, &mut rest)?;
        let into = Direction::restored(suite, &mut rest)?;
        // Behind the limit a number would be used twice in the end; who seals nothing any more uses none.
        let is_closed = flags & 1 != 0;
        let is_client = flags & 8 != 0;
        let longest = if is_client {
            LONGEST_TICKET
        } else {
            LONGEST_MESSAGE
        };
        if rest.len() > 4 + longest || (!is_closed && out.number > suite.limit()) {
            return None;
        }
        Some(Self {
            message: rest.to_vec(),
            is_closed,
            is_over: flags & 2 != 0,
            has_answered: flags & 4 != 0,
            is_client,
            warnings,
            renegotiations,
            updates,
            ..Self::new(suite, out, into)
        })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing secret.
        f.debug_struct("Session")
            .field("suite", &self.suite)
            .field("sealed", &self.out.number)
            .field("opened", &self.into.number)
            .finish_non_exhaustive()
    }
}

/// As [`Session::whole`]; a record is at most that much longer than its plaintext.
pub(super) fn whole(bytes: &[u8], longer: usize) -> Result<Option<usize>, Fault> {
    type A = AlertDescription;
    let &[kind, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    if !(20..=23).contains(&kind) {
        return Err(Fault::new(A::UnexpectedMessage, "no TLS"));
    }
    let &[major, _, high, low, ..] = rest else {
        return Ok(None);
    };
    if major != 3 {
        return Err(Fault::new(
            A::ProtocolVersion,
            "a version that is not known",
        ));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > FRAGMENT + longer {
        return Err(Fault::new(A::RecordOverflow, "a record that is too long"));
    }
    let end = HEADER + length;
    Ok((bytes.len() >= end).then_some(end))
}

#[cfg(test)]
mod tests;
