//! Services to listen with: each the smallest honest [`Service`](crate::Service).

mod discard;
mod echo;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
mod exec;
pub(crate) mod forward;
pub(crate) mod hub;
mod print;

pub use discard::Discard;
pub use echo::Echo;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub use exec::{Exec, ExecOptions, Process, Stderr};
pub use forward::{Forward, Search};
pub use hub::{Hub, HubClient, HubOptions, Slow};
pub use print::Print;
