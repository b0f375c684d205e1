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

/// The library's modules import one another without a cycle, and nobody but `lib` imports `server`.
#[test]
fn imports_have_no_cycle() {
    let files: HashMap<String, String> = sources("src")
        .into_iter()
        .filter(|(path, _)| !path.starts_with("src/bin"))
        .map(|(path, text)| (module(&path), text))
        .collect();
    let mut imports: HashMap<&str, HashSet<&str>> = HashMap::new();
    for (module, text) in &files {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let mut used = HashSet::new();
        for line in code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            for (at, found) in line.match_indices("crate::") {
                let path = &line[at + found.len()..];
                let end = path.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
                let path = &path[..end.unwrap_or(path.len())];
                // The file that has what is imported: the longest that is one.
                let named = files
                    .keys()
                    .filter(|file| path == file.as_str() || path.starts_with(&format!("{file}::")));
                used.extend(named.max_by_key(|file| file.len()).map(String::as_str));
            }
        }
        // A part of a file is part of it.
        let whole = files
            .keys()
            .find(|whole| module.starts_with(&format!("{whole}::")));
        let whole = whole.filter(|whole| !files[whole.as_str()].contains("pub(crate) mod "));
        imports
            .entry(whole.unwrap_or(module))
            .or_default()
            .extend(used);
    }
    let mut done: HashSet<&str> = HashSet::new();
    let mut left: Vec<&str> = imports
        .keys()
        .copied()
        .filter(|name| *name != "lib")
        .collect();
    while !left.is_empty() {
        let (ready, waiting): (Vec<_>, Vec<_>) = left.iter().copied().partition(|module| {
            imports[*module]
                .iter()
                .all(|used| used == module || done.contains(used) || !imports.contains_key(used))
        });
        assert!(!ready.is_empty(), "these import one another: {waiting:?}");
        done.extend(ready);
        left = waiting;
    }
    for (module, used) in &imports {
        assert!(
            *module == "lib" || !used.contains("server"),
            "{module} imports server"
        );
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
fn unsafe_stands_in_one_file() {
    for (path, text) in sources("src") {
        let allowed = path.ends_with("sys.rs");
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
