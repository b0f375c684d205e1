//! What `check` says of TLS, at a door and towards upstreams.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use standfast::services::forward::ForwardOptions;
use standfast::{CertificateInfo, Tls};

use crate::Failure;
use crate::args::upstream_tls::{INSECURE, UpstreamTlsArgs};

/// So long before a certificate expires it is said.
const SOON: Duration = Duration::from_hours(30 * 24);

/// A line for each certificate, and what it is for.
pub(super) fn rows(tls: Option<&Tls>, row: &mut impl FnMut(&str, &dyn Display, &str)) {
    let Some(tls) = tls else {
        return row("tls", &"off", "");
    };
    row("tls", &"on", "");
    for one in tls.certificates() {
        certificate(one, row);
    }
}

/// What `forward` speaks with its upstreams.
pub(super) fn upstream_rows(
    upstreams: &ForwardOptions,
    typed: &UpstreamTlsArgs,
    row: &mut impl FnMut(&str, &dyn Display, &str),
) {
    let Some(tls) = &upstreams.tls else {
        return row("  upstream-tls", &"off", "");
    };
    row("  upstream-tls", &"on", "");
    match typed.ca() {
        _ if tls.is_insecure() => row("    believed", &"whoever answers", ""),
        Some(file) => row("    believed", &file.display(), ""),
        None => row("    believed", &"whom the system believes", ""),
    }
    for address in &upstreams.addresses {
        if let Some(name) = tls.name_of(address) {
            let note = format!("what {address} has to show itself by");
            row("    name", &name, &note);
        }
    }
    if let Some(one) = tls.certificate() {
        certificate(one, row);
    }
}

fn certificate(one: &CertificateInfo, row: &mut impl FnMut(&str, &dyn Display, &str)) {
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

/// Certificates that expire soon, in a line each.
pub(crate) fn doubts(tls: &Tls) -> impl Iterator<Item = String> {
    tls.certificates().iter().filter_map(doubt)
}

/// What is to be said each time of the TLS that upstreams are spoken to with.
///
/// # Errors
/// Files that are no use.
pub(crate) fn upstream_doubts(typed: &UpstreamTlsArgs) -> Result<Vec<String>, Failure> {
    let Some(tls) = typed.meant()? else {
        return Ok(Vec::new());
    };
    let insecure = tls.is_insecure().then(|| INSECURE.to_owned());
    let expires = tls.certificate().and_then(doubt);
    Ok(insecure.into_iter().chain(expires).collect())
}

/// The line of one, if it expires soon.
fn doubt(one: &CertificateInfo) -> Option<String> {
    let left = left(one).filter(|left| *left < SOON)?;
    let days = left.as_secs() / 86_400;
    let file = one.file.display();
    Some(format!("the certificate {file} expires in {days} days"))
}

fn left(one: &CertificateInfo) -> Option<Duration> {
    let until = one.not_after?;
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}
