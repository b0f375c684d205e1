//! One wait for readiness, as every loop has it.

use std::io::{self, ErrorKind};

use mio::{Events, Poll};

use crate::time::deadline::Moment;

/// Waits from `began` until something is ready, or until `until`. Answers how many events there are; `None`: it was
/// interrupted (`epoll_wait(2)`: EINTR), and nobody was asked.
///
/// # Errors
/// What the event queue itself said.
pub(crate) fn wait(
    poll: &mut Poll,
    events: &mut Events,
    began: Moment,
    until: Moment,
) -> io::Result<Option<usize>> {
    // mio rounds up to the millisecond; a deadline is never met early.
    let timeout = (until != Moment::NEVER).then(|| until.since(began));
    match poll.poll(events, timeout) {
        Err(error) if error.kind() == ErrorKind::Interrupted => {
            events.clear();
            Ok(None)
        }
        polled => polled.map(|()| Some(events.iter().count())),
    }
}
