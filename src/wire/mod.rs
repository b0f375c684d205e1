//! Bytes between two processes: of a question and its answer (`question.rs`), and of a takeover (`record.rs`,
//! `baton.rs`), over one end of the control socket (`line.rs`).

pub(crate) mod baton;
pub(crate) mod line;
pub(crate) mod pace;
pub(crate) mod question;
pub(crate) mod record;
