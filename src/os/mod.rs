//! What the system offers and no safe crate does, sockets' files, and who else is there.

#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub mod children;
pub(crate) mod descriptors;
pub(crate) mod fault;
pub(crate) mod holder;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub(crate) mod identity;
pub mod inherited;
#[cfg_attr(not(control), path = "no_journal.rs")]
pub(crate) mod journal;
#[cfg(control)]
pub(crate) mod kept;
pub(crate) mod socket_file;
#[cfg(control)]
pub(crate) mod successor;
pub(crate) mod sys;
pub mod threads;
pub(crate) mod users;
