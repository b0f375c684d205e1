//! Sends every byte back (RFC 862).

use crate::service::{Context, Exported, Service, Survive};

/// Sends every byte back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Service for Echo {
    type State = ();

    fn name(&self) -> &'static str {
        "echo"
    }

    fn open(&self, _: &mut Context<'_>) {}

    fn export(&self, (): &()) -> Option<Exported> {
        Some(Exported::default())
    }

    fn survive(&self) -> Survive {
        Survive::Echo
    }

    fn import(&self, _: &Exported) -> Result<(), String> {
        Ok(())
    }

    #[inline]
    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(bytes);
        bytes.len()
    }
}
