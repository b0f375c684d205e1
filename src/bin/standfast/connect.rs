//! `standfast connect`: the command line as meant, and one session of it between stdin, stdout and a server.

mod heartbeat;
mod input;
mod line_ends;
mod lines;
mod outgoing;
mod output;
mod parting;
mod session;
mod up;
mod verdict;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::LevelFilter;
use standfast::Address;
use standfast::client::Client;
use standfast::dial::Dial;

use crate::Failure;
use crate::args::dial_tls::is_insecure;
use crate::args::{ConnectArgs, OnReadTimeout, Reconnect};
use crate::connect::input::Input;
use crate::connect::lines::counted;
use crate::connect::outgoing::Outgoing;
use crate::connect::output::Output;
use crate::connect::session::{Session, Settings};
use crate::signals::Meaning;
use crate::units::shown_or;
use crate::{logger, signals, stdout};

/// Runs until the end that stdin, the server or a signal brings. Exit codes as in `--help`.
pub(crate) fn run(args: &ConnectArgs) -> Result<ExitCode, Failure> {
    if args.timestamps || args.verbose > 0 {
        logger::stamp();
    }
    // What the library has to warn of.
    let log = logger::start(&logger::Settings::plain(LevelFilter::Warn))?;
    let (dial, mut settings) = meant(args)?;
    let receives = !args.send_only && !args.leaves_at_once;
    if receives {
        stdout::check()?;
    }
    let detection = Arc::new(OnceLock::new());
    let is_tcp = !matches!(dial.address, Address::Unix(..) | Address::Abstract(_));
    settings.detection = (args.verbose > 0).then(|| Arc::clone(&detection));
    let input = Arc::new(Input::new(Outgoing::new(args.buffer, args.buffer_policy)));
    let output = Arc::new(Output::new(args.buffer));
    let session = Session::new(settings, Arc::clone(&input), Arc::clone(&output));
    let client = Client::new(dial, session)?;
    if is_tcp {
        let keepalive = client.keepalive();
        let keepalive = keepalive.map_or_else(|| "off".to_owned(), |triple| triple.to_string());
        let dead_after = shown_or(client.dead_after(), "off");
        // Nobody else sets it.
        let _ = detection.set(format!("keepalive {keepalive}, dead-after {dead_after}"));
    }
    let wake = client.wake();
    signals::obey({
        let (input, output, wake) = (Arc::clone(&input), Arc::clone(&output), wake.clone());
        move |signal| {
            let at_once = signal.meaning == Meaning::EndAtOnce;
            input.stop(at_once);
            output.hurry(at_once);
            wake.wake();
        }
    })?;
    if receives {
        output.start(wake.clone())?;
    }
    if args.receive_only || args.leaves_at_once {
        // As a stdin that ends without a byte.
        input.lock().outgoing.end();
    } else {
        input.start(args.buffer, args.crlf, wake)?;
    }

    let mut session = client.run()?;
    session.say_dropped();
    let (code, patience) = session.outcome();
    let left = output.finish(patience);
    drop(log);
    let code = match left {
        Ok(0) => code,
        Ok(left) => {
            let line = format!("{} not written to stdout", counted(left as u64, "byte"));
            logger::say(&line);
            1
        }
        Err(error) => session::stdout_failed(&error).max(code),
    };
    Ok(ExitCode::from(code))
}

/// The settings that `args` ask for.
fn meant(args: &ConnectArgs) -> Result<(Dial, Settings), Failure> {
    let mut dial = args.dial.meant()?;
    let read_timeout = args.read_timeout.into_option();
    if args.on_read_timeout.is_some() && read_timeout.is_none() {
        return Err(Failure::usage(
            "--on-read-timeout says what to do at the read timeout, which is off: give --read-timeout, too",
        ));
    }
    if args.reconnect == Some(Reconnect::Never) {
        let said = [
            ("--max-retries", args.max_retries.is_some()),
            ("--stable-after", args.stable_after.is_some()),
            (
                "--on-read-timeout reconnect",
                args.on_read_timeout == Some(OnReadTimeout::Reconnect),
            ),
        ];
        if let Some((flag, _)) = said.iter().find(|(_, is_said)| *is_said) {
            return Err(Failure::usage(format!(
                "{flag} and --reconnect never contradict each other"
            )));
        }
    }
    dial.read_timeout = read_timeout;
    if args.wait.is_some() {
        dial.connect_timeout = args.wait;
    }
    dial.max_retries = args.max_retries;
    dial.stable_after = args.stable_after.unwrap_or(dial.stable_after);
    let line_end: &[u8] = if args.crlf { b"\r\n" } else { b"\n" };
    let heartbeat = args.heartbeat.clone().into_option();
    let settings = Settings {
        reconnect: args.reconnect.unwrap_or(if args.leaves_at_once {
            Reconnect::Never
        } else {
            Reconnect::Always
        }),
        on_read_timeout: args.on_read_timeout.unwrap_or(OnReadTimeout::Reconnect),
        heartbeat: heartbeat.map(|it| (it.every, [it.text.as_bytes(), line_end].concat())),
        // Who only sends has nothing to wait for.
        quit_after: match args.quit_after {
            Some(said) => said.into_option(),
            None => args.send_only.then_some(Duration::ZERO),
        },
        idle: args.wait,
        leaves_at_once: args.leaves_at_once,
        discards: args.send_only,
        half_close: !args.no_half_close,
        is_terminal: std::io::stdin().is_terminal(),
        insecure: is_insecure(&dial),
        detection: None,
    };
    Ok((dial, settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::typed;

    fn meant_by(line: &str) -> Result<(Dial, Settings), Failure> {
        meant(&typed(line).unwrap())
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "1 --on-read-timeout wait",
            "1 --on-read-timeout wait --read-timeout off",
            "1 --reconnect never --max-retries 3",
            "1 --reconnect never --stable-after 3s",
            "1 --reconnect never -i 3s --on-read-timeout reconnect",
        ] {
            assert_eq!(meant_by(line).unwrap_err().code, 2, "{line}");
        }
        for line in [
            "1 --reconnect never -i 3s --on-read-timeout exit",
            "1 --reconnect never --buffer-policy drop-new --heartbeat off",
            "1 -i off --max-retries 0",
        ] {
            assert!(meant_by(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_heartbeat_is_a_line() {
        let line = |line| meant_by(line).unwrap().1.heartbeat.unwrap().1;
        assert_eq!(line("1 --heartbeat 5"), b"\n");
        assert_eq!(line("1 --heartbeat 5:a:b -C"), b"a:b\r\n");
    }
}
