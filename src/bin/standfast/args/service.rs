//! Which service `serve` is to run, and what belongs to it alone, as typed.

use std::ffi::OsString;

use clap::ValueEnum;

use crate::args::exec::ExecArgs;
use crate::args::forward::ForwardArgs;
use crate::args::hub::HubArgs;

/// What to do with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceName {
    /// Sends every byte back.
    Echo,
    /// Reads and forgets.
    Discard,
    /// What clients send goes to stdout, lines never interleaved.
    Print,
    /// A line from one client goes to all others; a slow one delays nobody.
    Hub,
    /// Relays both ways to HOST:PORT..., the first that can be reached; the client waits while none can.
    Forward,
    /// Runs a program for each connection, the socket as its stdin and stdout: serve exec -- PROGRAM ARG...
    Exec,
}

impl ServiceName {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Discard => "discard",
            Self::Print => "print",
            Self::Hub => "hub",
            Self::Forward => "forward",
            Self::Exec => "exec",
        }
    }

    /// Whether it works on something that is named behind it.
    pub(crate) const fn takes_operands(self) -> bool {
        match self {
            Self::Forward | Self::Exec => true,
            Self::Echo | Self::Discard | Self::Print | Self::Hub => false,
        }
    }
}

/// A service and what it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct ServiceArgs {
    /// What to do with connections.
    #[arg(value_enum, default_value = "echo")]
    pub(crate) service: ServiceName,

    /// What the service works on: forward: whom to relay to, HOST:PORT, PORT (this host), [::1]:PORT, unix:PATH,
    /// unix:@NAME (abstract); exec: the program and its arguments, after --.
    #[arg(value_name = "ARG")]
    pub(crate) operands: Vec<OsString>,

    /// print: the peer before each line.
    #[arg(long)]
    pub(crate) prefix: bool,

    #[command(flatten)]
    pub(crate) hub: HubArgs,

    #[command(flatten)]
    pub(crate) forward: ForwardArgs,

    #[command(flatten)]
    pub(crate) exec: ExecArgs,
}

impl ServiceArgs {
    /// The flags that were given, each with the service it is for.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, ServiceName)> {
        let given = self.each().filter(|&(given, _, _)| given);
        given.map(|(_, flag, of)| (flag, of))
    }

    /// The flags that are one service's alone.
    pub(crate) fn flags(&self) -> impl Iterator<Item = (&'static str, ServiceName)> {
        self.each().map(|(_, flag, of)| (flag, of))
    }

    fn each(&self) -> impl Iterator<Item = (bool, &'static str, ServiceName)> {
        let hub = self.hub.given();
        let (forward, exec) = (self.forward.given(), self.exec.given());
        [(self.prefix, "--prefix", ServiceName::Print)]
            .into_iter()
            .chain(hub.map(|(given, flag)| (given, flag, ServiceName::Hub)))
            .chain(forward.map(|(given, flag)| (given, flag, ServiceName::Forward)))
            .chain(exec.map(|(given, flag)| (given, flag, ServiceName::Exec)))
    }
}
