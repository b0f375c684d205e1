//! `standfast serve`: the command line as meant, and a server run by it.

use std::io::Write;
use std::process::ExitCode;

use standfast::control::{self, Control};
use standfast::services::{Discard, Echo, Print};
use standfast::{AnyService, Config, Keepalive, Listen, Server, WhenFull};

use crate::Failure;
use crate::args::{ControlPath, Full, ServeArgs, ServiceName};
use crate::units::{Setting, shown_or};
use crate::{logger, signals};

/// Runs the server to its end. Exit code 0 if everything was drained, 1 if something had to be cut.
pub(crate) fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let log = logger::start(args.log_format, args.verbose, args.quiet)?;
    standfast::raise_descriptor_limit();
    let config = meant(args)?;
    let effective = config.listen[0].effective(&config)?;
    let replaced = if args.replace {
        take_over(args, &config)?
    } else {
        None
    };
    let mut server = match replaced {
        Some(server) => server,
        None => Server::bind(config)?,
    };
    signals::obey(&server.handle())?;
    let _control = control(args, &mut server)?;
    for address in server.addresses() {
        log::info!(
            listener:% = address,
            service = args.service.as_str(),
            keepalive:% = effective.keepalive.map_or_else(|| "off".to_owned(), |triple| triple.to_string()),
            dead_after:% = shown_or(effective.dead_after, "off"),
            read_timeout:% = shown_or(args.read_timeout.into_option(), "off"),
            max_conns = effective.max_conns;
            "listening"
        );
        // Whoever closed stdout does not want to know; the server serves all the same.
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
    }
    let summary = server.run()?;
    logger::summary(&summary);
    drop(log);
    let drained = summary.cut == 0 && summary.finished;
    Ok(if drained {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Takes over from the running server, if there is one.
fn take_over(args: &ServeArgs, config: &Config) -> Result<Option<Server>, Failure> {
    let path = match &args.control {
        Some(ControlPath::Off) => {
            return Err(Failure::usage(
                "--replace needs the control socket, which is off",
            ));
        }
        Some(ControlPath::At(path)) => path.clone(),
        None => {
            let effective = config.listen[0].effective(config)?;
            let first = effective.addresses.first().copied();
            let first = first.ok_or_else(|| {
                Failure::usage("--replace needs an address of its own: name it, or --control")
            })?;
            if first.port() == 0 {
                return Err(Failure::usage(
                    "--replace with port 0 needs --control: which server is meant?",
                ));
            }
            control::path::of(first)
        }
    };
    Ok(Server::take_over(config.clone(), &path)?)
}

/// Opens the control socket. One that was asked for must be had; the default one is a convenience.
fn control(args: &ServeArgs, server: &mut Server) -> Result<Option<Control>, Failure> {
    let first = server.addresses().first();
    let default = first.map(|address| control::path::of(*address));
    let (path, asked) = match (&args.control, default) {
        (Some(ControlPath::Off), _) | (None, None) => return Ok(None),
        (Some(ControlPath::At(path)), _) => (path.clone(), true),
        (None, Some(path)) => (path, false),
    };
    match server.control(&path) {
        Ok(control) => Ok(Some(control)),
        Err(error) if asked => Err(Failure::failed(format!(
            "cannot open the control socket {}: {error}",
            path.display()
        ))),
        Err(error) => {
            log::warn!(path:% = path.display(), error:%; "no control socket");
            Ok(None)
        }
    }
}

/// The settings that `args` ask for.
pub(crate) fn meant(args: &ServeArgs) -> Result<Config, Failure> {
    if args.prefix && args.service != ServiceName::Print {
        return Err(Failure::usage(format!(
            "--prefix is for the service print, not {}",
            args.service.as_str()
        )));
    }
    let service: AnyService = match args.service {
        ServiceName::Echo => Echo.into(),
        ServiceName::Discard => Discard.into(),
        ServiceName::Print => Print::new(std::io::stdout(), args.prefix).into(),
    };
    let keepalive = match (args.keepalive, args.dead_after) {
        (Some(Setting::Off), _) => None,
        (Some(Setting::On(keepalive)), _) => Some(keepalive),
        (None, Some(bound)) => Some(Keepalive::within(bound).map_err(standfast::Error::from)?),
        (None, None) => Some(Keepalive::default()),
    };
    let first = args.listen.first().cloned();
    let first = first.ok_or_else(|| Failure::usage("no address to listen on"))?;
    let listen = Listen {
        addresses: args.listen.clone(),
        keepalive,
        dead_after: args.dead_after,
        user_timeout: args.user_timeout.into_option(),
        read_timeout: args.read_timeout.into_option(),
        write_timeout: args.write_timeout.into_option(),
        half_close_timeout: args.half_close_timeout.into_option(),
        max_conns_per_ip: args.max_conns_per_ip.into_option(),
        when_full: match args.when_full {
            Full::Close => WhenFull::Close,
            Full::Wait => WhenFull::Wait,
        },
        backlog: args.backlog,
        buffer: args.buffer,
        ..Listen::new(first, service)
    };
    Ok(Config {
        listen: vec![listen],
        workers: args.workers,
        drain_timeout: args.drain_timeout.into_option(),
        max_conns: args.max_conns,
    })
}
