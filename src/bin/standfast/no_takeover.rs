//! What stands for takeovers, and for all that rests on them, where there are none.

pub(crate) mod keeper {
    use std::process::ExitCode;

    use crate::Failure;
    use crate::args::ProcessArgs;

    pub(crate) fn stay() -> Option<ExitCode> {
        None
    }

    pub(crate) fn is_asked_for(_: &ProcessArgs) -> bool {
        false
    }

    pub(crate) fn become_one(_: &ProcessArgs) -> Failure {
        Failure::usage("there is no keeper on this system")
    }
}

pub(crate) mod kept {
    use std::os::fd::OwnedFd;

    use standfast::{Handle, Server};

    use crate::Failure;
    use crate::args::ProcessArgs;

    pub(crate) fn settle() -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) fn settle_store(_: &ProcessArgs) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) fn leave(_: &Handle, _: &str) -> bool {
        false
    }

    pub(crate) fn line() -> Option<Option<OwnedFd>> {
        None
    }

    pub(crate) fn say_crashed() {}

    pub(crate) fn is_secret() {}

    pub(crate) fn attend(_: &Server, _: &ProcessArgs) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) fn give_up(_: &str) {}
}

pub(crate) mod successor {
    use std::process::ExitCode;

    /// No process stands between a server and its successor.
    pub(crate) fn pass_on() -> Option<ExitCode> {
        None
    }

    pub(crate) fn give_up(_: &str) {}
}

pub(crate) mod takeover {
    use standfast::{Config, Effective, Server};

    use crate::Failure;
    use crate::args::ProcessArgs;
    use crate::settings::Settings;

    pub(crate) fn bind(
        _: &ProcessArgs,
        config: Config,
        _: &[Effective],
    ) -> Result<Server, Failure> {
        Ok(Server::bind(config)?)
    }

    pub(crate) fn restart(_: &Server) -> impl Fn(&'static str) + Clone + Send + use<> {
        |signal| log::info!(signal; "ignored: it means nothing to a server")
    }

    #[derive(Debug)]
    pub(crate) struct Restart;

    impl Restart {
        pub(crate) fn of(_: &Settings) -> Self {
            Self
        }
    }
}

pub(crate) mod watch {
    use std::sync::Arc;

    use standfast::Server;

    use crate::Failure;
    use crate::args::ProcessArgs;
    use crate::signals::Meaning;

    /// Nothing is watched.
    #[derive(Debug)]
    pub(crate) enum Watch {}

    impl Watch {
        pub(crate) fn of(_: &ProcessArgs) -> Result<Option<Arc<Self>>, Failure> {
            Ok(None)
        }

        pub(crate) fn ask(&self, _: &Server) {}

        pub(crate) fn begin(&self) {}

        pub(crate) fn end(&self) {}

        pub(crate) fn handed_over(&self, _: u32) {}

        pub(crate) fn passes_on(&self, _: Meaning) -> bool {
            match *self {}
        }

        pub(crate) fn stay(&self) -> Option<u8> {
            match *self {}
        }
    }
}
