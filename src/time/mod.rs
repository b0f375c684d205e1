//! Instants, read or invented, and who is due when.

pub(crate) mod deadline;
pub(crate) mod horizon;
