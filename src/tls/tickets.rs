//! Tickets: what a client brings back to resume a session, sealed so that this server alone can read it. The keys go along
//! in a takeover, so that those of before are still good.
//!
//! A key seals for as long as a ticket is good, and opens for as long again. Beside it stands what is asked of clients: who
//! came in when they had to show nothing has no ticket for where they do.

use std::fmt;
use std::mem;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// How long a ticket is good at least, and a key seals, seconds.
const LIFETIME: u32 = 6 * 3600;

const NONCE: usize = 12;
const KEY: usize = 32;

type Key = Zeroizing<[u8; KEY]>;

/// What the time is, since some moment that stays the same.
pub(super) type Time = fn() -> Duration;

/// Seals and opens tickets.
pub(super) struct Tickets {
    random: SystemRandom,
    keys: RwLock<Keys>,
    time: Time,
    /// What is asked of clients.
    context: [u8; SHA256_OUTPUT_LEN],
}

#[derive(Clone)]
struct Keys {
    current: Key,
    former: Option<Key>,
    /// When the current one began to seal.
    since: Duration,
}

impl Tickets {
    /// With a key of its own, for clients of whom `asked` is asked. `None`: the system has no random bytes.
    pub(super) fn new(asked: &[u8], time: Time) -> Option<Self> {
        let random = SystemRandom::new();
        let keys = Keys {
            current: fresh(&random)?,
            former: None,
            since: time(),
        };
        let mut context = [0; SHA256_OUTPUT_LEN];
        context.copy_from_slice(digest(&SHA256, asked).as_ref());
        Some(Self {
            random,
            keys: RwLock::new(keys),
            time,
            context,
        })
    }

