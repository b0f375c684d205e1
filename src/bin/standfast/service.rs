//! From the service as typed to the service that runs.

use standfast::AnyService;
use standfast::services::{Discard, Echo, Print};

use crate::Failure;
use crate::args::{ServeArgs, ServiceName};

/// The service that `args` ask for.
///
/// # Errors
/// A flag or an operand that it does not have.
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
    if let Some(operand) = asked.operands.first() {
        return Err(Failure::usage(format!(
            "{}: the service {} works on nothing that could be named",
            operand.display(),
            name.as_str()
        )));
    }
    Ok(match name {
        ServiceName::Echo => Echo.into(),
        ServiceName::Discard => Discard.into(),
        ServiceName::Print => Print::new(std::io::stdout(), asked.prefix).into(),
    })
}
