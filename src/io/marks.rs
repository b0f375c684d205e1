//! What the worker notes of a connection; of how far its end has come, `end.rs` says.

use crate::io::flags::{Flag, Flags};

/// What the worker, or a client's loop, has noted of a connection.
pub(crate) type Marks = Flags<Mark>;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    /// On the list of connections with something left to do in the next turn.
    Leftover,
    /// There with what an event has told: its deadlines are not judged before that is looked at.
    PutOff,
    /// On the list of connections that their service has paused.
    Paused,
    /// The process that is taking over has a copy of it.
    Copied,
    /// Changed since it was copied.
    Changed,
    /// Not read for a moment: more bytes would wait than can be copied.
    Held,
    /// A copy of the descriptor was given away, and may live as long as whoever has it: closing ours ends nothing.
    Shared,
    /// To be closed at the end of the turn.
    Closing,
}

impl Flag for Mark {
    #[inline]
    fn place(self) -> u8 {
        self as u8
    }
}
