//! `standfast serve`: the settings as meant, and a server run by them.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;

#[cfg(all(target_os = "linux", not(standfast_portable)))]
use standfast::Address;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
use standfast::process::Identity;
use standfast::{Config, Effective, Endpoint, Listen, WhenFull, memory};

use crate::Failure;
use crate::args::{Full, ProcessArgs, ServeArgs, ServiceName};
use crate::lifecycle::Told;
use crate::logger::Log;
use crate::settings::Settings;
use crate::signals::Meaning;
use crate::units::Setting;
use crate::watch::Watch;
use crate::{check, keeper, kept, logger, service, signals, stdout, takeover};

/// Runs the server to its end. Exit code 0 if everything was drained, 1 if something had to be cut.
pub(crate) fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    if keeper::is_asked_for(&settings.whole.args.process) {
        return Err(keeper::become_one(&settings.whole.args.process));
    }
    let log = logger::start(&log(&settings.whole.args.process))?;
    let result = serve(settings, &log);
    if let (Err(failure), true) = (&result, log.is_file()) {
        // It is on stderr, too, which may be nobody's.
        log::error!("{failure}");
    }
    result
}

/// How what happens is logged.
pub(crate) fn log(process: &ProcessArgs) -> logger::Settings<'_> {
    logger::Settings {
        format: process.log_format,
        level: logger::level(process.verbose, process.quiet),
        file: process.log_file.as_deref(),
        rate: process.log_rate.into_option(),
    }
}

