//! Servers with a control socket, in a runtime folder of the test's own; and what the commands for them answer.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::{Orphan, Server, output, restarted, shell, standfast};

/// A runtime folder of the test's own, so that it sees no other server; gone when dropped.
pub(crate) struct Home {
    pub(crate) path: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let count = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("standfast-control-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Self { path }
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn standfast(&self, args: &[&str]) -> Command {
        let mut command = standfast();
        command.env("XDG_RUNTIME_DIR", &self.path).args(args);
        command
    }

    /// `program` with this runtime folder, for a server that it is or starts: told of no manager, nor what to log.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("XDG_RUNTIME_DIR", &self.path)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG");
        command
    }

    /// `sh -c SCRIPT`, in which `"$@"` is `standfast ARGS...`.
    pub(crate) fn shell(&self, script: &str, args: &[&str]) -> Command {
        let mut command = shell(script, args);
        command.env("XDG_RUNTIME_DIR", &self.path);
        command
    }

    /// `serve --replace ARGS...` on `addresses`.
    pub(crate) fn successor(&self, addresses: &[SocketAddr], args: &[&str]) -> Command {
        let mut command = self.standfast(&["serve", "--replace"]);
        for address in addresses {
            command.arg("-l").arg(address.to_string());
        }
        command.args(args);
        command
    }

    /// A new process with `args` that is to take over from `server` and has `fault`; it has been started.
    pub(crate) fn faulty(&self, server: &Server, args: &[&str], fault: &str) -> Server {
        let mut command = self.successor(&server.addresses, args);
        command.env("STANDFAST_FAULT", fault);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Server::launch(command)
    }

    /// Has a new process with `args` take over from `server`, which ends as it should.
    #[track_caller]
    pub(crate) fn succeed(&self, server: &mut Server, args: &[&str]) -> Server {
        let addresses = server.addresses.clone();
        let next = server.replaced_by(addresses.len(), || self.successor(&addresses, args));
        assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
        next
    }

    /// What `standfast ARGS...` answers, by which a new process takes over; tried again as long as the machine is too busy.
    #[track_caller]
    pub(crate) fn taken_over(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = restarted(|| self.standfast(args));
        assert_eq!((code, &*stderr), (0, ""), "{args:?}: {stdout}");
        stdout
    }

    /// Has the server, the only one here unless `target` says which, start its successor: that, and what was answered.
    #[track_caller]
    pub(crate) fn restart(&self, target: &[&str]) -> (Orphan, String) {
        let said = self.taken_over(&[&["restart"], target].concat());
        (Orphan::new(self.pid(target)), said)
    }

    /// The process that answers.
    #[track_caller]
    pub(crate) fn pid(&self, target: &[&str]) -> u32 {
        let status = self.json(&[&["status"], target].concat());
        u32::try_from(number(&status["pid"])).unwrap()
    }

    /// A server on a free port of 127.0.0.1, unless `args` say where.
    pub(crate) fn serve(&self, args: &[&str]) -> Server {
        let mut command = self.standfast(&["serve"]);
        if !args.contains(&"-l") {
            command.args(["-l", "0"]);
        }
        // Last: what follows a `--` is a program's.
        command.args(args);
        Server::spawn(command, 1)
    }

    /// Where its control socket stands if nothing else was asked for.
    pub(crate) fn socket_of(&self, server: &Server) -> PathBuf {
        let address = server.address();
        let name = format!("{}-{}.sock", address.ip(), address.port());
        self.join("standfast").join(name)
    }

    /// What `standfast ARGS...` answers, without a word of complaint.
    #[track_caller]
    pub(crate) fn answer(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = output(self.standfast(args));
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}: {stdout}");
        stdout
    }

    /// The same in JSON.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.answer(&[args, &["--json"]].concat());
        assert_eq!(text.lines().count(), 1, "{args:?}: one line: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// What `standfast ARGS...` says when it does not answer, and its exit code.
    #[track_caller]
    pub(crate) fn refusal(&self, args: &[&str]) -> (i32, String) {
        refusal(self.standfast(args))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The one line that `command` says instead of an answer, and its exit code.
#[track_caller]
pub(crate) fn refusal(command: Command) -> (i32, String) {
    let (code, stdout, stderr) = output(command);
    assert_eq!(stdout, "", "an answer on stdout, and on stderr: {stderr}");
    assert!(
        stderr.starts_with("standfast: ") && stderr.lines().count() == 1,
        "one clear line:\n{stderr}"
    );
    (code, stderr)
}

/// The one line that `command` says where it is asked wrongly.
#[track_caller]
pub(crate) fn usage(command: Command) -> String {
    let (code, line) = refusal(command);
    assert_eq!(code, 2, "{line}");
    line
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A duration in an answer: seconds, as a number.
#[track_caller]
pub(crate) fn seconds(value: &Value) -> f64 {
    let seconds = value.as_f64();
    seconds.unwrap_or_else(|| panic!("seconds as a number, not {value}"))
}

/// A count in an answer.
#[track_caller]
pub(crate) fn number(value: &Value) -> u64 {
    let number = value.as_u64();
    number.unwrap_or_else(|| panic!("a whole number, not {value}"))
}

/// The entry of `client` in a list.
#[track_caller]
pub(crate) fn entry<'a>(list: &'a Value, client: &TcpStream) -> &'a Value {
    let peer = client.local_addr().unwrap().to_string();
    let mut entries = list.as_array().unwrap().iter();
    let entry = entries.find(|entry| entry["peer"] == peer.as_str());
    entry.unwrap_or_else(|| panic!("no {peer} in {list}"))
}
