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
