//! `standfast package FOLDER`: what a package has beside the program, made from its own command line: `man/` has a page
//! for each command, `completions/` a file for each shell. Only in a build with the feature `packaging`.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::args::Args;
use crate::logger;

const NAME: &str = "standfast";

/// The exit code, if that is what was asked.
pub(crate) fn asked() -> Option<ExitCode> {
    let words: Vec<_> = env::args_os().skip(1).collect();
    let [order, folder] = words.as_slice() else {
        return None;
    };
    if order != "package" {
        return None;
    }
    let folder = Path::new(folder);
    Some(match write_to(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logger::say(&format!("cannot write to {}: {error}", folder.display()));
            ExitCode::FAILURE
        }
    })
}

fn write_to(folder: &Path) -> io::Result<()> {
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Args::command(), NAME, &completions)?;
    }
    let pages = folder.join("man");
    fs::create_dir_all(&pages)?;
    for (name, page) in pages_of(Args::command())? {
        fs::write(pages.join(format!("{name}.1")), page)?;
    }
    Ok(())
}

/// The name of each command's page, and the page.
fn pages_of(mut program: Command) -> io::Result<Vec<(String, String)>> {
    program.build();
    let mut commands: Vec<Command> = program.get_subcommands().cloned().collect();
    commands.insert(0, program);
    let names: Vec<String> = commands
        .iter()
        .map(|command| command.get_display_name().unwrap_or(NAME).to_owned())
        .collect();
    let pages = commands.into_iter().zip(&names);
    pages
        .map(|(command, name)| Ok((name.clone(), page(command, name, &names)?)))
        .collect()
}

fn page(mut command: Command, name: &str, names: &[String]) -> io::Result<String> {
    // The synopsis made of the flags would have every one of them.
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let command = command.override_usage(usage);
    let notes = command.get_after_help();
    let notes = Notes::of(&notes.map(ToString::to_string).unwrap_or_default());
    let man = Man::new(command.clone())
        .date(date())
        .source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")))
        .manual("Standfast manual");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut roff = Roff::new();
    if !notes.description.is_empty() {
        roff.control("PP", []);
        paragraphs(&mut roff, &notes.description);
    }
    roff.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::new();
    for (heading, text) in &notes.sections {
        roff.control("SH", [*heading]);
        paragraphs(&mut roff, text);
    }
    for (heading, rows) in TABLES {
        table(&mut roff, heading, command.get_name(), rows);
    }
    roff.control("SH", ["SEE ALSO"]);
    let others: Vec<&String> = names.iter().filter(|other| *other != name).collect();
    for (at, other) in others.iter().enumerate() {
        let comma = if at + 1 < others.len() { "," } else { "" };
        roff.control("BR", [other.as_str(), &format!("(1){comma}")]);
    }
    roff.to_writer(&mut page)?;
    let page = String::from_utf8(page).map_err(io::Error::other)?;
    // What clap_mangen has for an empty line is one, a break and an empty line to groff, and a warning to mandoc.
    Ok(page.replace("\n.br\n\n.br\n", "\n.sp\n"))
}

/// The day of the sources where whoever builds says it (reproducible-builds.org), else today.
fn date() -> String {
    let said = env::var("SOURCE_DATE_EPOCH").ok();
    let second = said.and_then(|text| text.parse().ok());
    let of_sources = second.and_then(|second| jiff::Timestamp::from_second(second).ok());
    let when = of_sources.unwrap_or_else(jiff::Timestamp::now);
    when.strftime("%Y-%m-%d").to_string()
}

