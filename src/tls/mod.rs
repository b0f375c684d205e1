//! TLS, without I/O: bytes come in, bytes go out, and a session can be written down and read again in another process.
//!
//! rustls makes the handshake (`handshake.rs`, at the dialling end `dialling.rs`). Behind it a session is small: a suite, and each way a key and how many
//! records it has sealed. So rustls's object is dropped by then, and `session.rs` does what RFC 8446 and RFC 5246 leave to
//! be done: records, alerts, `KeyUpdate`. There is no cryptography here: sealing, opening and derivation are ring's
//! (`keys.rs`), nonces and additional data rustls's.
//!
//! A nonce that is used twice gives the key away. So a session that was saved seals nothing any more, unless nobody ever
//! reads what was saved: in a takeover it is saved in the freeze, and read for good once the old process has let go.

mod certificate;
mod dialling;
mod handshake;
mod keys;
mod session;
mod settings;
mod tickets;
mod towards;
mod trust;
mod turn;

pub(crate) use dialling::{Greeted, Greeting, Refusal};
pub(crate) use handshake::{Handshake, Step};
pub(crate) use session::{Fault, LONGEST_RECORD, Opened, Session, UsedUp};
pub use settings::{CertificateInfo, ClientAuth, Tls, TlsError, TlsSettings, TlsVersion};
pub use towards::{DialTls, DialTlsSettings};
