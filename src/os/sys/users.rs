//! The users and groups of this host (passwd(5), group(5), or whatever nsswitch.conf(5) names), and being one of them.

use std::ffi::{CStr, CString};
use std::io;
use std::ptr;

/// What a user is, of getpwnam(3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: CString,
    pub(crate) uid: u32,
    /// Its first group.
    pub(crate) gid: u32,
}

/// More than that is no entry of a person's.
const ENTRY_MOST: usize = 1 << 20;

/// Asks `ask` for an entry, with a buffer that is larger each time it says `ERANGE`. `None`: there is none.
fn entry<T>(
    mut ask: impl FnMut(&mut [libc::c_char]) -> Result<Option<T>, i32>,
) -> io::Result<Option<T>> {
    let mut buffer = vec![0; 1024];
    loop {
        match ask(&mut buffer) {
            Ok(found) => return Ok(found),
            Err(libc::ERANGE) if buffer.len() < ENTRY_MOST => buffer.resize(buffer.len() * 4, 0),
            // What getpwnam(3) and getgrnam(3) may say where there is none.
            Err(libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM) => return Ok(None),
            Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The user of this name.
pub(crate) fn user_named(name: &CStr) -> io::Result<Option<User>> {
    user(|entry, buffer, found| {
        // SAFETY: the name is a string, the buffer as long as said, and both results are this call's alone to write.
        unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                found,
            )
        }
    })
}

/// The user of this number.
pub(crate) fn user_numbered(uid: u32) -> io::Result<Option<User>> {
    user(|entry, buffer, found| {
        // SAFETY: the buffer is as long as said, and both results are this call's alone to write.
        unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr(), buffer.len(), found) }
    })
}

fn user(
    mut call: impl FnMut(*mut libc::passwd, &mut [libc::c_char], *mut *mut libc::passwd) -> i32,
) -> io::Result<Option<User>> {
    entry(|buffer| {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::zeroed();
        let mut found = ptr::null_mut();
        match call(entry.as_mut_ptr(), buffer, &raw mut found) {
            0 if found.is_null() => Ok(None),
            0 => {
                // SAFETY: the call has filled it in, as it says by `found`.
                let entry = unsafe { entry.assume_init() };
                // SAFETY: its name is a string in `buffer`, which is still there.
                let name = unsafe { CStr::from_ptr(entry.pw_name) };
                Ok(Some(User {
                    name: name.to_owned(),
                    uid: entry.pw_uid,
                    gid: entry.pw_gid,
                }))
            }
            errno => Err(errno),
        }
    })
}

/// The number of the group of this name.
pub(crate) fn group_named(name: &CStr) -> io::Result<Option<u32>> {
    entry(|buffer| {
        let mut entry = std::mem::MaybeUninit::<libc::group>::zeroed();
        let mut found = ptr::null_mut();
        // SAFETY: the name is a string, the buffer as long as said, and both results are this call's alone to write.
        let errno = unsafe {
            let (entry, bytes) = (entry.as_mut_ptr(), buffer.as_mut_ptr());
            libc::getgrnam_r(name.as_ptr(), entry, bytes, buffer.len(), &raw mut found)
        };
        match errno {
            0 if found.is_null() => Ok(None),
            // SAFETY: the call has filled it in, as it says by `found`.
            0 => Ok(Some(unsafe { entry.assume_init() }.gr_gid)),
            errno => Err(errno),
        }
    })
}

/// What Linux has, and the same calls elsewhere have not: of the whole process, of all of its threads.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub(crate) mod linux {
    use std::ffi::CStr;
    use std::io;
    use std::process::Command;

    use rustix::process::{Resource, Rlimit, setrlimit};
    use rustix::thread::set_no_new_privs;

    /// The groups that a user is in, `gid` included (getgrouplist(3)).
    pub(crate) fn groups_of(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
        const MOST: usize = 1 << 16;
        let mut groups = vec![0; 64];
        loop {
            let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
            // SAFETY: the name is a string, and `count` says how many groups there is room for.
            let answer = unsafe {
                libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count)
            };
            if answer != -1 {
                groups.truncate(usize::try_from(count).unwrap_or(0));
                return Ok(groups);
            }
            if groups.len() >= MOST {
                return Err(io::Error::other("the user is in too many groups"));
            }
            groups.resize(groups.len() * 4, 0);
        }
    }

    fn done(answer: libc::c_int) -> io::Result<()> {
        match answer {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whom a process runs as.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Identity {
        /// `None`: it stays the user that it is.
        pub(crate) uid: Option<u32>,
        pub(crate) gid: u32,
        /// All groups.
        pub(crate) groups: Vec<u32>,
    }

    /// Has this process, each thread of it, be that: the groups, and then the user, real, effective and saved. From user 0
    /// that takes its capabilities away (capabilities(7)).
    ///
    /// # Errors
    /// `EPERM` without the right to.
    pub(crate) fn become_user(identity: &Identity) -> io::Result<()> {
        let Identity { uid, gid, groups } = identity;
        let (uid, gid) = (*uid, *gid);
        // SAFETY: the list is as long as said, and is only read.
        done(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
        // SAFETY: numbers alone.
        done(unsafe { libc::setresgid(gid, gid, gid) })?;
        let Some(uid) = uid else { return Ok(()) };
        // SAFETY: numbers alone.
        done(unsafe { libc::setresuid(uid, uid, uid) })
    }

    /// What a program may not do that is about to be started.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Confinement {
        /// Limits, each of a resource of setrlimit(2), soft and hard.
        pub(crate) limits: Vec<(Resource, Rlimit)>,
        /// Whom it runs as.
        pub(crate) identity: Option<Identity>,
        /// Whether it gains no rights by what it executes (`PR_SET_NO_NEW_PRIVS`).
        pub(crate) no_new_privs: bool,
    }

    /// Has `command` be confined before its program is executed.
    pub(crate) fn confine(command: &mut Command, confinement: Confinement) {
        use std::os::unix::process::CommandExt;
        let confine = move || {
            for &(resource, limit) in &confinement.limits {
                setrlimit(resource, limit)?;
            }
            if let Some(identity) = &confinement.identity {
                become_user(identity)?;
            }
            if confinement.no_new_privs {
                set_no_new_privs(true)?;
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec, makes system calls, and neither allocates nor locks: its process has
        // one thread, so the C library has nothing to have others do.
        let _ = unsafe { command.pre_exec(confine) };
    }
}
