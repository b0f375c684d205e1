//! What `check` says of TLS at a door.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use standfast::{CertificateInfo, Tls};

/// So long before a certificate expires it is said.
const SOON: Duration = Duration::from_hours(30 * 24);

/// A line for each certificate, and what it is for.
pub(super) fn rows(tls: Option<&Tls>, row: &mut impl FnMut(&str, &dyn Display, &str)) {
    let Some(tls) = tls else {
        return row("tls", &"off", "");
    };
    row("tls", &"on", "");
    for one in tls.certificates() {
        let names = match &one.names[..] {
            [] => "no name".to_owned(),
            names => names.join(", "),
        };
        row(
            "  certificate",
            &one.file.display(),
            &format!("for {names}"),
        );
        let chain = match one.chain {
            1 => "alone".to_owned(),
            more => format!("with {} more behind it", more - 1),
        };
        row("    signed by", &one.issuer, &chain);
        if let Some(until) = one.not_after.and_then(|at| Timestamp::try_from(at).ok()) {
            let days = left(one).unwrap_or_default().as_secs() / 86_400;
            let date = until.strftime("%Y-%m-%d");
            row("    valid until", &date, &format!("{days} days from now"));
        }
    }
}

/// Certificates that expire soon, in a line each.
pub(crate) fn doubts(tls: &Tls) -> impl Iterator<Item = String> {
    let certificates = tls.certificates().iter();
    certificates.filter_map(|one| {
        let left = left(one).filter(|left| *left < SOON)?;
        let days = left.as_secs() / 86_400;
        let file = one.file.display();
        Some(format!("the certificate {file} expires in {days} days"))
    })
}

fn left(one: &CertificateInfo) -> Option<Duration> {
    let until = one.not_after?;
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}
