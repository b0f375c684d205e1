//! The door: listening sockets (`settings.rs`, `listener.rs`), who comes in (`accept.rs`, `access.rs`, `admission.rs`, `pace.rs`)
//! and as what (`origin.rs`).

pub(crate) mod accept;
pub(crate) mod access;
pub(crate) mod admission;
pub(crate) mod effective;
pub(crate) mod listener;
pub(crate) mod origin;
pub(crate) mod pace;
pub(crate) mod settings;
