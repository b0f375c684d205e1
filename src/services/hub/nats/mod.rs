//! The feed beyond this machine: hubs of one subject, over NATS, share it. Each is one more client of the others.
//!
//! The hub knows this file alone. `bridge.rs` is what it has in common with the thread of `link.rs`; what that says is
//! `said.rs`, what it hears `heard.rs`, with a stream by `stream.rs`; `place.rs` is how each message says where it belongs, and
//! `remains.rs` what is left of all that by a server that crashes.

mod attempt;
mod bridge;
mod heard;
mod link;
mod options;
mod place;
mod remains;
mod said;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::handle::Handle;
use crate::inspect::NatsInfo;
#[cfg(control)]
use crate::os::journal::Notes;
use crate::services::hub::block::Block;
use crate::services::hub::feed::Feed;
use crate::services::hub::nats::bridge::Bridge;
pub use crate::services::hub::nats::options::{Credentials, Foreign, NatsOptions};
#[cfg(control)]
pub(super) use crate::services::hub::nats::remains::Remains;

/// The way to other hubs, where there is one.
#[derive(Debug, Default)]
pub(super) struct Beyond(Option<Arc<Bridge>>);

impl Beyond {
    /// Opens it for `feed`, which has nothing yet and takes lines of `max_line` bytes. Who connects gets `history` of them.
    ///
    /// # Errors
    /// What is wrong with `options`, to begin with, or in the eyes of the servers.
    pub(super) fn open(
        options: NatsOptions,
        feed: &Arc<Feed>,
        max_line: usize,
        history: usize,
    ) -> Result<Self, Error> {
        options.check()?;
        let bridge = Arc::new(Bridge::new(options, feed, max_line, history));
        let beyond = Self(Some(Arc::clone(&bridge)));
        link::open(&bridge)?;
        Ok(beyond)
    }

    /// The server that it is in. What there was before goes to `publish`.
    pub(super) fn start(&self, server: &Handle, publish: impl FnMut(&[u8], u64) -> bool) {
        if let Some(bridge) = &self.0 {
            bridge.start(server, publish);
        }
    }

    /// The feed of another process takes the place of what there was.
    pub(super) fn make_way(&self) {
        if let Some(bridge) = &self.0 {
            bridge.make_way();
        }
    }

    /// What stands in the feed by now is nothing that is to be said: a server that has crashed has said it, as far as it came. It has
    /// left `remains`, and the next one finds `notes`.
    #[cfg(control)]
    pub(super) fn go_on(&self, notes: Notes, remains: Option<Remains>) {
        if let Some(bridge) = &self.0 {
            bridge.go_on(notes, remains);
        }
    }

    /// Has `publish` pass on what was heard. Called where a round begins.
    pub(super) fn pass_on(&self, publish: impl FnMut(&[u8], u64) -> bool) {
        if let Some(bridge) = &self.0 {
            bridge.pass_on(publish);
        }
    }

    /// Whether more was heard than was passed on.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.as_ref().is_some_and(|bridge| bridge.is_waiting())
    }

    /// A round has begun: the feed may have something new.
    pub(super) fn notice(&self) {
        if let Some(bridge) = &self.0 {
            bridge.serves();
        }
    }

    /// Of what is to be said, blocks behind the position `from` that the feed does not have any more.
    pub(super) fn blocks_behind(&self, from: u64, most: usize) -> Option<Vec<Arc<Block>>> {
        let bridge = self.0.as_ref()?;
        bridge.blocks_behind(from, most)
    }

    /// Of what comes from another process nothing is to be gone before it is known what of it is to be said.
    pub(super) fn hold(&self) {
        if let Some(bridge) = &self.0 {
            bridge.hold();
        }
    }

    /// What another process needs to go on; what waits is passed on by `publish` first.
    pub(super) fn pack(&self, publish: impl FnMut(&[u8], u64) -> bool) -> Option<Vec<u8>> {
        self.0.as_ref().map(|bridge| bridge.pack(publish))
    }

    /// Goes on with that, once the feed has come; or begins where that ends, if its hub was alone.
    ///
    /// # Errors
    /// In words, that these bytes are none.
    pub(super) fn unpack(&self, bytes: Option<&[u8]>) -> Result<(), String> {
        let Some(bridge) = &self.0 else {
            return Ok(());
        };
        let Some(bytes) = bytes else {
            bridge.begin();
            return Ok(());
        };
        let unpacked = bridge.unpack(bytes);
        unpacked.ok_or_else(|| "a hub's place beyond this machine that cannot be read".to_owned())
    }

    /// Brings to an end what is under way. Answers whether all was said, or another process says it.
    pub(super) fn stop(&self, patience: Duration) -> bool {
        let Some(bridge) = &self.0 else {
            return true;
        };
        let patience = patience.min(bridge.options.wait);
        let arrived = bridge.say_all(patience);
        let (_, lines) = bridge.left();
        let all = lines == 0 && arrived || bridge.is_given();
        if lines > 0 && !all {
            log::warn!(subject = bridge.subject(), lines; "not said to other hubs");
        } else if !all {
            log::warn!(subject = bridge.subject(); "NATS does not answer: what was said last may not have come to other hubs");
        }
        bridge.end();
        all
    }

    pub(super) fn info(&self) -> Option<NatsInfo> {
        self.0.as_ref().map(|bridge| bridge.info())
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        if let Some(bridge) = &self.0 {
            bridge.end();
        }
    }
}
