//! What `serve exec` is told, as typed and as meant.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::ValueEnum;
use standfast::AnyService;

use crate::Failure;
use crate::args::{ProcessArgs, count_or_off};
use crate::units::{Setting, duration_or_off};

/// Where a program's stderr goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StderrName {
    /// To the log, line by line, with the connection's number.
    Log,
    /// Where that of the server goes.
    Inherit,
    /// To the client, as stdout does.
    Socket,
    /// Nowhere.
    Null,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// Most processes at a time, or off; a connection over it is closed with reason limit. [default: 250]
    #[arg(long, value_name = "N", value_parser = count_or_off, allow_hyphen_values = true, help_heading = "Exec")]
    pub(crate) max_children: Option<Setting<NonZeroUsize>>,

    /// How long a process may run before it gets SIGTERM, and SIGKILL 2 s later. [default: off]
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, help_heading = "Exec")]
    pub(crate) exec_timeout: Option<Setting<Duration>>,

    /// Where a program's stderr goes. [default: log]
    #[arg(long, value_enum, value_name = "WHERE", help_heading = "Exec")]
    pub(crate) stderr: Option<StderrName>,

    /// Whom a program runs as, a name or a number, with all of its groups; only root can have that. Implies
    /// --exec-no-new-privs. [default: as the server]
    #[arg(long, value_name = "USER", help_heading = "Exec")]
    pub(crate) exec_user: Option<String>,

    /// What a program may use at the most, repeatable: as, core and fsize in bytes (64m), cpu in seconds, nofile, nproc.
    #[arg(long, value_name = "NAME=N", help_heading = "Exec")]
    pub(crate) exec_limit: Vec<String>,

    /// No program below it gains rights: no setuid program, as sudo is, works there. Implied by --user and --exec-user.
    #[arg(long, help_heading = "Exec")]
    pub(crate) exec_no_new_privs: bool,
}

impl ExecArgs {
    /// Which flags were given.
    pub(crate) fn given(&self) -> [(bool, &'static str); 6] {
        [
            (self.max_children.is_some(), "--max-children"),
            (self.exec_timeout.is_some(), "--exec-timeout"),
            (self.stderr.is_some(), "--stderr"),
            (self.exec_user.is_some(), "--exec-user"),
            (!self.exec_limit.is_empty(), "--exec-limit"),
            (self.exec_no_new_privs, "--exec-no-new-privs"),
        ]
    }

    /// The service that runs the program of `operands`.
    ///
    /// # Errors
    /// There is no program, or it cannot be run.
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    pub(crate) fn service(
        &self,
        operands: &[OsString],
        process: &ProcessArgs,
    ) -> Result<AnyService, Failure> {
        use standfast::process::Identity;
        use standfast::services::Exec;
        use standfast::services::exec::{ExecOptions, Stderr};

        let Some((program, arguments)) = operands.split_first() else {
            return Err(Failure::usage(
                "exec needs a program: serve exec -- PROGRAM ARG...",
            ));
        };
        let mut options = ExecOptions::default();
        if let Some(most) = self.max_children {
            options.max_children = most.into_option();
        }
        if let Some(timeout) = self.exec_timeout {
            options.timeout = timeout.into_option();
        }
        if let Some(stderr) = self.stderr {
            options.stderr = match stderr {
                StderrName::Log => Stderr::Log,
                StderrName::Inherit => Stderr::Inherit,
                StderrName::Socket => Stderr::Socket,
                StderrName::Null => Stderr::Null,
            };
        }
        let gives_up = process.user.is_some() || process.group.is_some();
        options.identity = Identity::named(self.exec_user.as_deref(), None)
            .map_err(|error| Failure::usage(format!("--exec-user: {error}")))?;
        if gives_up
            && options
                .identity
                .as_ref()
                .is_some_and(|identity| !identity.is_this())
        {
            return Err(Failure::usage(
                "--exec-user needs root, which --user and --group give up",
            ));
        }
        options.no_new_privs = self.exec_no_new_privs || self.exec_user.is_some() || gives_up;
        for limit in &self.exec_limit {
            let limit = limit.parse();
            let wrong = |error| Failure::usage(format!("--exec-limit: {error}"));
            options.limits.push(limit.map_err(wrong)?);
        }
        match Exec::new(program, arguments.to_vec(), options) {
            Ok(exec) => Ok(exec.into()),
            Err(error) => Err(Failure::usage(format!(
                "cannot run {}: {error}",
                program.display()
            ))),
        }
    }

    #[cfg(not(all(target_os = "linux", not(standfast_portable))))]
    #[expect(clippy::unused_self, reason = "on Linux it is used")]
    pub(crate) fn service(&self, _: &[OsString], _: &ProcessArgs) -> Result<AnyService, Failure> {
        Err(Failure::usage(
            "exec runs on Linux alone: it watches its processes by pidfd",
        ))
    }
}
