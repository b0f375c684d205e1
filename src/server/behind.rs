//! The end of a server that has left connections behind: it waits for the process that drains them.

use std::time::Duration;

use super::Server;

impl Server {
    /// Waits for the process that was taken over from, which drains what stayed with it: so the end of this one is the end
    /// of all. At the `bound`, or once this server is told to stop, that ends at once, too. Answers whether it was in time.
    pub(super) fn end_those_behind(&self, bound: Duration) -> bool {
        let shared = &self.handle.shared;
        if let Some(pid) = shared.predecessor() {
            log::info!(pid; "waiting for the former process");
        }
        shared.wait_until_alone(bound, || self.handle.is_stopping());
        let is_alone = shared.predecessor().is_none();
        if let (Some(desk), false) = (&self.takeover.desk, is_alone) {
            desk.stop_those_behind();
        }
        is_alone
    }
}
