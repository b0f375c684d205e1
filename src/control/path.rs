//! Where the control socket is: a path of this user's own, derived from the first listener's address.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::address::endpoint::Endpoint;
use crate::os::socket_file;

/// The folder of this user's control sockets: `standfast` in `XDG_RUNTIME_DIR`, else in `/run/user/UID`, else
/// `/tmp/standfast-UID`. It need not exist yet.
#[must_use]
pub fn folder() -> PathBuf {
    let uid = geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        // Not that of root, for a process that root has made another user's.
        .filter(|path| path.is_absolute() && is_folder_of(path, uid))
        .or_else(|| Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|path| path.is_dir()));
    runtime.map_or_else(
        || PathBuf::from(format!("/tmp/standfast-{uid}")),
        |runtime| runtime.join("standfast"),
    )
}

fn is_folder_of(path: &Path, uid: u32) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_dir() && (found.uid() == uid || uid == 0))
}

/// The control socket of the server whose first listener is at `endpoint`: `ADDRESS-PORT.sock`, or of a Unix socket
/// its path with `-` for each `/`.
#[must_use]
pub fn of(endpoint: &Endpoint) -> PathBuf {
    let name = match endpoint {
        Endpoint::Tcp(address) => format!("{}-{}", address.ip(), address.port()),
        other => other.to_string().replace(['/', ':'], "-"),
    };
    folder().join(name + ".sock")
}

/// The control sockets there are whose names end in `-PORT.sock`; of every port if none is given.
pub(crate) fn existing(port: Option<u16>) -> Vec<PathBuf> {
    let ending = port.map_or_else(|| ".sock".to_owned(), |port| format!("-{port}.sock"));
    let Ok(entries) = fs::read_dir(folder()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.ends_with(&ending))
        })
        .collect();
    found.sort();
    // What killed servers left is no server. One alone stays: whoever asks there hears what became of it.
    if found.len() > 1 {
        found.retain(|path| socket_file::is_alive(path));
    }
    found
}

/// Makes the folder of `path` if it is the default one, open to this user alone, and refuses one that is not.
pub(crate) fn prepare(path: &Path) -> io::Result<()> {
    let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    else {
        return Ok(());
    };
    if parent != folder() {
        return Ok(());
    }
    match DirBuilder::new().mode(0o700).create(parent) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(parent)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} is not a folder of this user's alone (mode 0700)",
                parent.display()
            ),
        ));
    }
    Ok(())
}
