//! A worker behind a keeper: what of its connections is there for the next server.

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::Worker;
use crate::handle::lifecycle::Lifecycle;
use crate::os::sys::duplicate;
use crate::os::sys::mapping::Mapping;
use crate::service::Survive;
use crate::vault::Vault;
use crate::worker::buffer::ReadBuffer;

/// How a worker's event queue is called, to a keeper.
const EVENTS: &str = "events";

impl Worker {
    /// What it has is in `vault` from here on, and `buffer` is what it reads into.
    pub(crate) fn keep_in(&mut self, vault: Vault, buffer: Mapping) {
        self.vault = Some(vault);
        self.buffer = ReadBuffer::kept(buffer);
    }

    /// A keeper has a copy of its event queue: the end of this process need not wait, then, until the system has taken leave of each
    /// connection there. That is what the keeper does, once another server has them.
    ///
    /// # Errors
    /// No descriptors, or no keeper.
    pub(crate) fn store_events(&self, keeper: &Arc<dyn Lifecycle>) -> io::Result<()> {
        let events = duplicate(&self.poll)?;
        keeper.store(&format!("{EVENTS}-{}", self.index), &[events.as_fd()])
    }

    /// So many connections are to be taken in.
    pub(crate) fn expect(&mut self, connections: usize) {
        self.connections.reserve(connections);
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.vault.is_some()
    }

    /// All connections that it has by now are there.
    ///
    /// # Errors
    /// They are not, for want of descriptors.
    pub(crate) fn seal_vault(&mut self) -> io::Result<()> {
        match &mut self.vault {
            Some(vault) => vault.seal(&mut self.connections, self.shared.last_id()),
            None => Ok(()),
        }
    }

    /// Stands still until the process ends, with all that it has where the next server finds it.
    pub(super) fn leave(&mut self, left: &Sender<bool>) -> ! {
        let is_whole = self.vault.is_some() && self.seal_vault().is_ok();
        // Who asked may not have waited.
        let _ = left.send(is_whole);
        loop {
            std::thread::park();
        }
    }

    /// It serves without one.
    pub(crate) fn leave_vault(&mut self) {
        self.vault = None;
    }

    /// What has come by now is there; nothing any more, once there is no keeper.
    #[inline]
    pub(crate) fn flush_vault(&mut self) {
        let Some(vault) = &mut self.vault else { return };
        if self.shared.takeover.keeper().is_some() {
            vault.flush(&mut self.connections, self.now);
        } else {
            self.leave_vault();
        }
    }

    /// A service has heard of that connection, for which so much output waits or is to come.
    pub(super) fn put_into_vault(&mut self, key: usize, waits: u64) {
        let connection = self.connections.get_mut(key);
        if let (Some(vault), Some(connection)) = (&mut self.vault, connection)
            // Keys are kept nowhere but in the process that uses them.
            && !connection.io.has_tls()
            && !connection.io.has_far_tls()
        {
            let service = &self.origins[usize::from(connection.io.listener)]
                .settings
                .service;
            vault.arrived(key, connection, waits, (service, self.now));
            let is_given_again = service.survive().is_given_again();
            connection.io.withhold(is_given_again && vault.has(key));
        }
    }

    /// That connection goes to another worker. Answers what stands for it here until it is there, if anything does. `None`: there
    /// is no room for it on the way.
    pub(super) fn move_in_vault(&mut self, key: usize) -> Option<Option<Box<dyn Any + Send>>> {
        let connection = self.connections.get(key);
        let (Some(vault), Some(connection)) = (&mut self.vault, connection) else {
            return Some(None);
        };
        let service = &self.origins[usize::from(connection.io.listener)]
            .settings
            .service;
        vault.moves(key, connection, service, self.now)
    }

    /// A connection has come of another process, as it is now: its service notes that where the next one finds it.
    pub(super) fn has_come(&mut self, key: usize) {
        let vault = self.vault.as_ref();
        if !vault.is_some_and(|vault| vault.has(key)) {
            return;
        }
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let origin = &self.origins[usize::from(connection.io.listener)];
        if origin.settings.service.survive() == Survive::Journal && connection.io.door().is_none() {
            connection.has_come(&origin.serving(self.now, self.buffer.bytes(origin.has_tls())));
        }
    }

    /// It was just being served when the server crashed that it was of, with input of its own or without.
    pub(crate) fn suspect(&mut self, key: usize, had_input: bool) {
        let connection = self.connections.get(key);
        if let (Some(vault), Some(connection)) = (&mut self.vault, connection) {
            let service = &self.origins[usize::from(connection.io.listener)]
                .settings
                .service;
            vault.suspect(key, had_input, connection, service, self.now);
        }
    }

    /// What stands beside that connection has come.
    pub(super) fn put_along_into_vault(&mut self, key: usize) {
        let connection = self.connections.get(key);
        if let (Some(vault), Some(connection)) = (&mut self.vault, connection) {
            if connection.io.has_far_tls() {
                // Up to here it could be dialled for anew.
                vault.forget(key);
            } else {
                vault.came_along(key, &connection.io);
            }
        }
    }

    /// How that connection stands now is there.
    pub(super) fn settle_in_vault(&mut self, key: usize) {
        let connection = self.connections.get(key);
        if let (Some(vault), Some(connection)) = (&mut self.vault, connection) {
            let service = &self.origins[usize::from(connection.io.listener)]
                .settings
                .service;
            vault.settle(key, connection, service, self.now);
        }
    }
}
