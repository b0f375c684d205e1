//! Whom this process and those that it starts run as, and what they may use.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::str::FromStr;

use rustix::process::{
    Resource, Rlimit, dumpable_behavior, getegid, geteuid, getrlimit, set_dumpable_behavior,
    setrlimit,
};

use crate::os::sys::users::linux;
use crate::os::users;
use crate::parse::ParseError;

/// A user and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(pub(crate) linux::Identity);

impl Identity {
    /// The user and the group named so, by name or number: without a group the user's first one and all that it is in,
    /// without a user that group alone, for the user that this process is. `None`: neither is named.
    ///
    /// # Errors
    /// This host has none of that name; in words.
    pub fn named(user: Option<&str>, group: Option<&str>) -> io::Result<Option<Self>> {
        let gid = group.map(users::gid).transpose()?;
        let identity = match (user, gid) {
            (None, None) => return Ok(None),
            (None, Some(gid)) => linux::Identity {
                uid: None,
                gid,
                groups: vec![gid],
            },
            (Some(user), gid) => {
                let user = users::user(user)?;
                let gid = gid.unwrap_or(user.gid);
                linux::Identity {
                    uid: Some(user.uid),
                    gid,
                    groups: linux::groups_of(&user.name, gid)?,
                }
            }
        };
        Ok(Some(Self(identity)))
    }

    /// Whether this process is that already, as the successor of one that became it.
    #[must_use]
    pub fn is_this(&self) -> bool {
        let uid = self.0.uid;
        let same_user = uid.is_none_or(|uid| uid == geteuid().as_raw());
        same_user && self.0.gid == getegid().as_raw()
    }

    /// Its user's number; `None`: that of this process.
    #[must_use]
    pub fn user(&self) -> Option<u32> {
        self.0.uid
    }

    /// Its group's number.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.0.gid
    }

    /// Whether this process may become it, or have another be it.
    ///
    /// # Errors
    /// In words, that it may not.
    pub fn can_be_had(&self) -> io::Result<()> {
        if self.is_this() || geteuid().is_root() {
            return Ok(());
        }
        let uid = geteuid().as_raw();
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("only root can become another user or group, and this process is user {uid}"),
        ))
    }

    /// Gives it the file at `path`, which this process has made, so that a successor can open it. What else stands there, a
    /// link or a pipe or another's file, stays as it is.
    ///
    /// # Errors
    /// What the system says.
    pub fn give_file(&self, path: &Path) -> io::Result<()> {
        let mut options = File::options();
        // Not followed: in that user's folder a link may lead to a file that it shall never have.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = options.append(true).custom_flags(flags).open(path)?;
        let found = file.metadata()?;
        let is_ours = found.is_file() && found.nlink() == 1 && found.uid() == geteuid().as_raw();
        if self.is_this() || !is_ours {
            return Ok(());
        }
        fchown(file, self.0.uid, Some(self.0.gid))
    }

    /// Has this process, all threads of it, be that for good, without a capability left.
    ///
    /// # Errors
    /// It may not; or something is left that it is not to have.
    pub(crate) fn assume(&self) -> io::Result<()> {
        if self.is_this() {
            return Ok(());
        }
        self.can_be_had()?;
        let dumpable = dumpable_behavior()?;
        linux::become_user(&self.0)?;
        // Its own user may look at it as before (proc(5)): its successor tells by that who has copies of its sockets. That is
        // nobody where keys are loaded, not even for a moment.
        set_dumpable_behavior(dumpable)?;
        if self.0.uid.is_some_and(|uid| uid != 0) && has_capabilities()? {
            return Err(io::Error::other(
                "capabilities are left, by a securebit of who started this process",
            ));
        }
        Ok(())
    }
}

/// Whether this process has a capability, or would have one after it executes another program.
fn has_capabilities() -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
    let mut lines = status.lines();
    Ok(lines.any(|line| {
        let set = sets.iter().find_map(|set| line.strip_prefix(set));
        set.is_some_and(|set| set.trim().bytes().any(|digit| digit != b'0'))
    }))
}

/// What a process may have of one resource, at the most (setrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    resource: Resource,
    most: u64,
}

/// Those that may be named.
const RESOURCES: [(&str, Resource); 6] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("fsize", Resource::Fsize),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
];

impl ResourceLimit {
    /// For setrlimit(2): the soft limit and the hard one.
    pub(crate) fn raw(self) -> (Resource, Rlimit) {
        let most = Some(self.most);
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        (self.resource, limit)
    }

