//! TLS of a connection, as another process goes on with it.

use zeroize::Zeroizing;

use super::{Judged, Named, Sealed, Tls};
use crate::io::Io;
use crate::tls::Session;

impl Io {
    /// What another process goes on with; `is_frozen`: this one seals nothing any more. Empty where that is yet to come.
    pub(crate) fn saved_tls(&self, is_frozen: bool) -> Option<Zeroizing<Vec<u8>>> {
        match self.pending.as_deref()?.tls.as_ref()? {
            Tls::Sealed(sealed) if is_frozen => Some(sealed.save()),
            Tls::Sealed(_) | Tls::Promised => Some(Zeroizing::default()),
            Tls::Hello(_) | Tls::Handshake(_) | Tls::Greeting(_) => None,
        }
    }

    /// What has come of a handshake at which nothing was said yet. `None`: something was.
    pub(crate) fn hello(&self) -> Option<&[u8]> {
        match &self.pending.as_deref()?.tls {
            Some(Tls::Hello(hello)) => Some(hello),
            Some(Tls::Handshake(handshake)) => handshake.hello(),
            None => Some(&[]),
            _ => None,
        }
    }

    pub(crate) fn set_hello(&mut self, hello: Vec<u8>) {
        self.pending().tls = Some(Tls::Hello(hello));
    }

    /// Goes on with a session that another process saved, or promised.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn restore_tls(&mut self, saved: &[u8]) -> Result<(), String> {
        self.pending().tls = Some(if saved.is_empty() {
            Tls::Promised
        } else {
            let sealed = Sealed::restored(saved);
            Tls::Sealed(Box::new(sealed.ok_or("a TLS session that cannot be read")?))
        });
        Ok(())
    }

    /// Another process has its session: nothing is sealed here any more, for no number may be used twice.
    pub(in crate::io) fn let_session_go(&mut self) {
        if let Some(pending) = &mut self.pending
            && matches!(pending.tls, Some(Tls::Sealed(_)))
        {
            pending.tls = Some(Tls::Promised);
        }
    }

    /// Whether a handshake is under way that no other process can go on with.
    pub(crate) fn is_shaking(&self) -> bool {
        let pending = self.pending.as_deref();
        let tls = pending.and_then(|pending| pending.tls.as_ref());
        matches!(tls, Some(Tls::Handshake(handshake)) if handshake.hello().is_none())
    }
}

/// What stands in front of what was saved: three flags, how much longer what was sealed is, and how long the parts are.
const FRONT: usize = 1 + 8 + 4 * 2;

/// Whether what was saved has bytes that have come, of which no event tells any more.
pub(crate) fn has_come(saved: &[u8]) -> bool {
    Parts::of(saved).is_some_and(|parts| !parts.torn.is_empty() || !parts.opened.is_empty())
}

/// What was saved, apart.
struct Parts<'a> {
    flags: u8,
    overhead: u64,
    session: &'a [u8],
    asked: &'a [u8],
    client: &'a [u8],
    torn: &'a [u8],
    opened: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(saved: &'a [u8]) -> Option<Self> {
        let (front, rest) = saved.split_first_chunk::<FRONT>()?;
        let (&[flags, ref overhead @ ..], lengths) = front.split_first_chunk::<9>()?;
        let mut lengths = lengths.chunks(2);
        let mut rest = rest;
        let mut part = || {
            let length = u16::from_be_bytes(lengths.next()?.try_into().ok()?);
            let (part, behind) = rest.split_at_checked(length.into())?;
            rest = behind;
            Some(part)
        };
        let (session, asked, client, torn) = (part()?, part()?, part()?, part()?);
        Some(Self {
            flags,
            overhead: u64::from_be_bytes(*overhead),
            session,
            asked,
            client,
            torn,
            opened: rest,
        })
    }
}

impl Named {
    fn of(asked: &[u8], client: &[u8]) -> Self {
        let text = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).ok()?;
            Some(text.into()).filter(|_| !bytes.is_empty())
        };
        Self {
            asked: text(asked),
            client: text(client),
        }
    }
}

impl Sealed {
    /// As [`Parts`] takes it apart.
    fn save(&self) -> Zeroizing<Vec<u8>> {
        let session = self.session.save();
        let text =
            |text: &'_ Option<Box<str>>| text.as_deref().unwrap_or_default().as_bytes().to_vec();
        let (asked, client) = (text(&self.named.asked), text(&self.named.client));
        // What is to end for what came ends in the new process: for what is no record, or for the alert of that number.
        let mut ends = [0];
        let torn = match self.judged {
            Some(Judged::Fault(_)) => &ends[..],
            Some(Judged::Alert(alert)) => {
                ends = [alert.into()];
                &ends
            }
            None => &self.torn,
        };
        let is_alert = matches!(self.judged, Some(Judged::Alert(_)));
        let parts = [&session[..], &asked, &client, torn, &self.opened];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut saved = Zeroizing::new(Vec::with_capacity(FRONT + length));
        let flags = [self.is_truncated, self.goodbye_alone, is_alert];
        let flags = (0..).zip(flags).map(|(place, it)| u8::from(it) << place);
        saved.push(flags.sum());
        saved.extend_from_slice(&self.overhead.to_be_bytes());
        for part in parts.iter().take(4) {
            // A record is the longest of them.
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            saved.extend_from_slice(&length.to_be_bytes());
        }
        for part in parts {
            saved.extend_from_slice(part);
        }
        saved
    }

    fn restored(saved: &[u8]) -> Option<Self> {
        let parts = Parts::of(saved)?;
        let named = Named::of(parts.asked, parts.client);
        let session = Session::restored(parts.session)?;
        let (judged, torn) = match parts.torn {
            &[alert] if parts.flags & 4 != 0 => (Some(Judged::Alert(alert.into())), Vec::new()),
            torn => (None, torn.to_vec()),
        };
        Some(Self {
            judged,
            opened: parts.opened.to_vec(),
            overhead: parts.overhead,
            is_truncated: parts.flags & 1 != 0,
            goodbye_alone: parts.flags & 2 != 0,
            ..Self::new(session, torn, named)
        })
    }
}
