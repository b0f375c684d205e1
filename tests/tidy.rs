//! House rules that no lint knows: which file may import which, how long a file may be, where `unsafe` stands.
#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong here ends it with the line it happened on"
)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(under)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!files.is_empty(), "no sources under {under}");
    files
}

/// The module a file of the library is, and what it imports: `a`, or `a::b` where that is a file.
fn module(path: &Path) -> String {
    let path = path.strip_prefix("src").unwrap().with_extension("");
    let name = path.to_str().unwrap().replace('/', "::");
    name.strip_suffix("::mod").unwrap_or(&name).to_owned()
}

/// The layers of the library, folders and single files: each imports only from those before it.
const LAYERS: [&str; 24] = [
    "parse",
    "os",
    "time",
    "address",
    "liveness",
    "error",
    "inspect",
    "memory",
    "tls",
    "dial",
    "io",
    "wire",
    "client",
    "handle",
    "service",
    "config",
    "connection",
    "services",
    "listen",
    "handoff",
    "vault",
    "worker",
    "metrics",
    "control",
    // And `server`, which nobody but `lib` imports.
];

/// What `code` of `module` names of this crate, each as a path from the crate's root: `crate::`, `super::` and `self::`
/// alike, of a list in braces each.
fn named(module: &str, code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].ends_with(|c| is_name(c) || c == '$') {
                continue;
            }
            let rest = &code[at..];
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (path, after) = rest.split_at(end);
            match after.strip_prefix('{').filter(|_| path.ends_with("::")) {
                None => paths.push(path.to_owned()),
                Some(list) => {
                    let list = list.split_once('}').unwrap().0;
                    let items = list.split(',').map(|item| item.trim().replace('{', ""));
                    paths.extend(items.map(|item| format!("{path}{item}")));
                }
            }
        }
    }
    let absolute = |path: &String| {
        let mut home: Vec<&str> = module.split("::").collect();
        let mut parts: Vec<&str> = path.split("::").collect();
        match parts.remove(0) {
            "crate" => home.clear(),
            "super" => {
                home.pop();
                while parts.first() == Some(&"super") {
                    parts.remove(0);
                    home.pop();
                }
            }
            _ => {}
        }
        [home, parts].concat().join("::")
    };
    paths.iter().map(absolute).collect()
}

/// Without what is for tests alone, and without comments; what stands in a module within the file says `super` of that.
fn code(text: &str) -> String {
    let text = text.split("\nmod tests {").next().unwrap();
    let mut within: Option<String> = None;
    let mut code = String::new();
    for line in text.lines() {
        let start = line.trim_start();
        if start.starts_with("//") {
            continue;
        }
        let indent = &line[..line.len() - start.len()];
        if start.contains("mod ") && start.ends_with('{') && within.is_none() {
            within = Some(format!("{indent}}}"));
        }
        match &within {
            Some(end) if line == end => within = None,
            Some(_) => {
                code += &line.replace("super::", "self::");
                code.push('\n');
                continue;
            }
            None => {}
        }
        code += line;
        code.push('\n');
    }
    code
}

#[test]
fn a_folder_imports_only_from_those_above_it() {
    let rank = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    for (path, text) in sources("src") {
        let module = module(&path);
        let own = module.split("::").next().unwrap();
        if path.starts_with("src/bin") || own == "lib" {
            continue;
        }
        for used in named(&module, &code(&text)) {
            let used_from = used.split("::").next().unwrap();
            // Numbers for tests stand outside, too.
            if used_from == own || used_from == "seeded" {
                continue;
            }
            let found = rank(used_from);
            assert!(found.is_some(), "{module} names {used}, which is no layer");
            // `server` is the last one.
            let own = rank(own).unwrap_or(LAYERS.len());
            assert!(found.unwrap() < own, "{module} imports {used} from below");
        }
    }
}

/// The folders whose types have one another: a socket's far side is such a socket; whom a handle tells gets the handle.
const ONE_THING: [&str; 2] = ["io", "handle"];

/// The re-exports in `code`, and the rest of it.
fn exports(code: &str) -> (String, String) {
    let mut within = false;
    code.lines()
        .map(|line| format!("{line}\n"))
        .partition(|line| {
            let is_export = within || (line.starts_with("pub") && line.contains(" use "));
            within = is_export && !line.contains(';');
            is_export
        })
}

