//! What `serve exec` is told, as typed and as meant.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::ValueEnum;
use standfast::AnyService;

use crate::Failure;
use crate::args::count_or_off;
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
}

impl ExecArgs {
    /// Which flags were given.
    pub(crate) fn given(&self) -> [(bool, &'static str); 3] {
        [
            (self.max_children.is_some(), "--max-children"),
            (self.exec_timeout.is_some(), "--exec-timeout"),
            (self.stderr.is_some(), "--stderr"),
        ]
    }

    /// The service that runs the program of `operands`.
    ///
    /// # Errors
    /// There is no program, or it cannot be run.
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    pub(crate) fn service(&self, operands: &[OsString]) -> Result<AnyService, Failure> {
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
    pub(crate) fn service(&self, _: &[OsString]) -> Result<AnyService, Failure> {
        Err(Failure::usage(
            "exec runs on Linux alone: it watches its processes by pidfd",
        ))
    }
}
