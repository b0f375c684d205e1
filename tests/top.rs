//! `standfast top`, in a terminal of tmux: what a user sees there, types, and has afterwards.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::home::Home;
use crate::support::{Server, assert_echoes, lacks, output, standfast, until};

/// A terminal, gone when dropped.
struct Terminal<'a> {
    home: &'a Home,
    socket: PathBuf,
}

impl<'a> Terminal<'a> {
    /// One of that size, in which `standfast top ARGS` runs, and behind it a program that says how it ended.
    fn open(home: &'a Home, size: (u16, u16), env: &str, args: &str) -> Self {
        // One of its own: the server of the terminal before may still hold its socket.
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let socket = home.join(&format!("tmux-{}", OPENED.fetch_add(1, Ordering::Relaxed)));
        let program = standfast();
        let program = program.get_program().to_str().unwrap();
        let folder = home.path.to_str().unwrap();
        let top = format!("echo $$ >{folder}/pid; exec env {env} {program} top {args}");
        let script = format!(
            "stty -g >{folder}/before; echo what was here; sh -c '{top}'; echo code=$?; \
             stty -g >{folder}/after; echo it is over; exec cat"
        );
        let terminal = Self { home, socket };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", &height, &script]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.arg("-u")
            .arg("-S")
            .arg(&self.socket)
            .args(["-f", "/dev/null"]);
        tmux.env("XDG_RUNTIME_DIR", &self.home.path)
            .env("LC_ALL", "C.UTF-8");
        tmux.env_remove("TMUX").env_remove("NO_COLOR").args(args);
        let (code, stdout, stderr) = output(tmux);
        assert_eq!(code, 0, "tmux {args:?}: {stderr}");
        stdout
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn shown(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J"])
    }

    /// What it shows, once that has all of `words`.
    #[track_caller]
    fn until_shown(&self, words: &[&str]) -> String {
        let mut shown = String::new();
        until(&format!("the terminal shows {words:?}"), || {
            shown = self.shown();
            words.iter().all(|word| shown.contains(word))
        });
        shown
    }

    fn fact(&self, format: &str) -> String {
        self.tmux(&["display-message", "-p", format])
            .trim()
            .to_owned()
    }

    fn pid(&self) -> Pid {
        let pid = fs::read_to_string(self.home.join("pid")).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    }

    /// Top has ended with that code, and the terminal is as it was.
    #[track_caller]
    fn assert_restored(&self, code: i32) {
        let shown = self.until_shown(&["it is over"]);
        assert!(shown.contains(&format!("code={code}")), "{shown}");
        assert!(shown.starts_with("what was here"), "{shown}");
        let modes = ["before", "after"].map(|name| fs::read_to_string(self.home.join(name)));
        let [before, after] = modes.map(Result::unwrap);
        assert_eq!(before, after);
        assert_eq!(self.fact("#{alternate_on} #{cursor_flag}"), "0 1");
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let mut tmux = Command::new("tmux");
        let _ = tmux.arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

const USUAL: (u16, u16) = (100, 40);

#[test]
fn a_user_sees_the_clients_and_kills_the_chosen_one_after_a_question() {
    if lacks(&["tmux"]) {
        return;
    }
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut clients = [(); 2].map(|()| server.connect());
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let address = server.address().to_string();
    let terminal = Terminal::open(&home, USUAL, "A=1", &format!("{address} --interval 100ms"));
    let peers = clients
        .each_ref()
        .map(|client| client.local_addr().unwrap().to_string());
    let words = ["serving", "READ/S", "no connection has ended yet"];
    terminal.until_shown(&[&words[..], &[&address, &peers[0], &peers[1]]].concat());
    // A filter leaves one, whose details name it.
    terminal.press(&["/"]);
    terminal.press(&["-l", &peers[1]]);
    terminal.press(&["Enter"]);
    until("one is left", || !terminal.shown().contains(&peers[0]));
    terminal.press(&["Down", "Enter"]);
    terminal.until_shown(
        &["5 bytes", &peers[1], "no deadline"].map(|word| match word {
            "no deadline" => "read in",
            word => word,
        }),
    );
    terminal.press(&["k"]);
    let question = format!("kill connection 2 of {}? y/n", peers[1]);
    terminal.until_shown(&[&question]);
    terminal.press(&["n"]);
    terminal.until_shown(&["2 is left alone"]);
    assert_echoes(&mut clients[1], b"still there");
    terminal.press(&["k"]);
    terminal.until_shown(&[&question]);
    terminal.press(&["y"]);
    let closed = server.closed();
    assert_eq!(closed.facts["reason"], "killed", "{}", closed.line);
    assert_eq!(closed.facts["peer"], peers[1]);
    terminal.until_shown(&["killed 2", "reason"]);
    terminal.press(&["Escape", "Escape", "2"]);
    terminal.until_shown(&["EVIDENCE", "killed", &peers[1]]);
    assert_echoes(&mut clients[0], b"still here");
    terminal.press(&["q"]);
    terminal.assert_restored(0);
}

#[test]
fn it_goes_on_over_a_restart_and_waits_for_a_server_that_is_gone() {
    if lacks(&["tmux"]) {
        return;
    }
    let home = Home::new();
    let server = home.serve(&[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let address = server.address().to_string();
    let terminal = Terminal::open(&home, USUAL, "A=1", "--interval 100ms");
    terminal.until_shown(&[&format!("pid {}", server.pid()), "Connections 1"]);
    let (orphan, _) = home.restart(&[&address]);
    let pid = home.pid(&[]);
    let peer = client.local_addr().unwrap().to_string();
    terminal.until_shown(&[&format!("pid {pid}"), "Takeovers 1", &peer]);
    home.answer(&["stop", &address]);
    drop(orphan);
    terminal.until_shown(&["no answer", "waiting for the server for"]);
    // Another one at the same place.
    let again = Server::spawn(home.standfast(&["serve", "-l", &address]), 1);
    terminal.until_shown(&[
        &format!("pid {}", again.pid()),
        "serving",
        "nobody is connected",
    ]);
    terminal.press(&["C-c"]);
    terminal.assert_restored(0);
}

#[test]
fn a_signal_gives_the_terminal_back() {
    if lacks(&["tmux"]) {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let home = Home::new();
        let server = home.serve(&[]);
        let terminal = Terminal::open(&home, USUAL, "A=1", "");
        terminal.until_shown(&["serving"]);
        assert_eq!(terminal.fact("#{alternate_on} #{cursor_flag}"), "1 0");
        kill_process(terminal.pid(), signal).unwrap();
        terminal.assert_restored(0);
        drop(server);
    }
}

#[test]
fn a_panic_of_any_thread_is_one_line_on_a_terminal_that_was_given_back() {
    if lacks(&["tmux"]) {
        return;
    }
    let home = Home::new();
    let _server = home.serve(&[]);
    for thread in ["asker", "keys", "main"] {
        let fault = format!("STANDFAST_FAULT=panic-{thread}");
        let terminal = Terminal::open(&home, USUAL, &fault, "");
        terminal.assert_restored(1);
        let shown = terminal.shown();
        let said = format!("standfast: panicked: as STANDFAST_FAULT says (thread {thread} at src/");
        let lines: Vec<&str> = shown.lines().filter(|line| !line.is_empty()).collect();
        let [_, line, _, _] = *lines else {
            panic!("{thread}: one line: {shown}");
        };
        assert!(line.starts_with(&said), "{line}");
        assert!(
            line.ends_with("please report it; the server serves on"),
            "{line}"
        );
    }
}

#[test]
fn a_window_may_be_tiny_and_change_its_size_and_the_job_may_be_stopped() {
    if lacks(&["tmux"]) {
        return;
    }
    let home = Home::new();
    let server = home.serve(&[]);
    let client = server.connect();
    let peer = client.local_addr().unwrap().to_string();
    let terminal = Terminal::open(&home, (30, 5), "NO_COLOR=1", "--interval 1h");
    terminal.until_shown(&["Connections 1", &peer]);
    // Nothing but the size has it drawn anew: the server is asked once an hour.
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    terminal.until_shown(&["Bytes that wait", "Ends by reason", &peer]);
    let coloured = terminal.tmux(&["capture-pane", "-p", "-e"]);
    // 39 is the terminal's own.
    let is_coloured = (30..38).any(|colour| coloured.contains(&format!("[{colour}m")));
    assert!(!is_coloured, "{coloured}");
    kill_process(terminal.pid(), Signal::STOP).unwrap();
    kill_process(terminal.pid(), Signal::CONT).unwrap();
    terminal.press(&["?"]);
    terminal.until_shown(&["standfast top: keys"]);
    terminal.press(&["q"]);
    terminal.assert_restored(0);
}

#[test]
fn without_a_terminal_or_a_server_it_says_so_in_one_line() {
    if lacks(&["tmux", "script"]) {
        return;
    }
    let home = Home::new();
    let (code, said) = home.refusal(&["top"]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("top needs a terminal, and stdin is none"),
        "{said}"
    );
    let (code, said) = home.refusal(&["top", "--interval", "5ms"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("below 100ms"), "{said}");
    let terminal = Terminal::open(&home, USUAL, "TERM=dumb", "");
    terminal.until_shown(&["code=2", "TERM says that this one cannot"]);
    terminal.assert_restored(2);
    drop(terminal);
    let terminal = Terminal::open(&home, USUAL, "A=1", "");
    terminal.until_shown(&["code=1", "standfast: no server of this user"]);
    terminal.assert_restored(1);
}
