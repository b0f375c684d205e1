//! A configuration that is read anew by a process that takes over.