    /// Whether this process may set it for those that it starts.
    ///
    /// # Errors
    /// In words, that it is more than this process itself may have.
    pub(crate) fn can_be_had(self) -> io::Result<()> {
        let own = getrlimit(self.resource);
        let Some(hard) = own.maximum.filter(|hard| self.most > *hard) else {
            return Ok(());
        };
        // Tried for a moment: root may lack the capability, and of descriptors nobody has more than fs.nr_open.
        let more = Rlimit {
            maximum: Some(self.most),
            ..own
        };
        let tried = setrlimit(self.resource, more);
        tried
            .and_then(|()| setrlimit(self.resource, own))
            .map_err(|error| {
                let error = io::Error::from(error);
                io::Error::new(
                    error.kind(),
                    format!("a limit {self} is above what this process may have, {hard}: {error}"),
                )
            })
    }
}

impl fmt::Display for ResourceLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = RESOURCES.iter();
        let name = all.find(|(_, one)| *one == self.resource);
        write!(f, "{}={}", name.map_or("", |(name, _)| name), self.most)
    }
}

impl FromStr for ResourceLimit {
    type Err = ParseError;

    /// `NAME=N`; of what is bytes N may end in `k`, `m` or `g`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let forms =
            || ParseError::new("expected NAME=N, NAME one of as, core, cpu, fsize, nofile, nproc");
        let (name, number) = text.split_once('=').ok_or_else(forms)?;
        let mut all = RESOURCES.into_iter();
        let (_, resource) = all.find(|(one, _)| *one == name).ok_or_else(forms)?;
        let is_size = matches!(resource, Resource::As | Resource::Core | Resource::Fsize);
        let (digits, unit) = match number.as_bytes().last() {
            Some(b'k') if is_size => (&number[..number.len() - 1], 1 << 10),
            Some(b'm') if is_size => (&number[..number.len() - 1], 1 << 20),
            Some(b'g') if is_size => (&number[..number.len() - 1], 1 << 30),
            _ => (number, 1),
        };
        let what = if is_size {
            "a size in bytes, such as 64m"
        } else {
            "a whole number"
        };
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        let most = digits.parse::<u64>().ok().filter(|_| is_number);
        let most = most.and_then(|most| most.checked_mul(unit));
        let most = most.ok_or_else(|| ParseError::new(format!("{number:?} is not {what}")))?;
        if most < 3 && resource == Resource::Nofile {
            return Err(ParseError::new(
                "a program has three files from the start: nofile is at least 3",
            ));
        }
        Ok(Self { resource, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_nobody_named_is_nobody_and_root_has_its_groups() {
        assert_eq!(Identity::named(None, None).unwrap(), None);
        let root = Identity::named(Some("root"), None).unwrap().unwrap();
        assert_eq!((root.user(), root.group()), (Some(0), 0));
        assert!(root.0.groups.contains(&0));
        let other = Identity::named(Some("root"), Some("7")).unwrap().unwrap();
        assert!(
            other.0.groups.contains(&7),
            "the one that was named is one of them"
        );
        let group = Identity::named(None, Some("7")).unwrap().unwrap();
        assert_eq!((group.user(), group.0.groups), (None, vec![7]));
    }

    #[test]
    fn a_limit_that_nobody_can_have_is_told_from_one_that_can_be_had() {
        // fs.nr_open is an int.
        let [none, some] = ["nofile=4294967296", "nofile=3"];
        let can_be_had = |text: &str| text.parse::<ResourceLimit>().unwrap().can_be_had();
        let before = getrlimit(Resource::Nofile);
        let said = can_be_had(none).unwrap_err().to_string();
        assert!(
            said.starts_with("a limit nofile=4294967296 is above "),
            "{said}"
        );
        can_be_had(some).unwrap();
        assert_eq!(getrlimit(Resource::Nofile), before);
    }

    #[test]
    fn limits_are_read_by_name_and_in_their_units() {
        for (text, shown) in [
            ("nofile=64", "nofile=64"),
            ("as=512m", "as=536870912"),
            ("core=0", "core=0"),
            ("cpu=10", "cpu=10"),
        ] {
            assert_eq!(text.parse::<ResourceLimit>().unwrap().to_string(), shown);
        }
        for (text, why) in [
            ("nofile", "expected NAME=N"),
            ("files=3", "expected NAME=N"),
            ("nofile=2", "at least 3"),
            ("nofile=1k", "not a whole number"),
            ("as=", "not a size"),
            ("as=-1", "not a size"),
            ("as=+1", "not a size"),
            ("as=99999999999g", "not a size"),
            ("cpu=10s", "not a whole number"),
        ] {
            let said = text.parse::<ResourceLimit>().unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
