//! Waking the loop at a time finer than the millisecond that epoll counts in: a timer of the system
//! (`timerfd_create(2)`), where there is one. Elsewhere the loop wakes at the next millisecond.

use std::io;
use std::time::Duration;

use mio::{Registry, Token};

#[cfg(all(target_os = "linux", not(standfast_portable)))]
mod imp {
    use std::os::fd::{AsRawFd, OwnedFd};

    use mio::Interest;
    use mio::unix::SourceFd;
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    use super::{Duration, Registry, Token, io};

    #[derive(Debug)]
    pub(crate) struct Timer {
        fd: OwnedFd,
    }

    impl Timer {
        pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Self { fd })
        }

        /// An event comes in `wait`, instead of any that was to come. Answers whether it will.
        pub(crate) fn arm(&self, wait: Duration) -> bool {
            let none = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let Ok(mut value) = Timespec::try_from(wait) else {
                return false;
            };
            if value == none {
                // Zero would disarm it.
                value.tv_nsec = 1;
            }
            let once = Itimerspec {
                it_interval: none,
                it_value: value,
            };
            timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once).is_ok()
        }
    }
}

#[cfg(not(all(target_os = "linux", not(standfast_portable))))]
mod imp {
    use super::{Duration, Registry, Token, io};

    #[derive(Debug)]
    pub(crate) struct Timer;

    impl Timer {
        #[expect(clippy::unnecessary_wraps, reason = "elsewhere it can fail")]
        pub(crate) fn new(_: &Registry, _: Token) -> io::Result<Self> {
            Ok(Self)
        }

        pub(crate) fn arm(&self, _: Duration) -> bool {
            false
        }
    }
}

pub(crate) use imp::Timer;

#[cfg(all(test, target_os = "linux", not(standfast_portable)))]
mod tests {
    use mio::{Events, Poll};

    use super::*;

    #[test]
    fn it_rings_each_time_it_is_armed_and_not_before() {
        let mut poll = Poll::new().unwrap();
        let timer = Timer::new(poll.registry(), Token(7)).unwrap();
        let mut events = Events::with_capacity(4);
        for wait in [0, 300_u64, 0, 20_000].map(Duration::from_micros) {
            let clock = crate::time::deadline::Clock::start();
            let armed = clock.now();
            assert!(timer.arm(wait));
            poll.poll(&mut events, Some(Duration::from_secs(30)))
                .unwrap();
            assert_eq!(
                events.iter().next().map(mio::event::Event::token),
                Some(Token(7))
            );
            assert!(clock.now().since(armed) >= wait);
        }
    }
}
