//! Orders that may be given up before they are carried out.

use std::fmt;
use std::sync::Arc;

/// Whether an order still stands. A worker that hangs finds it in its mailbox when whoever gave it has long given up.
#[derive(Clone)]
pub(crate) struct Wanted(Arc<dyn Fn() -> bool + Send + Sync>);

impl Wanted {
    pub(crate) fn always() -> Self {
        Self::as_long_as(|| true)
    }

    /// As long as `somebody_waits`.
    pub(crate) fn as_long_as(somebody_waits: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(somebody_waits))
    }

    pub(crate) fn stands(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wanted")
    }
}
