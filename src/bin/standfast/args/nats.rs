//! How `serve hub` shares its feed with other machines, as typed and as meant.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use standfast::services::hub::{Credentials, Foreign, NatsOptions};

use crate::Failure;
use crate::units::{duration, size};

/// What becomes of messages that no hub has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ForeignName {
    /// They are lines as any other; the last one gets an end.
    Pass,
    /// They are counted, and nothing else.
    Drop,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NatsArgs {
    /// Share the feed with all hubs of the same subject, over these NATS servers: nats://HOST:PORT, tls://HOST:PORT,
    /// HOST:PORT, comma-separated; any of them will do.
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        requires = "subject",
        conflicts_with = "raw",
        help_heading = "Hub over NATS"
    )]
    pub(crate) nats: Vec<String>,

    /// The subject of the feed, such as buoys.north.
    #[arg(
        long,
        value_name = "SUBJECT",
        requires = "nats",
        help_heading = "Hub over NATS"
    )]
    pub(crate) subject: Option<String>,

    /// The stream of JetStream that keeps the subject: each line comes once, and --history is from there.
    #[arg(
        long,
        value_name = "NAME",
        requires = "nats",
        help_heading = "Hub over NATS"
    )]
    pub(crate) stream: Option<String>,

    /// Who this is to NATS: a file with a JWT and a seed, as nsc makes it.
    #[arg(long, value_name = "FILE", requires = "nats", conflicts_with_all = ["nkey", "nats_user"], help_heading = "Hub over NATS")]
    pub(crate) creds: Option<PathBuf>,

    /// Who this is to NATS: a file with the seed of an nkey.
    #[arg(
        long,
        value_name = "FILE",
        requires = "nats",
        conflicts_with = "nats_user",
        help_heading = "Hub over NATS"
    )]
    pub(crate) nkey: Option<PathBuf>,

    /// Who this is to NATS: a user of it.
    #[arg(long, value_name = "USER", requires_all = ["nats", "nats_password_file"], help_heading = "Hub over NATS")]
    pub(crate) nats_user: Option<String>,

    /// The file with that user's password, in its first line.
    #[arg(
        long,
        value_name = "FILE",
        requires = "nats_user",
        help_heading = "Hub over NATS"
    )]
    pub(crate) nats_password_file: Option<PathBuf>,

    /// Speak with NATS over TLS alone, and take its certificate from these authorities, in PEM. [default: over tls:// URLs,
    /// and the system's authorities]
    #[arg(
        long,
        value_name = "FILE",
        requires = "nats",
        help_heading = "Hub over NATS"
    )]
    pub(crate) nats_tlsca: Option<PathBuf>,

    /// The certificate that NATS is shown, in PEM.
    #[arg(long, value_name = "FILE", requires_all = ["nats", "nats_tlskey"], help_heading = "Hub over NATS")]
    pub(crate) nats_tlscert: Option<PathBuf>,

    /// The key of that certificate.
    #[arg(
        long,
        value_name = "FILE",
        requires = "nats_tlscert",
        help_heading = "Hub over NATS"
    )]
    pub(crate) nats_tlskey: Option<PathBuf>,

    /// How much may wait for NATS, and how much of it for this hub; what is more is lost, and counted. [default: 16m]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "nats", allow_hyphen_values = true, help_heading = "Hub over NATS")]
    pub(crate) nats_buffer: Option<usize>,

    /// How long a start waits for NATS, and an end for what is to be said to it. [default: 5s]
    #[arg(long, value_name = "DUR", value_parser = duration, requires = "nats", allow_hyphen_values = true, help_heading = "Hub over NATS")]
    pub(crate) nats_wait: Option<Duration>,

    /// What becomes of messages on the subject that no hub has sent. [default: pass]
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        requires = "nats",
        help_heading = "Hub over NATS"
    )]
    pub(crate) nats_foreign: Option<ForeignName>,
}

