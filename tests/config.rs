//! `--config`: settings from a file, beside flags and the environment; several listeners in one process.

/// What a reload left behind.
mod behind;
/// A file read anew by a process that takes over.
mod reload;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::support::home::{Home, refusal, text};
use crate::support::{Server, assert_echoes, connect, output, shell};

/// A configuration file of the test's own.
fn file(home: &Home, content: &str) -> PathBuf {
    let path = home.join("standfast.toml");
    fs::write(&path, content).unwrap();
    path
}

/// `serve --config` of that file, with so many listeners.
fn serve(home: &Home, content: &str, listeners: usize) -> Server {
    let path = file(home, content);
    Server::spawn(
        home.standfast(&["serve", "--config", text(&path)]),
        listeners,
    )
}

/// What comes next is `text`.
#[track_caller]
fn assert_next(client: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

/// The row of `check` that begins with `name`, its blanks single.
#[track_caller]
fn row(table: &str, name: &str) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows = table.lines().map(words);
    let found = rows
        .into_iter()
        .find(|row| row.split(' ').next() == Some(name));
    found.unwrap_or_else(|| panic!("no {name} in\n{table}"))
}

#[test]
fn every_listener_of_a_file_has_a_service_and_limits_of_its_own() {
    let home = Home::new();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = serve(
        &home,
        &format!(
            r#"
            read-timeout = "7m"
            [[listen]]
            address = ["127.0.0.1:0", "127.0.0.2:0"]
            [[listen]]
            address = 0
            service = "forward"
            upstream = ["{}"]
            read-timeout = "off"
            [[listen]]
            address = "127.0.0.1:0"
            service = "exec"
            command = ["/bin/cat", "-n"]
            [[listen]]
            address = "127.0.0.1:0"
            service = "hub"
            echo-self = true
            max-conns = 1
            "#,
            upstream.local_addr().unwrap()
        ),
        5,
    );
    let addresses = server.addresses.clone();
    for echo in &addresses[..2] {
        assert_echoes(&mut connect(*echo), b"hello");
    }
    let mut relayed = connect(addresses[2]);
    let (mut accepted, _) = upstream.accept().unwrap();
    relayed.write_all(b"to the upstream\n").unwrap();
    assert_next(&mut accepted, "to the upstream\n");
    let mut program = connect(addresses[3]);
    program.write_all(b"numbered\n").unwrap();
    assert_next(&mut program, "     1\tnumbered\n");
    let mut hub = connect(addresses[4]);
    hub.write_all(b"to all\n").unwrap();
    assert_next(&mut hub, "to all\n");
    let one_too_many = connect(addresses[4]);
    let closed = server.log_line("a limit", |line| line.contains("reason=limit"));
    assert!(
        closed.contains(&format!("listener={}", addresses[4])),
        "{closed}"
    );
    drop(one_too_many);
    let line = |server: &Server, address| {
        let listening = format!("info listening listener={address} ");
        let mut lines = server.lines.iter();
        lines
            .find(|line| line.contains(&listening))
            .cloned()
            .unwrap()
    };
    assert!(line(&server, addresses[0]).contains(" service=echo keepalive=60:10:3 "));
    assert!(line(&server, addresses[1]).contains(" read_timeout=7m "));
    assert!(
        line(&server, addresses[2])
            .contains(" service=forward keepalive=60:10:3 dead_after=102s read_timeout=off ")
    );
    assert!(line(&server, addresses[4]).ends_with(" max_conns=1"));
}

