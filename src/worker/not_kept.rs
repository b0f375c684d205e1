//! What stands for a worker's vault where there is none.

use std::any::Any;

use super::Worker;

impl Worker {
    pub(super) fn flush_vault(&mut self) {}

    pub(super) fn put_into_vault(&mut self, _: usize, _: u64) {}

    pub(super) fn move_in_vault(&mut self, _: usize) -> Option<Option<Box<dyn Any + Send>>> {
        Some(None)
    }

    pub(super) fn put_along_into_vault(&mut self, _: usize) {}
}