impl NatsArgs {
    /// Which flags were given.
    pub(crate) fn given(&self) -> [(bool, &'static str); 13] {
        [
            (!self.nats.is_empty(), "--nats"),
            (self.subject.is_some(), "--subject"),
            (self.stream.is_some(), "--stream"),
            (self.creds.is_some(), "--creds"),
            (self.nkey.is_some(), "--nkey"),
            (self.nats_user.is_some(), "--nats-user"),
            (self.nats_password_file.is_some(), "--nats-password-file"),
            (self.nats_tlsca.is_some(), "--nats-tlsca"),
            (self.nats_tlscert.is_some(), "--nats-tlscert"),
            (self.nats_tlskey.is_some(), "--nats-tlskey"),
            (self.nats_buffer.is_some(), "--nats-buffer"),
            (self.nats_wait.is_some(), "--nats-wait"),
            (self.nats_foreign.is_some(), "--nats-foreign"),
        ]
    }

    /// How the feed is shared, if it is.
    ///
    /// # Errors
    /// No subject.
    pub(crate) fn options(&self) -> Result<Option<NatsOptions>, Failure> {
        if self.nats.is_empty() {
            return Ok(None);
        }
        let subject = self.subject.clone();
        let subject = subject.ok_or_else(|| Failure::usage("--nats needs a --subject"))?;
        let usual = NatsOptions::new(self.nats.clone(), subject);
        let credentials = match (&self.creds, &self.nkey, &self.nats_user) {
            (Some(file), _, _) => Credentials::Creds(file.clone()),
            (_, Some(file), _) => Credentials::Nkey(file.clone()),
            (_, _, Some(user)) => {
                let file = self.nats_password_file.clone();
                let file =
                    file.ok_or_else(|| Failure::usage("--nats-user needs a --nats-password-file"))?;
                Credentials::Password(user.clone(), file)
            }
            _ => Credentials::None,
        };
        Ok(Some(NatsOptions {
            stream: self.stream.clone(),
            credentials,
            tls_ca: self.nats_tlsca.clone(),
            tls_identity: self.nats_tlscert.clone().zip(self.nats_tlskey.clone()),
            buffer: self.nats_buffer.unwrap_or(usual.buffer),
            wait: self.nats_wait.unwrap_or(usual.wait),
            foreign: match self.nats_foreign {
                Some(ForeignName::Drop) => Foreign::Drop,
                Some(ForeignName::Pass) | None => Foreign::Pass,
            },
            ..usual
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::hub::HubArgs;
    use crate::args::typed;

    fn meant(line: &str) -> Option<NatsOptions> {
        let hub = typed::<HubArgs>(line).unwrap();
        hub.nats.options().unwrap()
    }

    #[test]
    fn flags_change_what_they_name() {
        assert!(meant("").is_none());
        let plain = meant("--nats one:4222,tls://two --subject buoys").unwrap();
        assert_eq!(plain.servers, ["one:4222", "tls://two"]);
        assert_eq!((plain.subject.as_str(), plain.buffer), ("buoys", 16 << 20));
        assert!(matches!(plain.credentials, Credentials::None) && plain.stream.is_none());
        let line = "--nats one --subject a --nats-user me --nats-password-file f --nats-tlsca ca --nats-tlscert c \
                    --nats-tlskey k --nats-buffer 1m --nats-wait 2s --nats-foreign drop";
        let all = meant(line).unwrap();
        assert!(matches!(&all.credentials, Credentials::Password(user, _) if user == "me"));
        assert!(all.tls_ca.is_some() && all.tls_identity.is_some());
        assert_eq!((all.buffer, all.wait), (1 << 20, Duration::from_secs(2)));
        assert_eq!(all.foreign, Foreign::Drop);
        let creds = meant("--nats one --subject a --creds f --stream BUOYS").unwrap();
        assert_eq!(creds.stream.as_deref(), Some("BUOYS"));
        assert!(matches!(creds.credentials, Credentials::Creds(_)));
        let nkey = meant("--nats one --subject a --nkey f").unwrap();
        assert!(matches!(nkey.credentials, Credentials::Nkey(_)));
    }

    #[test]
    fn what_goes_with_nothing_or_not_together_is_refused() {
        for line in [
            "--nats one",
            "--subject a",
            "--nats one --subject a --raw",
            "--nats one --subject a --creds f --nkey g",
            "--nats one --subject a --nats-user me",
            "--nats one --subject a --nats-tlscert c",
            "--nats-buffer 1m",
            "--stream s",
        ] {
            assert!(typed::<HubArgs>(line).is_err(), "{line}");
        }
    }
}
