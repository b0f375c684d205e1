//! `--log-file`: opened anew by SIGUSR1 and by a takeover, and nobody waits for it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;

use crate::support::home::{Home, text};
use crate::support::{
    Orphan, Server, assert_echoes, connect, facts, lacks, output, read_to_fin, shell, until,
};

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn says(path: &Path, what: &str) -> bool {
    lines(path).iter().any(|line| line.contains(what))
}

/// The numbers of the connections whose end is said in `files`; each once.
fn ended(files: &[Vec<String>]) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    for line in files.iter().flatten() {
        assert!(line.starts_with("20"), "a whole line: {line}");
        if line.contains(" info closed ") {
            let id = facts(line)["id"].parse().unwrap();
            assert!(ids.insert(id), "twice: {line}");
        }
    }
    ids
}

/// Clients one after the other, until it is dropped.
struct Comers {
    stop: AtomicBool,
    came: AtomicUsize,
}

/// Stops what runs when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Comers {
    fn meanwhile<T>(address: SocketAddr, what: impl FnOnce(&Self) -> T) -> (T, usize) {
        let comers = Self {
            stop: AtomicBool::new(false),
            came: AtomicUsize::new(0),
        };
        let done = thread::scope(|scope| {
            scope.spawn(|| {
                while !comers.stop.load(Ordering::Relaxed) {
                    assert_echoes(&mut connect(address), b"hello");
                    comers.came.fetch_add(1, Ordering::Relaxed);
                }
            });
            // Also when it fails.
            let _end = End(&comers.stop);
            what(&comers)
        });
        (done, comers.came.load(Ordering::Relaxed))
    }

    fn let_some_come(&self) {
        let before = self.came.load(Ordering::Relaxed);
        until("clients come", || {
            self.came.load(Ordering::Relaxed) >= before + 20
        });
    }
}

#[test]
fn lines_go_to_the_file_and_not_to_stderr() {
    let home = Home::new();
    let path = home.join("log");
    let command = shell(
        r#"umask 022; exec "$@""#,
        &["serve", "-l", "0", "--log-file", text(&path)],
    );
    let mut server = Server::spawn(command, 1);
    assert_echoes(&mut server.connect(), b"hello");
    until("its end is said", || says(&path, " info closed "));
    assert!(server.drain().success());
    assert_eq!(server.lines, [""; 0]);
    let said = lines(&path);
    let words = ["listening", "closed", "draining", "ended"];
    assert_eq!(said.len(), words.len(), "{said:?}");
    for (line, word) in said.iter().zip(words) {
        assert!(line.contains(&format!(" info {word} ")), "{line}");
    }
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    // The next one appends.
    let mut server = Server::start(&["--log-file", text(&path)]);
    assert!(server.drain().success());
    assert_eq!(lines(&path)[..4], said);
}

#[test]
fn what_ends_the_program_is_in_the_file_too() {
    let home = Home::new();
    let path = home.join("log");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let (code, line) = home.refusal(&["serve", "-l", &address, "--log-file", text(&path)]);
    assert_eq!(code, 1, "{line}");
    let said = lines(&path);
    assert!(
        said[0].contains(" error cannot listen on ") || said[0].contains(" error cannot bind "),
        "{said:?}"
    );
}

#[test]
fn a_rename_loses_no_line() {
    let home = Home::new();
    let path = home.join("log");
    let mut server = Server::start(&["--log-file", text(&path)]);
    let rotate = |comers: &Comers| -> Vec<PathBuf> {
        let rotations = (1..=5).map(|at| {
            comers.let_some_come();
            let old = home.join(&format!("log.{at}"));
            fs::rename(&path, &old).unwrap();
            server.signal(Signal::USR1);
            until("it is there anew", || {
                says(&path, " info log file opened anew ")
            });
            old
        });
        rotations.collect()
    };
    let (mut files, came) = Comers::meanwhile(server.address(), rotate);
    assert!(server.drain().success());
    files.push(path);
    let files: Vec<_> = files.iter().map(|path| lines(path)).collect();
    assert_eq!(ended(&files).len(), came);
    let ended = files
        .concat()
        .into_iter()
        .find(|line| line.contains(" info ended "));
    assert_eq!(facts(&ended.unwrap())["closed"], came.to_string());
}