/// What stands below the flags in --help. In a page some of it is a section of its own.
struct Notes {
    description: String,
    sections: Vec<(&'static str, String)>,
}

/// How a line of --help begins with which a section does, and what that one is called.
const HEADS: [(&str, &str); 3] = [
    ("Durations: ", "VALUES"),
    ("Signals: ", "SIGNALS"),
    ("Exit codes: ", EXIT_STATUS),
];
const EXIT_STATUS: &str = "EXIT STATUS";

impl Notes {
    fn of(text: &str) -> Self {
        let mut description = String::new();
        let mut sections: Vec<(&str, String)> = Vec::new();
        let mut in_section = false;
        for line in text.lines() {
            in_section &= !line.is_empty();
            let head = HEADS.iter().find(|(head, _)| line.starts_with(head));
            if let Some((head, heading)) = head {
                // Without their word, values would be without a name.
                let kept = if *heading == "VALUES" { 0 } else { head.len() };
                sections.push((heading, line[kept..].to_owned() + "\n"));
                in_section = true;
                continue;
            }
            let text = match sections.last_mut() {
                Some((_, text)) if in_section => text,
                _ => &mut description,
            };
            text.push_str(line);
            text.push('\n');
        }
        let description = description.trim().to_owned();
        if !sections.iter().any(|(heading, _)| *heading == EXIT_STATUS) {
            let codes = "0 done, 1 failed, 2 asked wrongly.".to_owned();
            sections.push((EXIT_STATUS, codes));
        }
        Self {
            description,
            sections,
        }
    }
}

fn paragraphs(roff: &mut Roff, text: &str) {
    for (at, paragraph) in text.trim().split("\n\n").enumerate() {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph)]);
    }
}

/// On whose pages it stands, what it is called, what it is.
type Row = (Pages, &'static str, &'static str);

#[derive(Clone, Copy)]
enum Pages {
    /// Of all that has to do with a server.
    Servers,
    Of(&'static [&'static str]),
}

impl Pages {
    fn have(self, command: &str) -> bool {
        match self {
            Self::Servers => !["connect", "load"].contains(&command),
            Self::Of(commands) => commands.contains(&command),
        }
    }
}

fn table(roff: &mut Roff, heading: &str, command: &str, rows: &[Row]) {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.0.have(command)).collect();
    if rows.is_empty() {
        return;
    }
    roff.control("SH", [heading]);
    for (_, tag, text) in rows {
        roff.control("TP", []);
        roff.text([bold(*tag)]);
        roff.text([roman(*text)]);
    }
}

/// What knows no flag.
const TABLES: [(&str, &[Row]); 2] = [("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)];

const ENVIRONMENT: &[Row] = &[
    (
        Pages::Of(&["serve", "check"]),
        "STANDFAST_...",
        "Each long flag in capitals, such as STANDFAST_READ_TIMEOUT=5m; lists are separated by commas. A flag goes before it, and \
         it before the file of --config.",
    ),
    (
        Pages::Of(&[NAME, "serve"]),
        "RUST_LOG",
        "What is logged, such as debug, or standfast=trace; in place of what -v and -q say.",
    ),
    (
        Pages::Servers,
        "XDG_RUNTIME_DIR",
        "The folder under which control sockets are, see FILES.",
    ),
    (
        Pages::Of(&["serve"]),
        "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
        "The sockets that systemd passed, for -l systemd.",
    ),
    (
        Pages::Of(&["serve"]),
        "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID",
        "Where systemd is told that clients are served, that it ends, and that its workers turn.",
    ),
    (
        Pages::Of(&["serve"]),
        "FDSTORE",
        "How many descriptors systemd's store takes (FileDescriptorStoreMax=): connections outlive a crash there.",
    ),
    (
        Pages::Of(&["serve"]),
        "PATH",
        "Where exec looks for its program, and a restart for the new standfast where it was started by that word.",
    ),
];

const FILES: &[Row] = &[
    (
        Pages::Servers,
        "$XDG_RUNTIME_DIR/standfast/ADDRESS-PORT.sock",
        "The control socket of the server whose first listener is there, unless --control says another path. Without that \
         variable: in /run/user/UID/standfast, else in /tmp/standfast-UID. It answers its own user alone.",
    ),
    (
        Pages::Of(&["serve"]),
        "/etc/standfast/NAME.toml",
        "What standfast@NAME.service reads by --config, where a package brought that unit; another one, standfast.socket with \
         standfast.service, has flags alone.",
    ),
];
