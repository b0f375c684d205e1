//! Starting a thread where there may be no memory for one.
//!
//! Its stack is mapped before it begins, and that may fail; then it maps one for signals, and where that fails Rust ends
//! the process (`std::sys::pal::unix::stack_overflow`). So it is made sure of beforehand.

use std::io;
#[cfg(control)]
use std::panic::resume_unwind;
#[cfg(control)]
use std::sync::{Mutex, PoisonError};
#[cfg(control)]
use std::thread::scope;
use std::thread::{Builder, JoinHandle};

use crate::os::sys::reserve;

/// A thread's stack, bytes: what Rust gives it.
pub(crate) const STACK: usize = 2 << 20;

/// What is to be had beside that, bytes: for guard pages, stacks for signals, and what it and those before it allocate.
const BESIDE: usize = 1 << 20;

/// Starts a thread with Rust's usual stack. Of what is kept for need all but the least is given up for it.
///
/// # Errors
/// `EAGAIN` (`pthread_create(3)`): there is no memory for it, or too many run.
pub fn start<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start_with(name, STACK, run)
}

/// The same with a stack of that many bytes.
pub(crate) fn start_with<T: Send + 'static>(
    name: &str,
    stack: usize,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    make_room(stack)?;
    Builder::new()
        .name(name.to_owned())
        .stack_size(stack)
        .spawn(run)
}

/// Does `work` with each of `all`, each on a thread of its own if there is memory for that, and answers what came of them, in
/// their order.
#[cfg(control)]
pub(crate) fn share<T: Send, R: Send>(
    name: &str,
    all: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let others = 1..all.len();
    let left = Mutex::new(all.into_iter().enumerate());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || -> Vec<(usize, R)> {
        let mine = std::iter::from_fn(next).map(|(at, one)| (at, work(one)));
        mine.collect()
    };
    let mut done = scope(|scope| {
        let started = others.map_while(|_| {
            make_room(STACK).ok()?;
            let builder = Builder::new().name(name.to_owned()).stack_size(STACK);
            builder.spawn_scoped(scope, run).ok()
        });
        let started: Vec<_> = started.collect();
        let mut done = run();
        for thread in started {
            done.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Makes sure of the memory for one with Rust's usual stack that somebody else is about to start.
///
/// # Errors
/// As of [`start`].
pub fn make_room_for_one() -> io::Result<()> {
    make_room(STACK)
}

fn make_room(stack: usize) -> io::Result<()> {
    let is_room = |beside| reserve::could_have(stack + BESIDE + beside);
    let kept = reserve::length();
    if kept == 0 || !is_room(0) {
        reserve::give_up();
        let is_room = is_room(reserve::LEAST);
        if kept > 0 {
            reserve::keep(kept.min(reserve::LEAST));
        }
        if !is_room {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
    }
    Ok(())
}

#[cfg(all(test, control))]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_is_done_once_each_and_answered_in_order() {
        let all: Vec<u32> = (0..20).collect();
        let done = share("test", all.clone(), |one| one);
        assert_eq!(done, all);
        assert!(share("test", Vec::new(), |one: u32| one).is_empty());
    }
}
