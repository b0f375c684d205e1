//! Users and groups, as people name them.

use std::ffi::CString;
use std::io;

use crate::os::sys::users::{self, User};

/// The user of that name or number.
///
/// # Errors
/// There is none, or it cannot be asked for: in words.
pub(crate) fn user(named: &str) -> io::Result<User> {
    let name = CString::new(named)?;
    let found = users::user_named(&name).map_err(|error| unasked("user", named, &error))?;
    if let Some(user) = found {
        return Ok(user);
    }
    let numbered = match named.parse() {
        Ok(uid) => users::user_numbered(uid).map_err(|error| unasked("user", named, &error))?,
        Err(_) => None,
    };
    numbered.ok_or_else(|| nobody("user", named))
}

/// The number of the user of that name; a number need not be any user's.
///
/// # Errors
/// As [`user`].
pub(crate) fn uid(named: &str) -> io::Result<u32> {
    named.parse().or_else(|_| Ok(user(named)?.uid))
}

/// The number of the group of that name; a number need not be any group's.
///
/// # Errors
/// As [`user`].
pub(crate) fn gid(named: &str) -> io::Result<u32> {
    if let Ok(gid) = named.parse() {
        return Ok(gid);
    }
    let name = CString::new(named)?;
    let found = users::group_named(&name).map_err(|error| unasked("group", named, &error))?;
    found.ok_or_else(|| nobody("group", named))
}

fn nobody(what: &str, named: &str) -> io::Error {
    let said = format!("this host has no {what} {named:?}");
    io::Error::new(io::ErrorKind::NotFound, said)
}

fn unasked(what: &str, named: &str, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot look up the {what} {named:?}: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_by_number() {
        let root = user("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(user("0").unwrap(), root);
        assert_eq!(uid("4294967294").unwrap(), 4_294_967_294);
        assert_eq!(gid("7").unwrap(), 7);
    }

    #[test]
    fn who_does_not_exist_is_named() {
        let said = user("nobody-of-that-name").unwrap_err().to_string();
        assert_eq!(said, "this host has no user \"nobody-of-that-name\"");
        let said = gid("no-such-group").unwrap_err().to_string();
        assert_eq!(said, "this host has no group \"no-such-group\"");
        assert!(user("4294967294").is_err(), "no groups are known of it");
    }
}