/// The folder's `mod.rs` and the files beside it alike: where the main type stands there and has parts of its own, no
/// file that adds to the type is one that it has a part from. To export a name is not to import it.
#[test]
fn no_two_files_import_one_another() {
    let files: HashMap<String, String> = sources("src")
        .into_iter()
        .filter(|(path, _)| !path.starts_with("src/bin"))
        .map(|(path, text)| (module(&path), code(&text)))
        .collect();
    let imports: HashMap<&str, HashSet<&str>> = files
        .iter()
        .map(|(module, text)| {
            // The file that has what is named: the longest path that is one.
            let file = |path: String| {
                let of = |file: &&String| path == **file || path.starts_with(&format!("{file}::"));
                files.keys().filter(of).max_by_key(|file| file.len())
            };
            let (exports, text) = exports(text);
            let is_used = |path: &String| {
                let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
                words.any(|word| path.ends_with(&format!("::{word}")))
            };
            let exported = named(module, &exports).into_iter().filter(is_used);
            let used = named(module, &text).into_iter().chain(exported);
            let used = used.filter_map(file).map(String::as_str);
            (module.as_str(), used.collect())
        })
        .collect();
    let is_one = |part: &str, whole: &str| {
        ONE_THING.contains(&whole) && part.starts_with(&format!("{whole}::"))
    };
    let mut done: HashSet<&str> = HashSet::new();
    let mut left: Vec<&str> = imports.keys().copied().filter(|m| *m != "lib").collect();
    while !left.is_empty() {
        let is_ready = |module: &&str| {
            let mut used = imports[*module].iter();
            used.all(|used| used == module || done.contains(used) || is_one(module, used))
        };
        let (ready, waiting): (Vec<_>, Vec<_>) = left.iter().copied().partition(is_ready);
        assert!(!ready.is_empty(), "these import one another: {waiting:?}");
        done.extend(ready);
        left = waiting;
    }
}

/// What a connection's socket has is changed by methods of `io/`: the one exception makes one of a record.
#[test]
fn the_fields_of_io_are_written_in_its_folder() {
    let fields = [
        "last_in",
        "look_at",
        "registered",
        "read",
        "written",
        "pending",
        "outbox",
        "kept",
        "kept_at",
        "offer",
        "stopped",
        "far",
        "alarm",
        "again",
    ];
    for folder in ["client", "connection", "listen", "service", "worker"] {
        for (path, text) in sources(&format!("src/{folder}")) {
            for line in code(&text).lines() {
                let writes = |field: &&str| {
                    let written = [" = ", " += ", " |= "].map(|by| format!(".{field}{by}"));
                    written.iter().any(|it| line.contains(it))
                };
                let written = fields.iter().find(|field| writes(field));
                let ours = ["io.", "pending", "watched"]
                    .iter()
                    .any(|it| line.contains(it));
                assert!(
                    written.is_none() || !ours,
                    "{}: {}",
                    path.display(),
                    line.trim()
                );
            }
        }
    }
}

#[test]
fn every_file_says_first_what_it_is_and_is_not_too_long() {
    for (path, text) in ["src", "tests", "examples", "benches"]
        .into_iter()
        .flat_map(sources)
    {
        assert!(
            text.starts_with("//!"),
            "{} does not open with what it is",
            path.display()
        );
        let lines = text.lines().count();
        assert!(
            !path.starts_with("src") || lines <= 600,
            "{} has {lines} lines",
            path.display()
        );
    }
}

#[test]
fn unsafe_stands_in_one_folder() {
    for (path, text) in sources("src") {
        let allowed = path.starts_with("src/os/sys");
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let has = code
            .clone()
            .any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
        assert!(allowed || !has, "{} has unsafe code", path.display());
    }
}

#[test]
fn nothing_is_left_undone_and_nothing_sleeps() {
    // Put together here, so that this file does not find itself.
    let words = [
        "TO".to_owned() + "DO",
        "FIX".to_owned() + "ME",
        "thread::".to_owned() + "sleep",
    ];
    for (path, text) in ["src", "tests", "examples", "benches"]
        .into_iter()
        .flat_map(sources)
    {
        for word in &words {
            // The one place where tests let time pass.
            let home = path.ends_with("tests/support/mod.rs") && word.contains("sleep");
            assert!(
                home || !text.contains(word.as_str()),
                "{} has {word}",
                path.display()
            );
        }
    }
}

