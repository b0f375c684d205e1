//! From the service as typed to the service that runs.

use standfast::services::forward::ForwardOptions;
use standfast::services::{Discard, Echo, Forward, Hub, Print};
use standfast::{AnyService, Endpoint};

use crate::Failure;
use crate::args::{ServeArgs, ServiceName};
use crate::stdout;

/// The service that `args` ask for.
///
/// # Errors
/// A flag or an operand that it does not have, or what it cannot do with those it has.
pub(crate) fn of(args: &ServeArgs) -> Result<AnyService, Failure> {
    let asked = &args.service;
    let name = asked.service;
    if let Some((flag, of)) = asked.given().find(|&(_, of)| of != name) {
        return Err(Failure::usage(format!(
            "{flag} is for the service {}, not {}",
            of.as_str(),
            name.as_str()
        )));
    }
    if let Some(operand) = asked.operands.first().filter(|_| !name.takes_operands()) {
        return Err(Failure::usage(format!(
            "{}: the service {} works on nothing that could be named",
            operand.display(),
            name.as_str()
        )));
    }
    Ok(match name {
        ServiceName::Echo => Echo.into(),
        ServiceName::Discard => Discard.into(),
        ServiceName::Print => Print::new(stdout::Print::open()?, asked.prefix).into(),
        ServiceName::Hub => hub(args)?.into(),
        ServiceName::Forward => Forward::new(forward_to(args)?)?.into(),
        ServiceName::Exec => asked.exec.service(&asked.operands, &args.process)?,
    })
}

fn hub(args: &ServeArgs) -> Result<Hub, Failure> {
    let asked = &args.service.hub;
    let options = asked.options(args.buffer)?;
    #[cfg(feature = "nats")]
    if let Some(nats) = asked.nats.options()? {
        return Ok(Hub::over_nats(options, nats)?);
    }
    Ok(Hub::new(options))
}

/// Whom the service relays to, if it does.
///
/// # Errors
/// What is no address.
pub(crate) fn upstreams(args: &ServeArgs) -> Result<Option<ForwardOptions>, Failure> {
    match args.service.service {
        ServiceName::Forward => forward_to(args).map(Some),
        ServiceName::Echo
        | ServiceName::Discard
        | ServiceName::Print
        | ServiceName::Hub
        | ServiceName::Exec => Ok(None),
    }
}

fn forward_to(args: &ServeArgs) -> Result<ForwardOptions, Failure> {
    let asked = &args.service;
    asked.forward.upstreams(&asked.operands)
}

/// An upstream that looks as if it were meant for the listener, as in `socat` and `ssh -L`: a port of this host before the
/// upstreams of others, and nowhere said where to listen.
pub(crate) fn doubt(args: &ServeArgs) -> Option<String> {
    let asked = &args.service;
    let operands = asked.operands.as_slice();
    let [first, _, ..] = operands else {
        return None;
    };
    let port = first.to_str().filter(|text| text.parse::<u16>().is_ok())?;
    let is_meant = asked.service != ServiceName::Forward || args.says_where();
    (!is_meant).then(|| {
        format!("{port} is an upstream, this host's port {port}; to listen there: -l {port}")
    })
}

/// Refuses to relay to one of `listeners`, those of this server.
///
/// # Errors
/// The upstream that is one of them.
pub(crate) fn refuse_loop(args: &ServeArgs, listeners: &[Endpoint]) -> Result<(), Failure> {
    match upstreams(args)? {
        Some(upstreams) => Ok(upstreams.refuse_loop(listeners)?),
        None => Ok(()),
    }
}