#[test]
fn one_that_cannot_be_opened_anew_goes_on_as_it_is() {
    let home = Home::new();
    let (path, old) = (home.join("log"), home.join("log.1"));
    let mut server = Server::start(&["--log-file", text(&path)]);
    fs::rename(&path, &old).unwrap();
    fs::create_dir(&path).unwrap();
    server.signal(Signal::USR1);
    until("it is said", || {
        says(
            &old,
            " warn cannot open the log file anew, going on with the one that is open path=",
        )
    });
    assert_echoes(&mut server.connect(), b"hello");
    until("its end is said", || says(&old, " info closed "));
    fs::remove_dir(&path).unwrap();
    server.signal(Signal::USR1);
    until("now it can", || says(&path, " info log file opened anew "));
    assert!(server.drain().success());
}

#[test]
fn one_that_cannot_be_opened_refuses_the_start_and_a_takeover() {
    let home = Home::new();
    let missing = home.join("nosuch").join("log");
    for wrong in [text(&missing), text(&home.path)] {
        let (code, line) = home.refusal(&["serve", "-l", "0", "--log-file", wrong]);
        assert_eq!(code, 1);
        let told = format!("standfast: cannot open the log file {wrong}: ");
        assert!(line.starts_with(&told), "{line}");
    }
    let (folder, away) = (home.join("folder"), home.join("away"));
    fs::create_dir(&folder).unwrap();
    let path = folder.join("log");
    let mut server = home.serve(&["--log-file", text(&path)]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    fs::rename(&folder, &away).unwrap();
    let (code, stdout, stderr) = output(home.standfast(&["restart"]));
    assert_eq!((code, &*stdout), (1, ""), "{stderr}");
    assert!(
        stderr.contains("not restarted, the server goes on")
            && stderr.contains("cannot open the log file"),
        "{stderr}"
    );
    server.log_line("why", |line| line.contains("cannot open the log file"));
    assert_echoes(&mut client, b"it serves on");
    drop(client);
    assert!(server.drain().success());
    assert!(says(&away.join("log"), " info ended "));
}

#[test]
fn both_processes_of_a_takeover_write_whole_lines_to_one_file() {
    let home = Home::new();
    let path = home.join("log");
    let server = home.serve(&["--log-file", text(&path)]);
    let (generations, came) = Comers::meanwhile(server.address(), |comers| {
        let restarts = (0..4).map(|at| {
            comers.let_some_come();
            // A file that was renamed between two takeovers.
            if at == 2 {
                fs::rename(&path, home.join("log.1")).unwrap();
            }
            home.restart(&[]).0
        });
        restarts.collect::<Vec<_>>()
    });
    home.answer(&["drain"]);
    until("the last one has ended", || {
        generations.iter().all(Orphan::has_ended)
    });
    let files = [lines(&home.join("log.1")), lines(&path)];
    let files = files.map(|lines| {
        // Each process says so of a client that it has handed over.
        let handed = |line: &String| !line.contains("reason=handed-off");
        lines.into_iter().filter(handed).collect::<Vec<_>>()
    });
    assert_eq!(ended(&files).len(), came);
}

fn make_fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[test]
fn a_fifo_holds_up_nobody_and_is_read_when_somebody_does() {
    if lacks(&["mkfifo"]) {
        return;
    }
    let home = Home::new();
    let path = home.join("log");
    make_fifo(&path);
    let mut server = Server::start(&["--log-file", text(&path), "-v"]);
    // More than a FIFO holds: 64 KiB.
    for _ in 0..400 {
        assert_echoes(&mut connect(server.address()), b"hello");
    }
    // It is full, and there is another one.
    fs::rename(&path, home.join("full")).unwrap();
    make_fifo(&path);
    server.signal(Signal::USR1);
    let mut fifo = BufReader::new(fs::File::open(&path).unwrap());
    let mut line = String::new();
    while !line.contains(" info log file opened anew ") {
        line.clear();
        assert!(fifo.read_line(&mut line).unwrap() > 0);
        assert!(line.starts_with("20"), "a whole line: {line}");
    }
    drop(fifo);
    assert!(server.drain().success());
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_nothing_else() {
    let home = Home::new();
    let mut server = Server::start(&["--log-file", "/dev/full"]);
    assert_echoes(&mut server.connect(), b"hello");
    assert!(server.drain().success());

    if lacks(&["prlimit"]) {
        return;
    }
    let path = home.join("log");
    // All but full: the first line ends in its middle.
    const MOST: usize = 32768;
    fs::write(&path, [&b"x".repeat(MOST - 21)[..], b"\n"].concat()).unwrap();
    let serve = home.standfast(&["serve", "-l", "0", "--log-file", text(&path)]);
    let mut command = Command::new("prlimit");
    command.arg(format!("--fsize={MOST}"));
    command.arg(serve.get_program()).args(serve.get_args());
    command.envs(
        serve
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let mut server = Server::spawn(command, 1);
    const CLIENTS: usize = 100;
    for _ in 0..CLIENTS {
        let mut client = server.connect();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(&mut client), b"");
    }
    // As logrotate's copytruncate does; what is still to be written then fits.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    until("it is full", || {
        file.metadata().unwrap().len() == MOST as u64
    });
    file.set_len(0).unwrap();
    until("it is said", || {
        says(&path, " warn log lines dropped count=")
    });
    assert!(server.drain().success());
    let rest = lines(&path);
    let said = rest
        .iter()
        .filter(|line| line.contains(" warn log lines dropped "));
    let counts = said.map(|line| {
        assert!(line.contains(r#"why="File too large"#), "{line}");
        facts(line)["count"].parse::<usize>().unwrap()
    });
    let dropped: usize = counts.sum();
    // The first one said that it listens.
    assert_eq!(
        ended(&[whole(&rest)]).len() + dropped,
        CLIENTS + 1,
        "{rest:?}"
    );
}

/// What stands behind a line that was torn begins a line of its own.
fn whole(lines: &[String]) -> Vec<String> {
    let some = lines.iter().filter(|line| !line.is_empty());
    some.cloned().collect()
}

#[test]
fn logrotate_with_the_example_loses_no_line() {
    if lacks(&["logrotate", "gzip"]) {
        return;
    }
    let home = Home::new();
    let path = home.join("standfast.log");
    let mut server = Server::start(&["--log-file", text(&path)]);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/logrotate/standfast");
    let example = fs::read_to_string(example).unwrap();
    let tell = example.lines().find(|line| line.contains("systemctl kill"));
    let mine = example
        .replace("/var/log/standfast/*.log", text(&path))
        .replace(tell.unwrap(), &format!("kill -USR1 {}", server.pid()));
    let (configuration, state) = (home.join("logrotate.conf"), home.join("state"));
    fs::write(&configuration, &mine).unwrap();
    fs::set_permissions(&configuration, fs::Permissions::from_mode(0o644)).unwrap();
    let rotate = |comers: &Comers| {
        for _ in 0..3 {
            comers.let_some_come();
            let mut logrotate = Command::new("logrotate");
            logrotate.args(["--force", "--state", text(&state), text(&configuration)]);
            let (code, stdout, stderr) = output(logrotate);
            assert_eq!((code, &*stdout, &*stderr), (0, "", ""));
            until("it is opened anew", || {
                says(&path, " info log file opened anew ")
            });
        }
    };
    let ((), came) = Comers::meanwhile(server.address(), rotate);
    assert!(server.drain().success());
    let mut files = vec![lines(&path), lines(&home.join("standfast.log.1"))];
    for packed in ["standfast.log.2.gz", "standfast.log.3.gz"] {
        let mut gzip = Command::new("gzip");
        let (code, text, stderr) = output({
            gzip.arg("-dc").arg(home.join(packed));
            gzip
        });
        assert_eq!((code, &*stderr), (0, ""), "{packed}");
        files.push(text.lines().map(str::to_owned).collect());
    }
    assert_eq!(ended(&files).len(), came);
}
