//! Services to listen with: each the smallest honest [`Service`](crate::Service).

mod discard;
mod echo;
mod forward;
mod hub;
mod print;

pub use discard::Discard;
pub use echo::Echo;
pub use forward::{Forward, Search};
pub use hub::{Hub, HubClient, HubOptions, Slow};
pub use print::Print;
