//! One direction of a session: the key that seals or opens its records, and how many it has sealed.

use std::cell::OnceCell;

use ring::aead::{self, Aad, LessSafeKey, UnboundKey};
use ring::hkdf::{self, KeyType, Prk};
use rustls::crypto::cipher::{Iv, Nonce, make_tls12_aad, make_tls13_aad};
use rustls::{CipherSuite, ContentType, ProtocolVersion};
use zeroize::{Zeroize, Zeroizing};

/// A record's header, bytes.
pub(super) const HEADER: usize = 5;

/// The most plaintext in one record, bytes.
pub(super) const FRAGMENT: usize = 1 << 14;

/// What an AEAD adds to its plaintext, bytes; it is the same for all of them.
const TAG: usize = 16;

/// The longest secret, bytes: that of a suite with SHA-384.
const LONGEST_SECRET: usize = 48;

/// What the number of a record is mixed with to its nonce, bytes.
const IV: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cipher {
    Aes128,
    Aes256,
    ChaCha20,
}

/// What both sides have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suite {
    id: CipherSuite,
    cipher: Cipher,
    pub(super) is_13: bool,
}

impl Suite {
    /// `None`: there is no such suite here.
    pub(super) fn of(id: CipherSuite) -> Option<Self> {
        let (cipher, is_13) = match id {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => (Cipher::Aes128, true),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => (Cipher::Aes256, true),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => (Cipher::ChaCha20, true),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => (Cipher::Aes128, false),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => (Cipher::Aes256, false),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => (Cipher::ChaCha20, false),
            _ => return None,
        };
        Some(Self { id, cipher, is_13 })
    }

    pub(super) fn number(self) -> u16 {
        self.id.into()
    }

    pub(super) fn name(self) -> &'static str {
        self.id.as_str().unwrap_or("?")
    }

    /// How many records one key may seal: beyond that AES in GCM gives an attacker an advantage (RFC 8446, 5.5).
    pub(super) fn limit(self) -> u64 {
        match self.cipher {
            Cipher::Aes128 | Cipher::Aes256 => 1 << 24,
            Cipher::ChaCha20 => u64::MAX - 1,
        }
    }

    /// How much longer than its header and its plaintext a record is, the type within included.
    fn overhead(self) -> usize {
        TAG + self.explicit() + usize::from(self.is_13)
    }

    /// The part of the nonce that is in the record, bytes.
    fn explicit(self) -> usize {
        match (self.is_13, self.cipher) {
            (false, Cipher::Aes128 | Cipher::Aes256) => 8,
            _ => 0,
        }
    }

    fn key_length(self) -> usize {
        self.algorithm().key_len()
    }

    /// What a direction is made of again: of TLS 1.3 the traffic secret, of TLS 1.2 the key.
    fn secret_length(self) -> usize {
        match (self.is_13, self.cipher) {
            (true, Cipher::Aes256) => 48,
            (true, Cipher::Aes128 | Cipher::ChaCha20) => 32,
            (false, _) => self.key_length(),
        }
    }

    fn algorithm(self) -> &'static aead::Algorithm {
        match self.cipher {
            Cipher::Aes128 => &aead::AES_128_GCM,
            Cipher::Aes256 => &aead::AES_256_GCM,
            Cipher::ChaCha20 => &aead::CHACHA20_POLY1305,
        }
    }

    /// HKDF-Expand-Label of TLS 1.3 with no context (RFC 8446, 7.1).
    fn expand(self, secret: &[u8], label: &[u8], out: &mut [u8]) -> Option<()> {
        let hash = match self.cipher {
            Cipher::Aes256 => hkdf::HKDF_SHA384,
            Cipher::Aes128 | Cipher::ChaCha20 => hkdf::HKDF_SHA256,
        };
        let length = u16::try_from(out.len()).ok()?.to_be_bytes();
        let labelled = u8::try_from(b"tls13 ".len() + label.len()).ok()?;
        let info = [&length[..], &[labelled], b"tls13 ", label, &[0]];
        let secret = Prk::new_less_safe(hash, secret);
        secret.expand(&info, Length(out.len())).ok()?.fill(out).ok()
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Why a record could not be opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// It was not sealed by this key, or not as this record.
    Forged,
    /// There is more in it than may be.
    TooLong,
    /// It does not say what it is.
    Untyped,
}