fn serve(settings: &Settings, log: &Log) -> Result<ExitCode, Failure> {
    let process = &settings.whole.args.process;
    standfast::process::raise_descriptor_limit();
    let (config, effective) = meant(settings)?;
    let listeners = &settings.listeners;
    let has_keys = config.listen.iter().any(|listen| listen.tls.is_some())
        || (listeners.iter()).any(|one| one.args.service.forward.tls.is_on());
    crate::keep_keys_from_others(has_keys);
    if has_keys {
        kept::is_secret();
    }
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    if let (Some(identity), Some(path)) = (&config.identity, &process.log_file)
        && let Err(error) = identity.give_file(path)
    {
        log::warn!(path:% = path.display(), error:%; "the log file stays as it is: a restart may not open it");
    }
    for listener in &settings.listeners {
        if let Some(doubt) = service::doubt(&listener.args) {
            log::warn!("{doubt}");
        }
        for doubt in check::tls::upstream_doubts(&listener.args.service.forward.tls)? {
            log::warn!("{doubt}");
        }
    }
    for doubt in config
        .listen
        .iter()
        .filter_map(|listen| listen.tls.as_ref())
        .flat_map(check::tls::doubts)
    {
        log::warn!("{doubt}");
    }
    kept::settle_store(process)?;
    kept::say_crashed();
    let watch = Watch::of(process)?;
    let told = Told::by(settings, &effective, watch.clone());
    let config = Config {
        lifecycle: Arc::new(told),
        ..config
    };
    let server = takeover::bind(process, config, &effective)?;
    // A port that was chosen, and an inherited socket, are known only now.
    refuse_loop(settings, server.addresses())?;
    logger::count_in(server.handle().memory());
    let handle = server.handle();
    kept::attend(&server, process)?;
    let restart = takeover::restart(&server);
    let front = watch.clone();
    if let Some(watch) = &watch {
        watch.ask(&server);
    }
    let (is_file, look, finish) = (log.is_file(), log.waker(), log.finisher());
    // Where there is a file, it is read anew, as those who edit files expect.
    let hangup = match process.config {
        Some(_) if cfg!(control) => Meaning::Restart,
        _ => Meaning::End,
    };
    signals::obey_all(hangup, move |signal| match signal.meaning {
        // Its handler has said so already. The one in front holds no old file either.
        Meaning::Reopen if is_file => {
            look();
            if let Some(front) = &front {
                front.passes_on(signal.meaning);
            }
        }
        meaning if front.as_ref().is_some_and(|front| front.passes_on(meaning)) => {}
        Meaning::End => {
            log::info!(signal = signal.name; "draining");
            handle.drain();
        }
        Meaning::EndAtOnce => {
            log::warn!(signal = signal.name; "ending at once");
            handle.stop();
        }
        Meaning::Restart => restart(signal.name),
        Meaning::Leave => {
            if kept::leave(&handle, signal.name) {
                finish();
                #[expect(
                    clippy::exit,
                    reason = "whatever came after this would be told to clients"
                )]
                std::process::exit(0);
            }
            log::info!(signal = signal.name; "draining");
            handle.drain();
        }
        _ => log::info!(signal = signal.name; "ignored: it means nothing to a server"),
    })?;
    if settings.prints() {
        let handle = server.handle();
        stdout::watch(move || {
            log::warn!("nobody reads stdout any more, draining");
            handle.drain_at_once();
        })
        .map_err(|error| Failure::failed(format!("cannot watch stdout: {error}")))?;
    }
    // From here on clients would go along.
    memory::end_where_nothing_is_left(false);
    let summary = server.run()?;
    if !summary.finished {
        // The exit code is 1 for it, where no connection need have been cut.
        let services = settings.listeners.iter();
        let mut services: Vec<_> = services
            .map(|one| one.args.service.service.as_str())
            .collect();
        services.dedup();
        log::error!(service = services.join(",").as_str(); "not all that was received could be passed on");
    }
    log.summary(&summary);
    if let Some(code) = watch.and_then(|watch| watch.stay()) {
        return Ok(ExitCode::from(code));
    }
    let drained = summary.cut == 0 && summary.finished && !summary.in_vain;
    Ok(if drained {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the settings mean, and what that comes to for each listener.
///
/// # Errors
/// What contradicts, or what there is not on this host; with where it was said.
pub(crate) fn meant(settings: &Settings) -> Result<(Config, Vec<Effective>), Failure> {
    let whole = &settings.whole.args;
    let process = &whole.process;
    let listen = settings.listeners.iter().map(|one| {
        let listen = listen(&one.args, whole.max_conns);
        listen.map_err(|failure| one.sources.locate(&failure))
    });
    #[cfg_attr(
        not(all(target_os = "linux", not(standfast_portable))),
        expect(unused_mut, reason = "on Linux it changes")
    )]
    let mut listen: Vec<Listen> = listen.collect::<Result<_, _>>()?;
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    let identity = identity(process).map_err(|failure| settings.whole.sources.locate(&failure))?;
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    if let Some(identity) = &identity {
        give(&mut listen, identity);
    }
    #[cfg(not(all(target_os = "linux", not(standfast_portable))))]
    if process.user.is_some() || process.group.is_some() {
        return Err(Failure::usage("--user and --group run on Linux alone"));
    }
    let config = Config {
        listen,
        #[cfg(all(target_os = "linux", not(standfast_portable)))]
        identity,
        workers: process.workers,
        drain_timeout: process.drain_timeout.into_option(),
        drain_delay: process.drain_delay.into_option(),
        drain_spread: process.drain_spread.into_option(),
        max_conns: whole.max_conns,
        #[cfg(metrics)]
        metrics: process.metrics.clone().map(|address| standfast::Metrics {
            addresses: vec![address],
            hosts: process.metrics_host.clone(),
        }),
        memory: process.memory.and_then(NonZeroUsize::new),
        ..Config::default()
    };
    let effective = effective(settings, &config)?;
    refuse_twice(settings, &effective)?;
    let addresses: Vec<_> = effective
        .iter()
        .flat_map(|one| &one.addresses)
        .cloned()
        .collect();
    refuse_loop(settings, &addresses)?;
    Ok((config, effective))
}