    fn keys(&self) -> Keys {
        let keys = self.keys.read();
        keys.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// What [`restore`](Self::restore) goes on with: for how many seconds the key has sealed, the key, the former one if
    /// there is one.
    pub(super) fn save(&self) -> Zeroizing<Vec<u8>> {
        let keys = self.keys();
        let mut saved = Zeroizing::new(Vec::with_capacity(4 + 2 * KEY));
        let age = (self.time)().saturating_sub(keys.since).as_secs();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        saved.extend_from_slice(&age.to_be_bytes());
        saved.extend_from_slice(&*keys.current);
        if let Some(former) = &keys.former {
            saved.extend_from_slice(&**former);
        }
        saved
    }

    /// Goes on with the keys of another process. `None`: those are none.
    pub(super) fn restore(&self, saved: &[u8]) -> Option<()> {
        let (age, saved) = saved.split_first_chunk()?;
        let (current, former) = saved.split_first_chunk()?;
        let former = match former {
            [] => None,
            former => Some(Zeroizing::new(former.try_into().ok()?)),
        };
        let age = Duration::from_secs(u32::from_be_bytes(*age).into());
        self.set(Keys {
            current: Zeroizing::new(*current),
            former,
            since: (self.time)().saturating_sub(age),
        });
        Some(())
    }

    /// The key that seals now.
    fn current(&self) -> Option<Key> {
        let age = |keys: &Keys| (self.time)().saturating_sub(keys.since).as_secs();
        let keys = self.keys();
        if age(&keys) < LIFETIME.into() {
            return Some(keys.current);
        }
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let age = age(&keys);
        // Another thread may have come first.
        if age >= LIFETIME.into() {
            let former = mem::replace(&mut keys.current, fresh(&self.random)?);
            // What both of them have sealed is too old.
            keys.former = Some(former).filter(|_| age < 2 * u64::from(LIFETIME));
            keys.since = (self.time)();
        }
        Some(keys.current.clone())
    }

    fn open(&self, key: &Key, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_first_chunk::<NONCE>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut sealed = sealed.to_vec();
        let opened = with(key)?.open_in_place(nonce, Aad::from(self.context), &mut sealed);
        opened.ok().map(|plain| plain.to_vec())
    }
}

fn fresh(random: &SystemRandom) -> Option<Key> {
    let mut key = Zeroizing::new([0; KEY]);
    random.fill(&mut *key).ok()?;
    Some(key)
}

fn with(key: &Key) -> Option<LessSafeKey> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &**key).ok()?;
    Some(LessSafeKey::new(key))
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
        let key = with(&self.current()?)?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(self.context), sealed);
        ticket.extend_from_slice(tag.ok()?.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys();
        let age = (self.time)().saturating_sub(keys.since).as_secs();
        let lifetime = u64::from(LIFETIME);
        // Nobody may have come for a long time, for whom it would have given way.
        let current = Some(&keys.current).filter(|_| age < 2 * lifetime);
        let former = keys.former.as_ref().filter(|_| age < lifetime);
        let mut keys = current.into_iter().chain(former);
        keys.find_map(|key| self.open(key, ticket))
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1_000_000) };
    }

    fn tickets(asked: &[u8]) -> Tickets {
        Tickets::new(asked, || Duration::from_secs(NOW.get())).unwrap()
    }

    #[test]
    fn a_ticket_is_read_by_whoever_has_the_key_and_by_nobody_else() {
        let [before, after, other] = [(); 3].map(|()| tickets(b""));
        after.restore(&before.save()).unwrap();
        let ticket = before.encrypt(b"a session").unwrap();
        assert_ne!(ticket, before.encrypt(b"a session").unwrap());
        assert_eq!(after.decrypt(&ticket).unwrap(), b"a session");
        assert_eq!(other.decrypt(&ticket), None);
        for length in 0..ticket.len() {
            assert_eq!(after.decrypt(&ticket[..length]), None, "{length}");
        }
    }

    #[test]
    fn where_more_is_asked_of_clients_no_ticket_of_before_is_good() {
        let (before, after) = (tickets(b""), tickets(b"a certificate"));
        after.restore(&before.save()).unwrap();
        let ticket = before.encrypt(b"a session").unwrap();
        assert_eq!(after.decrypt(&ticket), None);
    }

    #[test]
    fn a_key_gives_way_to_another_and_is_forgotten() {
        let lifetime = u64::from(LIFETIME);
        let mut process = tickets(b"");
        let first = process.encrypt(b"first").unwrap();
        let again = |process: &mut Tickets| {
            let next = tickets(b"");
            next.restore(&process.save()).unwrap();
            *process = next;
        };
        NOW.set(NOW.get() + lifetime - 1);
        again(&mut process);
        let last = process.encrypt(b"last").unwrap();
        NOW.set(NOW.get() + 1);
        let second = process.encrypt(b"second").unwrap();
        again(&mut process);
        for (ticket, plain) in [(&first, "first"), (&last, "last"), (&second, "second")] {
            let opened = process.decrypt(ticket);
            assert_eq!(opened.as_deref(), Some(plain.as_bytes()));
        }
        NOW.set(NOW.get() + lifetime);
        assert_eq!(process.decrypt(&last), None);
        assert_eq!(process.decrypt(&second).unwrap(), b"second");
        process.encrypt(b"third").unwrap();
        assert_eq!(process.decrypt(&first), None);
        assert_eq!(process.decrypt(&second).unwrap(), b"second");
        NOW.set(NOW.get() + 2 * lifetime);
        assert_eq!(process.decrypt(&second), None);
        let late = process.encrypt(b"late").unwrap();
        assert!(process.keys().former.is_none());
        assert_eq!(process.decrypt(&late).unwrap(), b"late");
    }

    #[test]
    fn what_was_saved_is_read_back_or_refused() {
        let process = tickets(b"");
        let saved = process.save();
        for length in (0..saved.len()).chain([saved.len() + 1, saved.len() + KEY - 1]) {
            let mut bytes = saved.to_vec();
            bytes.resize(length, 7);
            assert_eq!(process.restore(&bytes), None, "{length}");
        }
        assert_eq!(process.restore(&saved), Some(()));
    }
}
