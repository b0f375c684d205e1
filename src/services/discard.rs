//! Reads and forgets (RFC 863).

use crate::service::{Context, Exported, Service, Survive};

/// Reads and forgets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Service for Discard {
    type State = ();

    fn name(&self) -> &'static str {
        "discard"
    }

    fn open(&self, _: &mut Context<'_>) {}

    fn export(&self, (): &()) -> Option<Exported> {
        Some(Exported::default())
    }

    fn survive(&self) -> Survive {
        Survive::Discard
    }

    fn import(&self, _: &Exported) -> Result<(), String> {
        Ok(())
    }

    fn input(&self, (): &mut (), _: &mut Context<'_>, bytes: &[u8]) -> usize {
        bytes.len()
    }
}
