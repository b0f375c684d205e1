//! What an embedder decides of the processes: how many, for how long, where their stderr goes.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::os::identity::{Identity, ResourceLimit};

/// What [`Exec`](super::Exec) allows its processes.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// Most processes at a time; a connection over it is closed with reason `limit`. Default 250: with their sockets,
    /// pidfds and pipes they fit below the usual limit of 1024 descriptors. `None`: no limit but that on connections.
    pub max_children: Option<NonZeroUsize>,
    /// How long a process may run before it gets SIGTERM, and SIGKILL 2 s later. Default `None`: as long as it
    /// likes.
    pub timeout: Option<Duration>,
    /// Where its stderr goes.
    pub stderr: Stderr,
    /// Whom it runs as, if this process is root's. Default `None`: as this process.
    pub identity: Option<Identity>,
    /// What it may use, each as its soft and its hard limit. Default: what this process may.
    pub limits: Vec<ResourceLimit>,
    /// Whether it gains no rights by what it executes: no setuid program works below it (`PR_SET_NO_NEW_PRIVS`, prctl(2)).
    /// Default: it may.
    pub no_new_privs: bool,
}

impl Default for ExecOptions {
    fn default() -> Self {
        Self {
            max_children: NonZeroUsize::new(250),
            timeout: None,
            stderr: Stderr::Log,
            identity: None,
            limits: Vec::new(),
            no_new_privs: false,
        }
    }
}

/// Where the stderr of an [`Exec`](super::Exec)'s processes goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stderr {
    /// To the log, a line for each line, with the connection's number. Default.
    #[default]
    Log,
    /// Where this process's goes.
    Inherit,
    /// To the client, as stdout does.
    Socket,
    /// Nowhere.
    Null,
}
