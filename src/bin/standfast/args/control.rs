//! What a running server is asked, and where, as typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::units::duration;

/// What a running server is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Order {
    /// Show a running server: its listeners, connections, counters.
    Status(TargetArgs),
    /// Show every connection of a running server.
    List(TargetArgs),
    /// End one connection of a running server, with reason killed.
    Kill {
        /// Its number, as list and the log show it.
        id: u64,
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Make a running server drain, as a first SIGTERM does.
    Drain(TargetArgs),
    /// End a running server at once, as a second SIGTERM does.
    Stop(TargetArgs),
    /// Have a running server start its own successor, which takes over its connections. Waits for the outcome.
    Restart(TargetArgs),
    /// Have a running server's configuration read anew, by a successor that takes over its connections. A file that is
    /// refused changes nothing, and is answered with what is wrong. Without --config it is restart.
    Reload(TargetArgs),
}

impl Order {
    /// Which server.
    pub(crate) fn target(&self) -> &TargetArgs {
        match self {
            Self::Status(target)
            | Self::List(target)
            | Self::Kill { target, .. }
            | Self::Drain(target)
            | Self::Stop(target)
            | Self::Restart(target)
            | Self::Reload(target) => target,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct TargetArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which server is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Which server: PORT, ADDRESS:PORT, or the path of its control socket. Not needed while there is only one.
    #[arg(value_name = "SERVER")]
    pub(crate) server: Option<String>,

    /// The path of its control socket.
    #[arg(long, value_name = "PATH", conflicts_with = "server")]
    pub(crate) control: Option<PathBuf>,

    /// How long to wait for the server. What it has not answered by then is given up, and not carried out later.
    #[arg(long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true, default_value = "30s")]
    pub(crate) timeout: Duration,
}

/// Where the control socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlPath {
    Off,
    At(PathBuf),
}

pub(super) fn control_path(text: &str) -> Result<ControlPath, String> {
    match text {
        "off" => Ok(ControlPath::Off),
        "" => Err("expected a path, or off".to_owned()),
        path => Ok(ControlPath::At(path.into())),
    }
}
