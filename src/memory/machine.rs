//! How much memory this process may have: the machine's, its cgroup's, or its own limit's, whichever is least.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// What bounds the memory of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemorySource {
    /// What is built in.
    Machine,
    /// A control group that it is in (cgroups(7)).
    Cgroup,
    /// `RLIMIT_AS` (getrlimit(2)).
    AddressSpace,
}

/// Bytes that this process may have, and what says so. `None`: the system does not tell.
pub(crate) fn available() -> Option<(u64, MemorySource)> {
    let address_space = getrlimit(Resource::As).current;
    [
        machine().map(|bytes| (bytes, MemorySource::Machine)),
        cgroup().map(|bytes| (bytes, MemorySource::Cgroup)),
        address_space.map(|bytes| (bytes, MemorySource::AddressSpace)),
    ]
    .into_iter()
    .flatten()
    .min_by_key(|(bytes, _)| *bytes)
}

/// proc(5): `MemTotal`.
fn machine() -> Option<u64> {
    total(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least of what the groups that this process is in allow.
fn cgroup() -> Option<u64> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let files = limit_files(&mounts, &groups);
    let limits = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    limits.filter_map(|text| limit(&text)).min()
}

/// `max`, or what version 1 has for it (as many pages as a signed number can count), is none.
fn limit(text: &str) -> Option<u64> {
    let bytes: u64 = text.trim().parse().ok()?;
    (bytes < 1 << 62).then_some(bytes)
}

/// The files that say what this process's group may have, and those of all groups that one is in (cgroups(7)).
fn limit_files(mounts: &str, groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let name = match mount.kind {
            "cgroup2" => "memory.max",
            "cgroup" if mount.options.split(',').any(|option| option == "memory") => {
                "memory.limit_in_bytes"
            }
            _ => continue,
        };
        let group = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let wanted = if mount.kind == "cgroup2" {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|one| one == "memory")
            };
            wanted.then_some(path)
        });
        let Some(group) = group else { continue };
        // What is mounted may be a part of the tree: in a container, as a rule its own.
        let below = Path::new(group)
            .strip_prefix(mount.root)
            .unwrap_or_else(|_| Path::new(""));
        let point = Path::new(mount.point);
        let ancestors = below.ancestors().map(|part| point.join(part).join(name));
        files.extend(ancestors);
    }
    files
}

/// A line of /proc/self/mountinfo.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let mut back = back.split(' ');
        Some(Self {
            root: front.next()?,
            point: front.next()?,
            kind: back.next()?,
            options: back.nth(1)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_some_memory() {
        assert_eq!(
            total("MemTotal:       24731912 kB\nMemFree: 1 kB\n"),
            Some(24_731_912 * 1024)
        );
        assert_eq!(total("nothing"), None);
        #[cfg(target_os = "linux")]
        assert!(available().is_some_and(|(bytes, _)| bytes > 1 << 20));
    }

    #[test]
    fn limits_are_looked_for_up_the_tree_in_both_versions() {
        let mounts = "\
            25 30 0:23 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro\n\
            30 25 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
            33 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            34 25 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let groups = "9:pids:/one\n4:memory:/one/two\n0::/a/b\n";
        let files: Vec<String> = limit_files(mounts, groups)
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/unified/a/b/memory.max",
                "/sys/fs/cgroup/unified/a/memory.max",
                "/sys/fs/cgroup/unified/memory.max",
                "/sys/fs/cgroup/memory/one/two/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/one/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        );
    }

    #[test]
    fn in_a_container_the_mount_is_the_group() {
        let mounts = "30 25 0:27 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let files = limit_files(mounts, "0::/docker/abc\n");
        assert_eq!(files, [Path::new("/sys/fs/cgroup/memory.max")]);
        let files = limit_files(mounts, "0::/elsewhere\n");
        assert_eq!(files, [Path::new("/sys/fs/cgroup/memory.max")]);
    }

    #[test]
    fn no_limit_is_none() {
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("536870912\n"), Some(512 << 20));
    }
}
