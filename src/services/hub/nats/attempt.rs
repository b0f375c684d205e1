//! How long it is tried, how often, and why it comes to nothing.

use std::time::Duration;

/// How long one attempt at one server may take.
pub(super) const ATTEMPT: Duration = Duration::from_secs(2);

/// How long to wait before the next attempt, at most.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked whether a connection has come back.
pub(super) const GLANCE: Duration = Duration::from_millis(20);

/// What a message's headers take of `max_payload`, at most, bytes.
pub(super) const HEADERS: usize = 512;

/// What a message has to have room for, bytes: less is all headers.
pub(super) const LEAST: usize = 2 * HEADERS;

/// Why it came to nothing.
pub(super) struct Wrong {
    pub(super) why: String,
    /// It is of no use to try again.
    pub(super) for_good: bool,
}

impl Wrong {
    pub(super) fn for_good(why: String) -> Self {
        let for_good = true;
        Self { why, for_good }
    }

    pub(super) fn for_now(why: String) -> Self {
        let for_good = false;
        Self { why, for_good }
    }
}
