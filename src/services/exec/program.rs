//! Which program: found once, at the start, as execvp(3) finds it; and whether the kernel can run it.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::os::children;
use crate::os::sys;
use crate::os::sys::users::linux::Confinement;
use crate::services::exec::options::{ExecOptions, Stderr};

/// Where execvp(3) looks without PATH (`confstr(_CS_PATH)`).
const PATH: &str = "/bin:/usr/bin";

/// A program and its arguments.
#[derive(Debug)]
pub(super) struct Program {
    /// As it was named: its `argv[0]`.
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) stderr: Stderr,
    pub(super) confinement: Confinement,
}

impl Program {
    /// # Errors
    /// There is none of this name, or it may not be executed: in words.
    pub(super) fn find(
        name: &OsStr,
        arguments: Vec<OsString>,
        options: &ExecOptions,
    ) -> io::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
        let path = search(name, &path)?;
        can_run(&path)?;
        let confinement = confinement(options)?;
        Ok(Self {
            name: name.to_owned(),
            path,
            arguments,
            stderr: options.stderr,
            confinement,
        })
    }
}

fn confinement(options: &ExecOptions) -> io::Result<Confinement> {
    if let Some(identity) = &options.identity {
        identity.can_be_had()?;
    }
    for limit in &options.limits {
        limit.can_be_had()?;
    }
    let identity = options.identity.as_ref();
    Ok(Confinement {
        limits: options.limits.iter().map(|limit| limit.raw()).collect(),
        identity: identity
            .filter(|identity| !identity.is_this())
            .map(|identity| identity.0.clone()),
        no_new_privs: options.no_new_privs,
    })
}

fn search(name: &OsStr, path: &OsStr) -> io::Result<PathBuf> {
    if name.is_empty() {
        return Err(error(io::ErrorKind::NotFound, "the name is empty"));
    }
    if name.as_bytes().contains(&b'/') {
        return executable(name.into());
    }
    let mut worst = error(io::ErrorKind::NotFound, "no such program in PATH");
    for folder in std::env::split_paths(path) {
        // An empty one is the working directory (environ(7)).
        match executable(Path::new(".").join(folder).join(name)) {
            Ok(found) => return Ok(found),
            Err(found) if found.kind() != io::ErrorKind::NotFound => worst = found,
            Err(_) => {}
        }
    }
    Err(worst)
}

fn executable(path: PathBuf) -> io::Result<PathBuf> {
    let shown = path.display();
    match std::fs::metadata(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            Err(error(cause.kind(), "no such file"))
        }
        Err(cause) => Err(error(cause.kind(), &format!("{shown}: {cause}"))),
        Ok(found) if !found.is_file() => Err(error(
            io::ErrorKind::PermissionDenied,
            &format!("{shown} is no file"),
        )),
        Ok(_) => match accessat(CWD, &path, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => Ok(path),
            Err(_) => Err(error(
                io::ErrorKind::PermissionDenied,
                &format!("{shown} is not executable"),
            )),
        },
    }
}

/// Has the kernel load it, and ends it before its first instruction: no list of formats, interpreters and emulators says
/// as well what would come of it.
fn can_run(path: &Path) -> io::Result<()> {
    let mut command = sys::stopped_at_exec(CString::new(path.as_os_str().as_bytes())?);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match children::spawn(&mut command) {
        Ok(mut child) => {
            child.kill()?;
            child.wait()?;
            Ok(())
        }
        // It may not be traced, here: nothing is known.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Err(cause) => Err(unrunnable(path, &cause)),
    }
}

/// Why the kernel cannot run it, in words.
fn unrunnable(path: &Path, cause: &io::Error) -> io::Error {
    let shown = path.display();
    let said = match cause.raw_os_error() {
        Some(libc::ENOEXEC) => format!(
            "{shown} is nothing that this system runs: a script begins with #! and its interpreter, a program is made for this machine"
        ),
        // It is there.
        Some(libc::ENOENT) => match interpreter(path) {
            Some(interpreter) => format!("the interpreter of {shown}, {interpreter}, is missing"),
            None => format!("the loader of {shown} is missing"),
        },
        _ => format!("{shown}: {cause}"),
    };
    error(cause.kind(), &said)
}

/// What the first line of a script names (execve(2), "Interpreter scripts").
fn interpreter(path: &Path) -> Option<String> {
    let mut start = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(256).read_to_end(&mut start).ok()?;
    let line = start
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let line = String::from_utf8_lossy(line)
        .trim_start()
        .replace('\r', "\\r");
    Some(line.split_ascii_whitespace().next()?.to_owned())
}

fn error(kind: io::ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, path: &str) -> Result<PathBuf, String> {
        search(name.as_ref(), path.as_ref()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_program_is_found_as_execvp_finds_it() {
        assert_eq!(found("sh", "/nowhere:/bin"), Ok("/bin/sh".into()));
        assert_eq!(found("/bin/sh", "/nowhere"), Ok("/bin/sh".into()));
    }

    #[test]
    fn what_is_none_is_named() {
        let no = |name, path| found(name, path).unwrap_err();
        assert_eq!(no("sh", "/nowhere"), "no such program in PATH");
        assert_eq!(no("./sh", "/bin"), "no such file");
        assert_eq!(no("", "/bin"), "the name is empty");
        assert_eq!(no("/etc/passwd", "/bin"), "/etc/passwd is not executable");
        assert_eq!(
            no("passwd", "/etc:/nowhere"),
            "/etc/passwd is not executable"
        );
        assert_eq!(no("/bin/", "/bin"), "/bin/ is no file");
    }
}
