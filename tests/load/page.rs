//! `--html`: a page that needs nothing but itself, with what happened where it happened.

use std::fs;
use std::process::Command;

use crate::support::Server;
use crate::support::home::Home;
use crate::support::loading::{Loading, load_command, nobody, output};

/// What stands between `before` and `after`, each time.
fn parts<'a>(page: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    let pieces = page.split(before).skip(1);
    pieces
        .map(|piece| piece.split(after).next().unwrap())
        .collect()
}

#[test]
fn the_page_shows_the_run_and_loads_nothing() {
    let home = Home::new();
    let server = Server::start(&["-q"]);
    let file = home.join("run.html");
    fs::write(
        &file,
        "what was here before, and is longer than nothing".repeat(9000),
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let args = ["-c", "2", "-r", "100", "-T", "1200ms", "-q", "--html", path];
    let (code, table, stderr) = output(load_command(server.address(), &args));
    assert_eq!((code, &*stderr), (0, ""));

    let page = fs::read_to_string(&file).unwrap();
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"),
        "{page}"
    );
    for foreign in ["src=", "href=", "url(", "<script", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("default-src 'none'"), "{page}");
    let shown = parts(&page, "<pre>", "</pre>");
    assert_eq!(shown[0].replace("&gt;", ">"), table);
    let titles = parts(&page, "<figcaption>", " ");
    assert_eq!(titles, ["Latency,", "Messages", "Connections"]);
    for class in ["p50", "p99", "most", "flow"] {
        let lines = parts(
            &page,
            &format!("<g class=\"{class}\"><polyline points=\""),
            "\"",
        );
        // A few fifths of a second, however late they were seen.
        assert!(
            lines.iter().any(|line| line.split(' ').count() >= 2),
            "{class}: {lines:?}"
        );
    }
    assert!(
        page.contains("2 up, 0 made, 0 lost, 0 failed to connect"),
        "{page}"
    );
    assert!(
        !page.contains("line class=\"mark\""),
        "nothing happened: {page}"
    );
}

#[test]
fn a_takeover_and_a_crash_stand_where_they_happened() {
    let home = Home::new();
    // An address that nothing connects from, so that its port is free when it comes back.
    let server = home.serve(&["-l", "127.0.71.9:0", "-q"]);
    let (address, before) = (server.address(), server.pid());
    let file = home.join("run.html");
    let mut command = load_command(
        address,
        &["-c", "4", "-T", "1m", "--html", file.to_str().unwrap()],
    );
    command.env("XDG_RUNTIME_DIR", &home.path);
    let mut loading = Loading::spawn(command);
    loading.goes_on_with(4);
    let port = address.port().to_string();
    home.taken_over(&["restart", &port]);
    let taken = home.pid(&[&port]);
    assert_ne!(taken, before);
    loading.goes_on_with(4);
    loading.goes_on_with(4);
    home.answer(&["stop", &port]);
    loading.goes_on_with(0);
    let again = home.serve(&["-l", &address.to_string(), "-q"]);
    loading.goes_on_with(4);
    loading.goes_on_with(4);
    loading.signal(rustix::process::Signal::INT);
    let (code, table) = loading.ends();
    assert_eq!(code, 0, "{table}");

    let page = fs::read_to_string(&file).unwrap();
    let told = parts(&page, "<li>", "</li>");
    let takeover =
        format!(" takeover: pid {taken}, was {before}, 4 connections handed over, frozen for ");
    assert!(told[0].contains(&takeover), "{told:?}");
    let restart = format!(" restart: pid {}, was {taken}", again.pid());
    assert!(told[1].contains(&restart), "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
    // In each of the three pictures.
    assert_eq!(parts(&page, "<line class=\"mark\"", ">").len(), 6, "{page}");
    assert!(
        page.contains("<g class=\"bad\"><rect "),
        "ends are to be seen: {page}"
    );
}

#[test]
fn a_run_that_does_not_come_to_its_end_leaves_no_page_and_the_one_before_as_it_was() {
    let home = Home::new();
    let server = Server::start(&["-q"]);
    let (file, link) = (home.join("run.html"), home.join("link.html"));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&file, &link] {
        let path = path.to_str().unwrap();
        let args = ["-T", "100ms", "--connect-timeout", "100ms", "--html", path];
        let (code, _, stderr) = output(load_command(nobody(), &args));
        assert_eq!(code, 1, "{stderr}");
        assert!(!file.exists(), "nobody was there");
        let args = ["--expect", "nothing == 0", "--html", path];
        let (code, _, stderr) = output(load_command(server.address(), &args));
        assert_eq!(code, 2, "{stderr}");
        assert!(!file.exists(), "asked wrongly");
        let args = ["-c", "2", "-T", "1m", "--html", path];
        let mut loading = Loading::start(server.address(), &args);
        loading.goes_on_with(2);
        loading.signal(rustix::process::Signal::KILL);
        loading.wait();
        assert!(!file.exists(), "killed");
    }
    fs::write(&file, "of another run").unwrap();
    let path = file.to_str().unwrap();
    let args = ["-T", "100ms", "--connect-timeout", "100ms", "--html", path];
    let (code, _, stderr) = output(load_command(nobody(), &args));
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "of another run");
    // And by the link a page is written where it leads.
    fs::remove_file(&file).unwrap();
    let args = ["-T", "300ms", "-q", "--html", link.to_str().unwrap()];
    let (code, _, stderr) = output(load_command(server.address(), &args));
    assert_eq!(code, 0, "{stderr}");
    assert!(link.is_symlink());
    assert!(fs::read_to_string(&file).unwrap().ends_with("</html>"));
}

#[test]
fn a_page_that_cannot_be_written_is_refused_before_the_run() {
    let home = Home::new();
    let path = home.join("none").join("run.html");
    let (code, stdout, stderr) =
        output(load_command(nobody(), &["--html", path.to_str().unwrap()]));
    let said = format!(
        "standfast: cannot write the page {}: No such file or directory (os error 2)",
        path.display()
    );
    assert_eq!((code, &*stdout, &*stderr), (1, "", &*said));
}

#[test]
fn a_page_to_a_fifo_that_nobody_reads_is_refused_and_not_waited_for() {
    let home = Home::new();
    let path = home.join("page");
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let command = load_command(nobody(), &["--html", path.to_str().unwrap()]);
    let (code, stdout, stderr) = output(command);
    let said = format!(
        "standfast: cannot write the page {}: No such device or address (os error 6)",
        path.display()
    );
    assert_eq!((code, &*stdout, &*stderr), (1, "", &*said));
}
