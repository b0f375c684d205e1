//! Tickets: what a client brings back to resume a session, sealed so that this server alone can read it. The key goes
//! along in a takeover, so that those of before are still good.

use std::fmt;
use std::sync::RwLock;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// How long a ticket is good, seconds.
const LIFETIME: u32 = 6 * 3600;

const NONCE: usize = 12;

/// The key that tickets are sealed with.
pub(super) type Key = Zeroizing<[u8; 32]>;

/// Seals and opens tickets.
pub(super) struct Tickets {
    random: SystemRandom,
    key: RwLock<Key>,
}

impl Tickets {
    /// With a key of its own. `None`: the system has no random bytes.
    pub(super) fn new() -> Option<Self> {
        let random = SystemRandom::new();
        let mut key = Zeroizing::new([0; 32]);
        random.fill(&mut *key).ok()?;
        Some(Self {
            random,
            key: RwLock::new(key),
        })
    }

    pub(super) fn key(&self) -> Key {
        let key = self.key.read();
        key.unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Goes on with another one's.
    pub(super) fn set_key(&self, key: Key) {
        let own = self.key.write();
        *own.unwrap_or_else(|poisoned| poisoned.into_inner()) = key;
    }

    fn sealing(&self) -> Option<LessSafeKey> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*self.key()).ok()?;
        Some(LessSafeKey::new(key))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce).ok()?;
        let mut ticket = [&nonce[..], plain].concat();
        let sealed = ticket.get_mut(NONCE..)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .sealing()?
            .seal_in_place_separate_tag(nonce, Aad::empty(), sealed);
        ticket.extend_from_slice(tag.ok()?.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_first_chunk::<NONCE>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut sealed = sealed.to_vec();
        let opened = self.sealing()?;
        let opened = opened.open_in_place(nonce, Aad::empty(), &mut sealed);
        opened.ok().map(|plain| plain.to_vec())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_read_by_whoever_has_the_key_and_by_nobody_else() {
        let [before, after, other] = [(); 3].map(|()| Tickets::new().unwrap());
        after.set_key(before.key());
        let ticket = before.encrypt(b"a session").unwrap();
        assert_ne!(ticket, before.encrypt(b"a session").unwrap());
        assert_eq!(after.decrypt(&ticket).unwrap(), b"a session");
        assert_eq!(other.decrypt(&ticket), None);
        for length in 0..ticket.len() {
            assert_eq!(after.decrypt(&ticket[..length]), None, "{length}");
        }
    }
}
