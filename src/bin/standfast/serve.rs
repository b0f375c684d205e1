//! `standfast serve`: the command line as meant, and a server run by it.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;

#[cfg(not(control))]
use standfast::Server;
use standfast::{Config, Listen, WhenFull};

use crate::Failure;
use crate::args::{Full, ServeArgs, ServiceName};
use crate::lifecycle::Told;
use crate::signals::Meaning;
#[cfg(control)]
use crate::takeover;
use crate::units::Setting;
#[cfg(control)]
use crate::watch::Watch;
use crate::{logger, service, signals, stdout};

/// Runs the server to its end. Exit code 0 if everything was drained, 1 if something had to be cut.
pub(crate) fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let log = logger::start(args.log_format, args.verbose, args.quiet)?;
    standfast::process::raise_descriptor_limit();
    let config = meant(args)?;
    let effective = config.effective()?.swap_remove(0);
    service::refuse_loop(args, &effective.addresses)?;
    if let Some(doubt) = service::doubt(args) {
        log::warn!("{doubt}");
    }
    #[cfg(control)]
    let watch = Watch::of(args)?;
    let told = Told::by(
        args,
        &effective,
        #[cfg(control)]
        watch.clone(),
    );
    let config = Config {
        lifecycle: Arc::new(told),
        ..config
    };
    #[cfg(control)]
    let server = takeover::bind(args, config, &effective)?;
    #[cfg(not(control))]
    let server = Server::bind(config)?;
    // A port that was chosen, and an inherited socket, are known only now.
    service::refuse_loop(args, server.addresses())?;
    logger::count_in(server.handle().memory());
    let handle = server.handle();
    #[cfg(control)]
    let restart = takeover::restart(&server);
    #[cfg(control)]
    let front = watch.clone();
    #[cfg(control)]
    if let Some(watch) = &watch {
        watch.ask_at(server.control());
    }
    signals::obey_all(move |signal| match signal.meaning {
        #[cfg(control)]
        meaning if front.as_ref().is_some_and(|front| front.passes_on(meaning)) => {}
        Meaning::End => {
            log::info!(signal = signal.name; "draining");
            handle.drain();
        }
        Meaning::EndAtOnce => {
            log::warn!(signal = signal.name; "ending at once");
            handle.stop();
        }
        #[cfg(control)]
        Meaning::Restart => restart(signal.name),
        _ => log::info!(signal = signal.name; "ignored: it means nothing to a server"),
    })?;
    if args.service.service == ServiceName::Print {
        let handle = server.handle();
        stdout::watch(move || {
            log::warn!("nobody reads stdout any more, draining");
            handle.drain();
        })
        .map_err(|error| Failure::failed(format!("cannot watch stdout: {error}")))?;
    }
    let summary = server.run()?;
    if !summary.finished {
        // The exit code is 1 for it, where no connection need have been cut.
        log::error!(service = args.service.service.as_str(); "not all that was received could be passed on");
    }
    logger::summary(&summary);
    #[cfg(control)]
    if let Some(watch) = &watch {
        watch.stay();
    }
    drop(log);
    let drained = summary.cut == 0 && summary.finished && !summary.in_vain;
    Ok(if drained {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The settings that `args` ask for.
pub(crate) fn meant(args: &ServeArgs) -> Result<Config, Failure> {
    let service = service::of(args)?;
    let keepalive = args.detection.keepalive()?;
    let addresses = args.addresses()?;
    let first = addresses.first().cloned();
    let first = first.ok_or_else(|| Failure::usage("no address to listen on"))?;
    let usual = Listen::new(first, service);
    if let (Some(all), Some(of_one)) = (args.max_conns, args.max_conns_per_ip.into_option())
        && all < of_one
    {
        return Err(Failure::usage(format!(
            "--max-conns-per-ip {of_one} is above --max-conns {all}: it would never apply"
        )));
    }
    let listen = Listen {
        addresses,
        keepalive,
        dead_after: args.detection.dead_after,
        user_timeout: args.detection.user_timeout.into_option(),
        read_timeout: args
            .read_timeout
            .map_or(usual.read_timeout, Setting::into_option),
        write_timeout: args
            .write_timeout
            .map_or(usual.write_timeout, Setting::into_option),
        // Who says how long means that.
        slowest_reader: usual
            .slowest_reader
            .filter(|_| args.write_timeout.is_none()),
        half_close_timeout: args
            .half_close_timeout
            .map_or(usual.half_close_timeout, Setting::into_option),
        max_age: args.max_age.into_option(),
        allow: args.guard.allowed()?,
        deny: args.guard.denied()?,
        max_conns_per_ip: args.max_conns_per_ip.into_option(),
        when_full: match args.when_full {
            Full::Close => WhenFull::Close,
            Full::Wait => WhenFull::Wait,
        },
        backlog: args.backlog,
        buffer: args.buffer,
        ..usual
    };
    Ok(Config {
        listen: vec![listen],
        workers: args.workers,
        drain_timeout: args.drain_timeout.into_option(),
        max_conns: args.max_conns,
        memory: args.memory.and_then(NonZeroUsize::new),
        ..Config::default()
    })
}
