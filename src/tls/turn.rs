//! What both sides of a handshake do alike with what rustls says.

use rustls::Error;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError};

/// Room for most flights, bytes.
const FLIGHT: usize = 4096;

/// What rustls wants, once it was offered what has come.
#[derive(Debug)]
pub(super) enum Turn {
    /// To be asked again.
    GoesOn,
    /// More of the peer.
    Waits,
    Done,
    /// The peer has said goodbye.
    GivenUp,
    /// It finds that wrong, and may have an alert to say.
    Refuses(Error),
    /// What cannot be.
    Strange(String),
}

impl Turn {
    /// What `state` asks for. What is to be said goes behind what `out` holds.
    pub(super) fn of<Data>(
        state: Result<ConnectionState<'_, '_, Data>, Error>,
        out: &mut Vec<u8>,
    ) -> Self {
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let from = out.len();
                out.resize(from + FLIGHT, 0);
                let mut encoded = data.encode(out.get_mut(from..).unwrap_or_default());
                if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
                    encoded
                {
                    out.resize(from + required_size, 0);
                    encoded = data.encode(out.get_mut(from..).unwrap_or_default());
                }
                out.truncate(from + encoded.as_ref().map_or(0, |length| *length));
                match encoded {
                    Ok(_) => Self::GoesOn,
                    Err(error) => Self::Strange(error.to_string()),
                }
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                Self::GoesOn
            }
            Ok(ConnectionState::BlockedHandshake) => Self::Waits,
            Ok(ConnectionState::WriteTraffic(_)) => Self::Done,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Self::GivenUp,
            Ok(other) => Self::Strange(format!("{other:?}")),
            Err(error) => Self::Refuses(error),
        }
    }
}