/// One direction of a session.
pub(super) struct Direction {
    suite: Suite,
    secret: Zeroizing<[u8; LONGEST_SECRET]>,
    /// Of TLS 1.2; that of TLS 1.3 comes of the secret.
    iv: [u8; IV],
    /// How many records the key has sealed or opened.
    pub(super) number: u64,
    /// Made when it is first used: in a takeover many come at once.
    key: OnceCell<Key>,
}

struct Key {
    key: LessSafeKey,
    iv: [u8; IV],
}

impl Direction {
    /// Of TLS 1.3, by its traffic secret.
    pub(super) fn of_secret(suite: Suite, secret: &[u8], number: u64) -> Option<Self> {
        Self::of_key(suite, secret, [0; IV], number)
    }

    /// Of TLS 1.2, by its key.
    pub(super) fn of_key(suite: Suite, key: &[u8], iv: [u8; IV], number: u64) -> Option<Self> {
        if key.len() != suite.secret_length() {
            return None;
        }
        let mut secret = Zeroizing::new([0; LONGEST_SECRET]);
        secret.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self {
            suite,
            secret,
            iv,
            number,
            key: OnceCell::new(),
        })
    }

    /// What it is made of again.
    fn secret(&self) -> &[u8] {
        let length = self.suite.secret_length();
        self.secret.get(..length).unwrap_or_default()
    }

    /// What its records are sealed with, in so many bytes of the one.
    fn derived(&self) -> Option<(Zeroizing<[u8; 32]>, [u8; IV])> {
        let (mut key, mut iv) = (Zeroizing::new([0; 32]), self.iv);
        let place = key.get_mut(..self.suite.key_length())?;
        if self.suite.is_13 {
            self.suite.expand(self.secret(), b"key", place)?;
            self.suite.expand(self.secret(), b"iv", &mut iv)?;
        } else {
            place.copy_from_slice(self.secret());
        }
        Some((key, iv))
    }

    /// Whether its records are sealed with this key and this iv.
    pub(super) fn is_of(&self, key: &[u8], iv: &[u8]) -> bool {
        self.derived().is_some_and(|(own, own_iv)| {
            own.get(..self.suite.key_length()) == Some(key) && own_iv == iv
        })
    }

    fn key(&self) -> Option<&Key> {
        if self.key.get().is_none() {
            let (key, iv) = self.derived()?;
            let key = key.get(..self.suite.key_length())?;
            let key = LessSafeKey::new(UnboundKey::new(self.suite.algorithm(), key).ok()?);
            // There was none.
            let _ = self.key.set(Key { key, iv });
        }
        self.key.get()
    }

    /// The one that takes its place with a `KeyUpdate` (RFC 8446, 7.2).
    pub(super) fn next(&self) -> Option<Self> {
        let mut next = Zeroizing::new([0; LONGEST_SECRET]);
        let next = next.get_mut(..self.suite.secret_length())?;
        self.suite.expand(self.secret(), b"traffic upd", next)?;
        Self::of_secret(self.suite, next, 0)
    }

    /// Seals `data`, of at most [`FRAGMENT`] bytes, as one record behind what `out` holds.
    ///
    /// # Errors
    /// ring refuses, which it does for more bytes than a record may have.
    pub(super) fn seal(
        &mut self,
        kind: ContentType,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ring::error::Unspecified> {
        let (suite, number) = (self.suite, self.number);
        // Whatever comes of it, this nonce is not used again.
        self.number += 1;
        let Key { key, iv } = self.key().ok_or(ring::error::Unspecified)?;
        let nonce = Nonce::new(&Iv::from(*iv), number).0;
        let length = data.len() + suite.overhead();
        out.reserve(HEADER + length);
        let nonce_used = aead::Nonce::assume_unique_for_key(nonce);
        let tag = if suite.is_13 {
            let header = make_tls13_aad(length);
            out.extend_from_slice(&header);
            let from = out.len();
            out.extend_from_slice(data);
            out.push(kind.into());
            let sealed = out.get_mut(from..).unwrap_or_default();
            key.seal_in_place_separate_tag(nonce_used, Aad::from(header), sealed)?
        } else {
            let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
            out.extend_from_slice(&[kind.into(), 3, 3, high, low]);
            out.extend_from_slice(nonce.get(IV - suite.explicit()..).unwrap_or_default());
            let from = out.len();
            out.extend_from_slice(data);
            let aad = make_tls12_aad(number, kind, ProtocolVersion::TLSv1_2, data.len());
            let sealed = out.get_mut(from..).unwrap_or_default();
            key.seal_in_place_separate_tag(nonce_used, Aad::from(aad), sealed)?
        };
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a whole record in place. Answers what it is, and its plaintext.
    pub(super) fn open<'a>(
        &mut self,
        record: &'a mut [u8],
    ) -> Result<(ContentType, &'a mut [u8]), Unopened> {
        let suite = self.suite;
        let (header, body) = record
            .split_first_chunk_mut::<HEADER>()
            .ok_or(Unopened::Forged)?;
        let [kind, major, minor, ..] = *header;
        let Key { key, iv } = self.key().ok_or(Unopened::Forged)?;
        let mut nonce = Nonce::new(&Iv::from(*iv), self.number).0;
        let opened = if suite.is_13 {
            let nonce = aead::Nonce::assume_unique_for_key(nonce);
            let opened = key.open_in_place(nonce, Aad::from(*header), body);
            let opened = opened.map_err(|_| Unopened::Forged)?;
            // With its type and what it is padded with (RFC 8446, 5.4).
            if opened.len() > FRAGMENT + 1 {
                return Err(Unopened::TooLong);
            }
            let end = opened.iter().rposition(|byte| *byte != 0);
            let (data, kind) = end
                .and_then(|end| opened.split_at_mut_checked(end))
                .ok_or(Unopened::Untyped)?;
            let kind = kind.first().copied().ok_or(Unopened::Untyped)?;
            (ContentType::from(kind), data)
        } else {
            let (explicit, body) = body
                .split_at_mut_checked(suite.explicit())
                .ok_or(Unopened::Forged)?;
            let length = body.len().checked_sub(TAG).ok_or(Unopened::Forged)?;
            for (place, byte) in nonce.iter_mut().skip(IV - suite.explicit()).zip(explicit) {
                *place = *byte;
            }
            let (kind, version) = (ContentType::from(kind), u16::from_be_bytes([major, minor]));
            let aad = make_tls12_aad(self.number, kind, ProtocolVersion::from(version), length);
            let nonce = aead::Nonce::assume_unique_for_key(nonce);
            let opened = key.open_in_place(nonce, Aad::from(aad), body);
            (kind, opened.map_err(|_| Unopened::Forged)?)
        };
        self.number += 1;
        if opened.1.len() > FRAGMENT {
            return Err(Unopened::TooLong);
        }
        Ok(opened)
    }

    /// Appends what [`restored`](Self::restored) makes one of again: the number, then the secret, of TLS 1.2 with its iv.
    pub(super) fn save(&self, saved: &mut Vec<u8>) {
        saved.extend_from_slice(&self.number.to_be_bytes());
        saved.extend_from_slice(self.secret());
        if !self.suite.is_13 {
            saved.extend_from_slice(&self.iv);
        }
    }

    /// How long that is, bytes.
    pub(super) fn saved_length(suite: Suite) -> usize {
        8 + suite.secret_length() + if suite.is_13 { 0 } else { IV }
    }

    /// Takes one off the front of what was saved.
    pub(super) fn restored(suite: Suite, saved: &mut &[u8]) -> Option<Self> {
        let (number, rest) = saved.split_first_chunk::<8>()?;
        let (secret, rest) = rest.split_at_checked(suite.secret_length())?;
        *saved = rest;
        let number = u64::from_be_bytes(*number);
        if suite.is_13 {
            return Self::of_secret(suite, secret, number);
        }
        let (iv, rest) = rest.split_first_chunk::<IV>()?;
        *saved = rest;
        Self::of_key(suite, secret, *iv, number)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // Of its own part ring offers no such thing.
        self.iv.zeroize();
    }
}