/// Whom the process is to run as.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn identity(process: &ProcessArgs) -> Result<Option<Identity>, Failure> {
    let flag = if process.user.is_some() {
        "--user"
    } else {
        "--group"
    };
    let wrong = |error: std::io::Error| Failure::usage(format!("{flag}: {error}"));
    let identity = Identity::named(process.user.as_deref(), process.group.as_deref());
    let identity = identity.map_err(wrong)?;
    if let Some(identity) = &identity {
        identity.can_be_had().map_err(wrong)?;
    }
    Ok(identity)
}

/// Gives the paths of Unix sockets to whom the process is to run as, where it was not said whose they are.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn give(listen: &mut [Listen], identity: &Identity) {
    for address in listen.iter_mut().flat_map(|listen| &mut listen.addresses) {
        if let Address::Unix(_, ownership) = address {
            let user = || identity.user().map(|uid| uid.to_string());
            ownership.owner = ownership.owner.take().or_else(user);
            let group = || Some(identity.group().to_string());
            ownership.group = ownership.group.take().or_else(group);
        }
    }
}

/// What `config` comes to; which listener is the reason if it cannot be.
fn effective(settings: &Settings, config: &Config) -> Result<Vec<Effective>, Failure> {
    let error = match config.effective() {
        Ok(effective) => return Ok(effective),
        Err(error) => error,
    };
    for (one, listen) in settings.listeners.iter().zip(&config.listen) {
        let alone = Config {
            listen: vec![listen.clone()],
            ..config.clone()
        };
        if let Err(error) = alone.effective() {
            return Err(one.sources.locate(&error.into()));
        }
    }
    Err(error.into())
}

/// Refuses to listen in two places of the file on one address, which the system would say of the second one.
fn refuse_twice(settings: &Settings, effective: &[Effective]) -> Result<(), Failure> {
    let is_free = |address: &Endpoint| address.tcp().is_some_and(|address| address.port() == 0);
    for (at, (one, here)) in settings.listeners.iter().zip(effective).enumerate() {
        let before = effective
            .iter()
            .take(at)
            .flat_map(|before| &before.addresses);
        let mut twice =
            before.filter(|address| !is_free(address) && here.addresses.contains(address));
        if let Some(address) = twice.next() {
            let failure = Failure::usage(format!(
                "the address {address} has another [[listen]] already"
            ));
            return Err(one.sources.locate(&failure));
        }
    }
    Ok(())
}

/// Refuses to relay to one of `addresses`, those of this server.
fn refuse_loop(settings: &Settings, addresses: &[Endpoint]) -> Result<(), Failure> {
    settings.listeners.iter().try_for_each(|one| {
        let refused = service::refuse_loop(&one.args, addresses);
        refused.map_err(|failure| one.sources.locate(&failure))
    })
}

/// What one listener's settings mean, in a server of so many connections.
fn listen(args: &ServeArgs, max_conns: Option<NonZeroUsize>) -> Result<Listen, Failure> {
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
    if args.mptcp && args.service.service == ServiceName::Exec {
        return Err(Failure::usage(
            "--mptcp is not for exec: what becomes of a socket that a program has, the kernel tells of TCP alone",
        ));
    }
    Ok(Listen {
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
        // One that is the same bounds nothing by itself.
        max_conns: args.max_conns.filter(|_| args.max_conns != max_conns),
        max_conns_per_ip: args.max_conns_per_ip.into_option(),
        ip_prefix: args.guard.ip_prefix,
        accept_rate: args.guard.accept_rate.into_option(),
        accept_rate_per_ip: args.guard.accept_rate_per_ip.into_option(),
        accept_proxy: args.guard.proxies()?,
        tls: args.tls.tls()?,
        when_full: match args.when_full {
            Full::Close => WhenFull::Close,
            Full::Wait => WhenFull::Wait,
        },
        mptcp: args.mptcp,
        backlog: args.backlog,
        buffer: args.buffer,
        ..usual
    })
}
