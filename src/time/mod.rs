//! Instants, read or invented, and who is due when, and how long to wait.

pub(crate) mod allowance;
pub(crate) mod deadline;
pub(crate) mod horizon;
