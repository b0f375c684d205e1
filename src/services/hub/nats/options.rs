//! Where the feed goes on beyond this machine, as told.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;

/// How a [`Hub`](crate::services::Hub) shares its feed with hubs on other machines.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// The servers: `nats://HOST:PORT`, `tls://HOST:PORT`, or `HOST:PORT`. Any of them will do, at least one.
    pub servers: Vec<String>,
    /// The subject: one of its own, without wildcards. Hubs of one subject share one feed.
    pub subject: String,
    /// The stream of `JetStream` that keeps what is said on the subject: with it each line comes once, while the stream holds it.
    /// Default: none, and what is said while a hub is away is missed.
    pub stream: Option<String>,
    /// Who this is, to the servers. Default: nobody.
    pub credentials: Credentials,
    /// The authorities whose word for a server's certificate counts, in PEM. Default: the system's. With it nothing is said
    /// without TLS.
    pub tls_ca: Option<PathBuf>,
    /// The certificate that is shown to a server, and its key, in PEM.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// How much waits for the servers, in bytes, and how much that they have sent waits for this hub: what does not fit is lost,
    /// and counted. Default 16 MiB.
    pub buffer: usize,
    /// How long a start waits for the servers before the hub serves without them. Default 5 s.
    pub wait: Duration,
    /// What becomes of messages that no hub has sent. Default: they are passed on.
    pub foreign: Foreign,
}

impl NatsOptions {
    /// A feed on that subject of those servers, everything else by default.
    #[must_use]
    pub fn new(servers: Vec<String>, subject: String) -> Self {
        Self {
            servers,
            subject,
            stream: None,
            credentials: Credentials::None,
            tls_ca: None,
            tls_identity: None,
            buffer: 16 << 20,
            wait: Duration::from_secs(5),
            foreign: Foreign::Pass,
        }
    }

    /// # Errors
    /// What can be told to be wrong without a server.
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Config(what));
        if self.servers.is_empty() || self.servers.iter().any(String::is_empty) {
            return wrong("no NATS server is named".to_owned());
        }
        if let Some(server) = self.servers.iter().find(|server| server.contains('@')) {
            let (_, host) = server.rsplit_once('@').unwrap_or_default();
            return wrong(format!(
                "the address of the NATS server {host} has credentials in it, which whoever lists processes would see: use a file"
            ));
        }
        let subject = &self.subject;
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>');
        if subject.split('.').any(str::is_empty) || subject.contains(is_odd) {
            return wrong(format!(
                "{subject:?} is no subject of a feed: words with dots between them, without blanks, * and >"
            ));
        }
        let is_odd = |c: char| is_odd(c) || matches!(c, '.' | '/' | '\\');
        if let Some(stream) = &self.stream
            && (stream.is_empty() || stream.contains(is_odd))
        {
            return wrong(format!("{stream:?} is no name of a stream"));
        }
        Ok(())
    }
}

/// Who a hub is to the servers.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Credentials {
    /// Nobody.
    #[default]
    None,
    /// A file with a JWT and a seed, as `nsc` makes it (`.creds`).
    Creds(PathBuf),
    /// A file with the seed of a user's nkey, in a line of its own.
    Nkey(PathBuf),
    /// A user, and a file with the password, in a line of its own.
    Password(String, PathBuf),
}

/// What becomes of messages that no hub has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// They are lines as any other; the last one gets an end.
    #[default]
    Pass,
    /// They are counted, and nothing else.
    Drop,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(server: &str, subject: &str) -> Result<(), String> {
        let options = NatsOptions::new(vec![server.to_owned()], subject.to_owned());
        options.check().map_err(|error| error.to_string())
    }

    #[test]
    fn a_subject_is_one() {
        assert_eq!(check("nats://one:4222", "buoys.north"), Ok(()));
        for subject in ["", ".", "a..b", "a.", "a b", "a.*", "a.>", "a\n"] {
            let refused = check("one", subject).unwrap_err();
            assert!(refused.contains("no subject"), "{refused}");
        }
    }

    #[test]
    fn a_stream_has_a_name_of_one_word() {
        for (name, is_one) in [
            ("BUOYS", true),
            ("", false),
            ("a.b", false),
            ("a b", false),
            ("*", false),
        ] {
            let usual = NatsOptions::new(vec!["one".to_owned()], "a".to_owned());
            let stream = Some(name.to_owned());
            let checked = NatsOptions { stream, ..usual }.check();
            assert_eq!(checked.is_ok(), is_one, "{name:?}");
        }
    }

    #[test]
    fn a_password_stands_in_no_address_and_in_no_error() {
        let refused = check("nats://me:secret@one:4222", "a").unwrap_err();
        assert!(refused.contains("one:4222") && !refused.contains("secret"));
        assert!(check("", "a").unwrap_err().contains("no NATS server"));
    }
}
