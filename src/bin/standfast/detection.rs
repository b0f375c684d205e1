//! How a vanished peer is to be found, as meant: what `--keepalive` and `--dead-after` say together. The arithmetic, and
//! what of it is a contradiction, is the library's.

use std::time::Duration;

use standfast::Keepalive;

use crate::Failure;
use crate::units::Setting;

/// The keepalive that is meant: as said, or derived from the bound, or the default.
pub(crate) fn keepalive(
    said: Option<Setting<Keepalive>>,
    dead_after: Option<Duration>,
) -> Result<Option<Keepalive>, Failure> {
    Ok(match (said, dead_after) {
        (Some(Setting::Off), _) => None,
        (Some(Setting::On(keepalive)), _) => Some(keepalive),
        (None, Some(bound)) => Some(Keepalive::within(bound).map_err(standfast::Error::from)?),
        (None, None) => Some(Keepalive::default()),
    })
}
