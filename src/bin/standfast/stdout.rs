//! What a command has to show, on stdout.

use std::io::{self, ErrorKind, Write};

use crate::Failure;

/// Shows `text`. A reader that has had enough is no fault of anybody's.
///
/// # Errors
/// What else the system said.
pub(crate) fn show(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(&error)),
        _ => Ok(()),
    }
}

/// Why stdout could not be written to, in one line.
pub(crate) fn failed(error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write to stdout: {error}"))
}
