//! Whose a Unix socket is, as people write it behind its path.

use std::fmt;

use crate::parse::ParseError;

/// Who may connect to a Unix socket: its path's mode, owner and group, set before anybody can connect. What is not said is as
/// the system has it: this process's user and group, and 777 less what its umask takes away (unix(7): who may write may
/// connect).
///
/// Written behind the path: `unix:/run/x.sock,mode=660,group=www-data`. A comma of the path stands there as it is, or as
/// `\,` where what follows would read as one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings, given with `..Ownership::default()`"
)]
pub struct Ownership {
    /// Who may do what, of `0o777`.
    pub mode: Option<u32>,
    /// A user's name or number.
    pub owner: Option<String>,
    /// A group's name or number.
    pub group: Option<String>,
}

/// The names of what can be said.
const KEYS: [&str; 3] = ["mode", "owner", "group"];

impl Ownership {
    /// The path that `text` begins with, and what is said behind it.
    pub(super) fn behind(text: &str) -> Result<(String, Self), ParseError> {
        let mut ownership = Self::default();
        let mut path = text;
        while let Some((before, key, value)) = last(path) {
            ownership.set(key, value)?;
            path = before;
        }
        Ok((path.replace("\\,", ","), ownership))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ParseError> {
        let named = |place: &mut Option<String>| {
            if value.is_empty() {
                return Err(ParseError::new(format!("{key}= needs a name or a number")));
            }
            once(key, place, value.to_owned())
        };
        match key {
            "mode" => once(key, &mut self.mode, mode(value)?),
            "owner" => named(&mut self.owner),
            "group" => named(&mut self.group),
            _ => Err(ParseError::new(format!(
                "a Unix socket has no {key:?}: it has mode, owner and group; a comma of the path is \\,"
            ))),
        }
    }

    /// `path` as it is to be written before this.
    pub(super) fn escaped(path: &str) -> String {
        if last(path).is_some() || path.contains("\\,") {
            path.replace(',', "\\,")
        } else {
            path.to_owned()
        }
    }
}

/// What stands behind the last comma, if it reads as one of these: what is before it, the key and the value.
fn last(text: &str) -> Option<(&str, &str, &str)> {
    let (before, said) = text.rsplit_once(',')?;
    let (key, value) = said.split_once('=')?;
    let is_key =
        KEYS.contains(&key) || !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase());
    // With a slash the path goes on.
    let goes_on = value.contains('/') || before.ends_with('\\');
    (is_key && !goes_on).then_some((before, key, value))
}

fn once<T>(key: &str, place: &mut Option<T>, value: T) -> Result<(), ParseError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(ParseError::new(format!("{key}= is said twice"))),
    }
}

fn mode(text: &str) -> Result<u32, ParseError> {
    let wrong = || {
        ParseError::new(format!(
            "{text:?} is not a mode: three octal digits, as 660"
        ))
    };
    let digits = match text.len() {
        4 => text.strip_prefix('0').unwrap_or(text),
        _ => text,
    };
    if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    u32::from_str_radix(digits, 8).map_err(|_| wrong())
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mode) = self.mode {
            write!(f, ",mode={mode:03o}")?;
        }
        for (key, name) in [("owner", &self.owner), ("group", &self.group)] {
            if let Some(name) = name {
                write!(f, ",{key}={name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, Ownership) {
        Ownership::behind(text).unwrap()
    }

    #[test]
    fn what_stands_behind_a_path_is_read_and_written() {
        assert_eq!(read("/x,mode=000").1.mode, Some(0));
        let (path, ownership) = read("/x,mode=660,owner=7,group=www-data");
        let all = Ownership {
            mode: Some(0o660),
            owner: Some("7".to_owned()),
            group: Some("www-data".to_owned()),
        };
        assert_eq!((&*path, &ownership), ("/x", &all));
        assert_eq!(read(&format!("/x{all}")), ("/x".to_owned(), all));
        assert_eq!(
            read("/x,group=0,mode=0007").1.to_string(),
            ",mode=007,group=0"
        );
    }

    #[test]
    fn a_path_may_have_commas() {
        for path in ["/a,b", "/a,b,", "/a,=b", "/a,B=c", ",", "/a,mode=660/x=1"] {
            assert_eq!(
                read(path),
                (path.to_owned(), Ownership::default()),
                "{path}"
            );
            assert_eq!(read(&format!("{path},mode=600")).0, path);
        }
        for path in ["/a,mode=660", "/a,b=c", "/a,b,c=,mode=", "/a\\,b"] {
            let written = Ownership::escaped(path);
            assert_eq!(read(&written).1, Ownership::default(), "{written}");
        }
        assert_eq!(read("/a\\,mode=660").0, "/a,mode=660");
        assert_eq!(read("/a\\,mode=660,mode=600").0, "/a,mode=660");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, why) in [
            ("/x,mode=999", "not a mode"),
            ("/x,mode=", "not a mode"),
            ("/x,mode=1777", "not a mode"),
            ("/x,mode=66", "not a mode"),
            ("/x,mode=+60", "not a mode"),
            ("/x,mode=u=rw", "not a mode"),
            ("/x,group=", "needs a name"),
            ("/x,mode=600,mode=660", "said twice"),
            ("/x,mod=660", "has no \"mod\""),
            ("/x,mode=660,user=me", "has no \"user\""),
        ] {
            let error = Ownership::behind(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
