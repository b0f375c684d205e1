//! The old process's side: whether the new one can take over, and what of.

use crate::handle::Handle;
use crate::inspect::Status;
use crate::wire::baton::Fate;
use crate::wire::question::Hello;
use crate::wire::record::{DESCRIPTORS, PROTOCOL, SCHEMA};

/// Compares what the new process is with what this one has. Answers what becomes of each listener.
///
/// # Errors
/// In words, why there can be no takeover.
pub(crate) fn compare(hello: &Hello, handle: &Handle, network: &str) -> Result<Vec<Fate>, String> {
    if hello.protocol != PROTOCOL || hello.schema != SCHEMA {
        return Err(format!(
            "standfast {} speaks takeover {}.{}, the running one {PROTOCOL}.{SCHEMA}: stop that and start the other",
            hello.version, hello.protocol, hello.schema
        ));
    }
    if hello.network != network {
        return Err("the new process is in another network namespace".to_owned());
    }
    if std::process::id() == 1 {
        return Err("the running server is process 1: with its end all others end, too".to_owned());
    }
    let status = handle.status();
    if status.draining {
        return Err("the running server is ending".to_owned());
    }
    // The control socket, its lock, and a lock of each go in one message.
    const MOST: usize = DESCRIPTORS - 2;
    if status.listeners.len() > MOST {
        return Err(format!(
            "{} listeners are too many to change hands, at most {MOST} can",
            status.listeners.len(),
        ));
    }
    let fates = fates(hello, handle, &status)?;
    if status.open > hello.max_conns {
        return Err(format!(
            "{} connections are open, the new process may have {}: raise its limit",
            status.open, hello.max_conns
        ));
    }
    Ok(fates)
}

/// What becomes of each listener: all goes along; or, where the new process has a new edition of this one's settings, what
/// that still has does.
fn fates(hello: &Hello, handle: &Handle, status: &Status) -> Result<Vec<Fate>, String> {
    let common = handle.shared.takeover.common.get();
    let services = common.map_or(&[][..], Vec::as_slice);
    // Which of this process's services each of the new process's goes on with.
    let mut continued: Vec<(u16, usize)> = Vec::new();
    let mut fates = Vec::new();
    for (number, listener) in (0_u16..).zip(&status.listeners) {
        let address = &listener.address;
        let at = hello
            .listeners
            .iter()
            .position(|(other, _)| other == address);
        let theirs = at.and_then(|at| hello.listeners.get(at));
        let fate = match theirs {
            None if hello.reload => Fate::Stays,
            None => return Err(format!("the new process does not listen on {address}")),
            Some((_, service)) if *service != listener.service && hello.reload => Fate::GoesAlone,
            Some((_, service)) if *service != listener.service => {
                return Err(format!(
                    "{address} is served by {}, the new process has {service} there",
                    listener.service
                ));
            }
            Some(_) => {
                let ours = services
                    .iter()
                    .position(|it| it.listeners.contains(&number));
                let theirs = at.and_then(|at| hello.services.get(at));
                match (theirs, ours) {
                    (Some(theirs), Some(ours)) if hello.reload => {
                        let before = continued.iter().find(|(one, _)| one == theirs);
                        // What two services' connections have in common cannot become one.
                        if before.is_some_and(|(_, one)| *one != ours) {
                            Fate::GoesAlone
                        } else {
                            continued.push((*theirs, ours));
                            Fate::Goes
                        }
                    }
                    _ => Fate::Goes,
                }
            }
        };
        fates.push(fate);
    }
    Ok(fates)
}