/// The documents of the package, by their path from its root, and what they say.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = Vec::new();
    for folder in ["", "docs", "packaging/container", "packaging/systemd"] {
        for entry in fs::read_dir(root.join(folder)).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "md") {
                let text = fs::read_to_string(&path).unwrap();
                documents.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    documents
}

/// The lines of a document that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// What a heading is called in a link, as GitHub and crates.io have it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let name: String = heading.to_lowercase().chars().filter(kept).collect();
    name.trim().replace(' ', "-")
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, text) in documents() {
        let links = prose(&text).flat_map(|line| {
            let parts = line.split("](").skip(1);
            parts.filter_map(|part| part.split_once(')').map(|(link, _)| link))
        });
        for link in links.filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = match file {
                "" => root.join(&path),
                file => root.join(path.parent().unwrap()).join(file),
            };
            let (path, shown) = (path.display(), file.display());
            assert!(file.exists(), "{path}: ({link}): there is no {shown}");
            if !heading.is_empty() {
                let text = fs::read_to_string(&file).unwrap();
                let mut headings = prose(&text).filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|line| anchor(line.trim_start_matches('#')) == heading),
                    "{path}: ({link}): {shown} has no such heading"
                );
            }
        }
    }
}

#[test]
fn the_layers_stand_on_the_map_in_their_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let rows = map.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once("` |")?;
        Some(name.trim_end_matches(".rs").trim_end_matches('/'))
    });
    let layers = [&LAYERS[..], &["server"]].concat();
    let rows: Vec<&str> = rows.filter(|row| layers.contains(row)).collect();
    // A thread may bear a layer's name, further down.
    assert_eq!(rows.get(..layers.len()), Some(&layers[..]));
}

#[test]
fn every_file_of_the_library_is_on_the_map() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    for (path, _) in sources("src") {
        let is_a_part = ["lib.rs", "mod.rs", "tests.rs"]
            .iter()
            .any(|name| path.ends_with(name));
        let for_tests = path.ends_with("dial/peers.rs");
        if is_a_part || for_tests || path.starts_with("src/bin") {
            continue;
        }
        let path = path.display();
        assert!(
            map.contains(&format!("(../{path})")),
            "{path} is not in docs/architecture.md"
        );
    }
}

#[test]
fn a_file_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [
        "src/",
        "tests/",
        "scripts/",
        "docs/",
        "examples/",
        "packaging/",
        ".ci/",
    ];
    for (path, text) in documents() {
        let quoted = prose(&text).flat_map(|line| line.split('`').skip(1).step_by(2));
        // Of a command, the program.
        let named = quoted.filter_map(|code| code.split(' ').next());
        for name in named.filter(|name| folders.iter().any(|folder| name.starts_with(folder))) {
            let path = path.display();
            assert!(
                root.join(name).exists(),
                "{path} names {name}: there is none"
            );
        }
    }
}

#[test]
fn every_document_can_be_found_and_its_rust_compiles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let (readme, library) = (read("README.md"), read("src/lib.rs"));
    for (path, text) in documents() {
        let path = path.to_str().unwrap();
        let name = path.rsplit('/').next().unwrap();
        let is_linked = readme.contains(&format!("]({path})"));
        assert!(
            is_linked || !path.starts_with("docs/"),
            "README.md has no link to {path}"
        );
        let is_lower = name == name.to_lowercase();
        assert!(is_lower || !path.starts_with("docs/"), "{path}: lower case");
        let is_doctest = library.contains(&format!("include_str!(\"../{path}\")"));
        assert!(
            is_doctest || !text.contains("```rust"),
            "{path} has Rust, and src/lib.rs does not include it"
        );
    }
}

#[test]
fn a_file_that_a_comment_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, text) in sources("src") {
        let beside = root.join(path.parent().unwrap());
        // A file's own folder, of those that have one beside the file.
        let below = root.join(path.with_extension(""));
        let homes = [
            &beside,
            &below,
            &root.join("src"),
            &root.join("src/bin/standfast"),
            root,
        ];
        let comments = text
            .lines()
            .filter(|line| line.trim_start().starts_with("//"));
        let quoted = comments.flat_map(|line| line.split('`').skip(1).step_by(2));
        for name in quoted.filter(|name| name.ends_with(".rs")) {
            assert!(
                homes.iter().any(|home| home.join(name).exists()),
                "{} names {name}: there is no such file beside it or under src",
                path.display()
            );
        }
    }
}
