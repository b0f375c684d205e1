//! What is asked on the control socket, and what is answered: JSON, one message each.

use serde::{Deserialize, Serialize};

use crate::address::endpoint::Endpoint;
use crate::inspect::{ConnectionInfo, Status, Takeover};

/// What is asked of a server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Question {
    Status,
    List,
    /// Where the server tells of itself over HTTP; the sockets follow the answer.
    Metrics,
    Kill {
        id: u64,
    },
    Drain,
    Stop,
    /// Start a successor and give the server over to it.
    Restart,
    /// Give the server over to the asking process.
    TakeOver(Hello),
}

impl Question {
    /// Whether something is to be done, rather than told.
    pub(crate) fn is_order(&self) -> bool {
        !matches!(self, Self::Status | Self::List | Self::Metrics)
    }
}

/// What a process that wants to take over says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u8,
    pub(crate) schema: u16,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// How many connections its descriptor limit allows.
    pub(crate) max_conns: usize,
    /// Its network namespace, as `/proc/self/ns/net` names it.
    pub(crate) network: String,
    /// What it will listen on, and the service there.
    pub(crate) listeners: Vec<(Endpoint, String)>,
    /// Of each of those which service it is: the same number, the same one. None where it does not matter.
    #[serde(default)]
    pub(crate) services: Vec<u16>,
    /// What is not among those, or is another service there, is given up.
    #[serde(default)]
    pub(crate) reload: bool,
    /// It goes on with [what was shown](crate::wire::record::Message::Past).
    #[serde(default)]
    pub(crate) past: bool,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Status(Box<Status>),
    /// Some of the connections; more follow until `Done`.
    Connections(Vec<ConnectionInfo>),
    /// The takeover begins: listeners and connections of process `pid` follow.
    Giving {
        pid: u32,
        /// It answers those that are passed on to it afterwards.
        #[serde(default)]
        hears: bool,
    },
    /// The successor serves.
    Restarted(Takeover),
    /// The addresses; their descriptors follow, if there are any.
    Metrics(Vec<Endpoint>),
    /// It is done, or the last of a series.
    Done,
    /// It cannot be done; why.
    Refused(String),
    /// It takes its time; the answer follows.
    Wait,
    /// Another process has taken over: this one cannot answer for it, and what was asked is to be asked again. What was
    /// answered before does not count.
    Moved,
}
