//! Which service `serve` is to run, and what belongs to it alone, as typed.

use std::ffi::OsString;

use clap::ValueEnum;

/// What to do with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceName {
    /// Sends every byte back.
    Echo,
    /// Reads and forgets.
    Discard,
    /// What clients send goes to stdout, lines never interleaved.
    Print,
}

impl ServiceName {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Discard => "discard",
            Self::Print => "print",
        }
    }
}

/// A service and what it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct ServiceArgs {
    /// What to do with connections.
    #[arg(value_enum, default_value = "echo")]
    pub(crate) service: ServiceName,

    /// What the service works on.
    #[arg(value_name = "ARG", hide = true)]
    pub(crate) operands: Vec<OsString>,

    /// print: the peer before each line.
    #[arg(long)]
    pub(crate) prefix: bool,
}

impl ServiceArgs {
    /// The flags that were given, each with the service it is for.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, ServiceName)> {
        [(self.prefix, "--prefix", ServiceName::Print)]
            .into_iter()
            .filter(|&(given, _, _)| given)
            .map(|(_, flag, of)| (flag, of))
    }
}