#[test]
fn what_several_listeners_print_goes_to_one_stdout_line_by_line() {
    let home = Home::new();
    let each = "[[listen]]\naddress = 0\nservice = \"print\"\n";
    let mut server = serve(&home, &format!("{each}{each}"), 2);
    let lines: Vec<_> = ["a", "b"]
        .map(|text| format!("{}\n", text.repeat(900)))
        .into();
    let clients = server.addresses.clone().into_iter().zip(lines.clone());
    let clients: Vec<_> = clients
        .map(|(address, line)| {
            std::thread::spawn(move || {
                let mut client = connect(address);
                (0..200).for_each(|_| client.write_all(line.as_bytes()).unwrap());
            })
        })
        .collect();
    for _ in 0..400 {
        let line = server.stdout_line() + "\n";
        assert!(lines.contains(&line), "torn: {line}");
    }
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_flag_goes_before_a_variable_and_that_before_the_file_and_check_says_which_it_was() {
    let home = Home::new();
    let path = file(
        &home,
        "read-timeout = \"1m\"\nwrite-timeout = \"2m\"\nmax-age = \"1h\"\nmemory = \"64m\"\nhistory = 5\n\n\
         [[listen]]\naddress = 0\nwrite-timeout = \"3m\"\n\n\
         [[listen]]\naddress = 0\nservice = \"hub\"\nallow = [\"10.0.0.0/8\", \"::1\"]\n",
    );
    let name = text(&path);
    let mut command = home.standfast(&["check", "--read-timeout", "4m"]);
    command
        .env("STANDFAST_CONFIG", name)
        .env("STANDFAST_READ_TIMEOUT", "5m")
        .env("STANDFAST_MAX_AGE", "6h")
        .env("STANDFAST_DENY", "192.0.2.1,192.0.2.2")
        .env("STANDFAST_SERVICE_HOST", "10.0.0.1")
        .env("STANDFAST_PORT_7000_TCP", "tcp://10.0.0.1:7000");
    let (code, table, stderr) = output(command);
    assert_eq!((code, &*stderr), (0, ""), "{table}");
    let sections: Vec<_> = table.split("\n\n").collect();
    let [echo, hub, server] = sections[..] else {
        panic!("{table}");
    };
    assert!(
        echo.starts_with(&format!("[[listen]] {name}:7\n")),
        "{echo}"
    );
    assert!(row(echo, "read-timeout").starts_with("read-timeout 4m "));
    assert!(row(echo, "read-timeout").ends_with("(command line)"));
    assert!(row(echo, "max-age").starts_with("max-age 6h "));
    assert!(row(echo, "max-age").ends_with("(STANDFAST_MAX_AGE)"));
    assert!(row(echo, "write-timeout").starts_with("write-timeout 3m "));
    assert!(row(echo, "write-timeout").ends_with(&format!("({name}:9)")));
    assert!(row(echo, "deny").starts_with("deny 2 ranges"), "{echo}");
    assert!(!echo.contains("history"), "it is the hub's: {echo}");
    assert!(row(hub, "write-timeout").ends_with(&format!("({name}:2)")));
    assert_eq!(row(hub, "history"), format!("history 5 ({name}:5)"));
    assert!(row(hub, "allow").starts_with("allow 2 ranges"), "{hub}");
    assert!(row(server, "memory").ends_with(&format!("({name}:4)")));
    assert!(server.starts_with("the server\n"), "{server}");
}

#[test]
fn what_is_wrong_in_a_file_is_refused_with_key_file_and_line() {
    let home = Home::new();
    let table = "[[listen]]\naddress = 0\n";
    for (content, line, said) in [
        ("read-timeot = 5\n".to_owned(), 1, "no key read-timeot; the nearest one is read-timeout"),
        ("\ndead_after = 5\n".to_owned(), 2, "the nearest one is dead-after"),
        ("config = \"x\"\n".to_owned(), 1, "no key config"),
        ("[[listen]]\naddress = []\n".to_owned(), 2, "address: there is nothing in it"),
        ("[[listen]]\naddress = \"x!y\"\n".to_owned(), 2, "address: invalid value"),
        (format!("{table}service = \"forward\"\nupstream = \"\"\n"), 4, "upstream: there is nothing in it"),
        (format!("{table}service = \"exec\"\ncommand = [\"\"]\n"), 4, "command: there is nothing in it"),
        ("read-timeout = 0\n".to_owned(), 1, "'0' for '--read-timeout"),
        (format!("{table}max-conns = -1\n"), 3, "'-1' for '--max-conns"),
        (format!("{table}when-full = \"open\"\n"), 3, "'open' for '--when-full"),
        (format!("{table}service = \"ech\"\n"), 3, "'ech' for '[SERVICE]'"),
        (format!("{table}workers = 2\n"), 3, "workers is the whole server's"),
        (format!("{table}buffer = [1, 2]\n"), 3, "buffer: expected one value"),
        (format!("{table}buffer = true\n"), 3, "buffer: expected a value"),
        (format!("{table}service = \"hub\"\nraw = 1\n"), 4, "raw: expected true or false"),
        (format!("{table}raw = true\n"), 3, "--raw is for the service hub, not echo"),
        (format!("{table}\n[[listen]]\nservice = \"hub\"\n"), 4, "has no address"),
        (format!("{table}upstream = \"7:7\"\n"), 3, "works on nothing"),
        (format!("{table}service = \"forward\"\nupstream = \"db:x\"\n"), 4, "\"db:x\""),
        (format!("{table}service = \"exec\"\ncommand = \"/nosuch\"\n"), 4, "cannot run /nosuch"),
        (format!("{table}dead-after = 20\nkeepalive = \"60:10:3\"\n"), 4, "keepalive 60:10:3 takes"),
        (format!("{table}deny = \"@/nosuch\"\n"), 3, "cannot read /nosuch for --deny"),
        (format!("{table}accept-proxy = true\nproxy-timeout = 2\n"), 4, "proxy timeout below 3 s"),
        ("proxy-timeout = 2\naccept-proxy = true\n".to_owned(), 1, "proxy timeout below 3 s"),
        (format!("allow = []\n{table}"), 1, "allow: there is no range in it"),
        (format!("{table}accept-proxy-from = []\n"), 3, "accept-proxy-from: there is no range in it"),
        (format!("{table}deny = \"10.0.0.0/33\"\n"), 3, "for '--deny <CIDR>': 10.0.0.0/33: expected 0 to 32 bits"),
        ("[[listne]]\naddress = 1\n".to_owned(), 1, "the only tables are [[listen]]"),
        ("memory = \"1k\"\n".to_owned(), 1, "memory of 1024 bytes is too little"),
        ("verbose = 1\nquiet = true\n".to_owned(), 1, "cannot be used with '--quiet'"),
        ("[listen]\naddress = 1\n".to_owned(), 1, "[[listen]]"),
        ("buffer =\n".to_owned(), 1, ""),
        ("[[listen]]\naddress = 7\n[[listen]]\naddress = 7\n".to_owned(), 4, "127.0.0.1:7 has another [[listen]]"),
        ("[[listen]]\naddress = 7\n[[listen]]\naddress = 8\nservice = \"forward\"\nupstream = 7\n".to_owned(), 6, "127.0.0.1:7"),
    ] {
        let path = file(&home, &content);
        for command in ["check", "serve"] {
            let (code, said_it) = refusal(home.standfast(&[command, "--config", text(&path)]));
            let begins = format!("standfast: {}:{line}: ", text(&path));
            assert!(said_it.starts_with(&begins), "{content}: {said_it}");
            assert!(said_it.contains(said), "{content}: {said_it}");
            assert_eq!(code, 2, "{content}: {said_it}");
        }
    }
    let path = file(&home, &format!("{table}{table}"));
    let (code, said) = home.refusal(&["check", "--config", text(&path), "-l", "7000"]);
    assert_eq!(code, 2);
    assert!(said.contains("of which listener? the file has 2"), "{said}");
    let mut slip = home.standfast(&["check"]);
    slip.env("STANDFAST_READ_TIMEOT", "5");
    let (code, said) = refusal(slip);
    assert_eq!(code, 2);
    assert!(
        said.contains("the nearest one is STANDFAST_READ_TIMEOUT"),
        "{said}"
    );
    let mut zero = home.standfast(&["check"]);
    zero.env("STANDFAST_READ_TIMEOUT", "0");
    let (code, said) = refusal(zero);
    assert_eq!(code, 2);
    assert!(
        said.starts_with("standfast: STANDFAST_READ_TIMEOUT: "),
        "{said}"
    );
}

/// Ways to have no configuration at a path, and what is said of each.
const NO_FILES: [(&str, &str); 6] = [
    ("rm -f \"$2\"", "No such file"),
    ("rm -f \"$2\"; mkdir \"$2\"", "a directory"),
    ("rmdir \"$2\"; mkfifo \"$2\"", "not a file"),
    ("rm -f \"$2\"; truncate -s 100M \"$2\"", "larger than 1 MiB"),
    ("rm -f \"$2\"; printf '\\377' > \"$2\"", "not text"),
    ("rm -f \"$2\"; printf '\\n \\n' > \"$2\"", "is empty"),
];

#[test]
fn what_is_no_configuration_is_refused_at_once() {
    let home = Home::new();
    let path = home.join("standfast.toml");
    for (make, why) in NO_FILES {
        assert!(shell(make, &[text(&path)]).status().unwrap().success());
        let (code, said) = home.refusal(&["serve", "--config", text(&path)]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(why) && said.contains(text(&path)), "{said}");
    }
}

#[test]
fn what_is_doubtful_is_warned_of_with_where_it_was_said() {
    let home = Home::new();
    let path = file(
        &home,
        "log-file = \"/no/such/folder/log\"\nmax-conns = 1000000000\n[[listen]]\naddress = 0\nkeepalive = \"400:10:3\"\nbacklog = 1000000000\n\
         max-age = \"5m\"\nuser-timeout = \"20s\"\n",
    );
    let table = home.answer(&["check", "--config", text(&path)]);
    for (line, said) in [
        (
            1,
            "cannot write to the log file /no/such/folder/log: No such file",
        ),
        (2, "more than the descriptor limit leaves"),
        (2, "net.ipv4.tcp_mem"),
        (5, "forget who is idle for 350s"),
        (6, "net.core.somaxconn"),
        (7, "max-age 5m comes before read-timeout 10m"),
        (8, "user-timeout 20s cuts living slow readers"),
    ] {
        // A network namespace, as of a container, does not have that one.
        let sysctl = format!("/proc/sys/{}", said.replace('.', "/"));
        if said.starts_with("net.") && !Path::new(&sysctl).exists() {
            continue;
        }
        let begins = format!("warning: {}:{line}: ", text(&path));
        let mut lines = table.lines();
        let found = lines.any(|it| it.starts_with(&begins) && it.contains(said));
        assert!(found, "{line} {said}:\n{table}");
    }
    let plain = home.answer(&["check"]);
    assert!(!plain.contains("forget who is idle"), "{plain}");
}
