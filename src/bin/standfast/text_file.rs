//! A file that a setting names, read whole; and what is no such file is refused, rather than waited for.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

/// The text of the file at `path`, of at most so many bytes.
///
/// # Errors
/// What the system said; what is no file, larger, or no text.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<String> {
    // To open a FIFO waits for who writes it, but for O_NONBLOCK, which a file does not mind.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() {
        let kind = if found.is_dir() {
            "a directory"
        } else {
            "not a file"
        };
        return Err(io::Error::other(kind));
    }
    let mut text = Vec::new();
    if file.take(most + 1).read_to_end(&mut text)? as u64 > most {
        return Err(io::Error::other(format!("larger than {} MiB", most >> 20)));
    }
    String::from_utf8(text).map_err(|_| io::Error::other("not text (UTF-8)"))
}
