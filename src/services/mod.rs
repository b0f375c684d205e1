//! Services to listen with: each the smallest honest [`Service`](crate::Service).

mod discard;
mod echo;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub mod exec;
pub mod forward;
pub mod hub;
mod print;

pub use discard::Discard;
pub use echo::Echo;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub use exec::Exec;
pub use forward::Forward;
pub use hub::Hub;
pub use print::Print;
