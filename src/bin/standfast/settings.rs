//! The settings of a server: flags before variables of the environment before the file of `--config`; for each listener
//! its own, and where each came from.
//!
//! A file says nothing that a command line could not: of all layers a command line is made for each listener, and clap
//! reads that as any other. So there is one table of what there is, and one meaning.

mod file;
mod keys;
mod origin;
mod sources;

use std::env;
use std::ffi::OsString;

use clap::{Arg, ArgMatches, Parser, ValueEnum};

use crate::args::{Args, Command, ServeArgs, ServiceName};
use crate::settings::file::{Entry, File, Table};
use crate::settings::keys::{Keys, Place, service_of_operands};
pub(crate) use crate::settings::origin::Origin;
pub(crate) use crate::settings::sources::Sources;
use crate::{Failure, in_one_line};

/// What every variable begins with.
const PREFIX: &str = "STANDFAST_";

/// What it goes on with where a variable is no setting: one process tells another by the first five; Kubernetes sets the
/// others in every container where a Service is called standfast.
const NO_SETTING: [&str; 7] = [
    "SUCCESSOR",
    "BETWEEN",
    "KEEPER",
    "CRASHED",
    "FAULT",
    "SERVICE_",
    "PORT",
];

/// How much an unknown variable looks like a known one if it is a slip, and not somebody else's affair.
const ALIKE: f64 = 0.9;

/// What a server is asked to be.
#[derive(Debug)]
pub(crate) struct Settings {
    /// What belongs to the process; what this says of listeners does not count.
    pub(crate) whole: ListenerSettings,
    /// At least one.
    pub(crate) listeners: Vec<ListenerSettings>,
}

/// What one listener, at one or several addresses, is asked to be.
#[derive(Debug)]
pub(crate) struct ListenerSettings {
    pub(crate) args: ServeArgs,
    pub(crate) sources: Sources,
}

/// What is said of one flag in one place.
#[derive(Clone, Debug)]
struct Said<'a> {
    arg: &'a Arg,
    /// Its name there.
    key: String,
    values: Vec<OsString>,
    origin: Origin,
    /// In the table of one listener.
    is_own: bool,
}

impl Settings {
    /// Whether what clients send goes to stdout.
    pub(crate) fn prints(&self) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|one| one.args.service.service == ServiceName::Print)
    }

    /// What `typed`, read from `matches`, and all that stands below it come to.
    ///
    /// # Errors
    /// In one line, with where it stands: what there is not, or what may not be; a file that cannot be read.
    pub(crate) fn of(typed: &ServeArgs, matches: &ArgMatches) -> Result<Self, Failure> {
        let keys = Keys::new();
        let flags = keys.typed(matches).map(|(arg, values)| Said {
            arg,
            key: arg.get_long().unwrap_or_default().to_owned(),
            values,
            origin: Origin::Flag,
            is_own: false,
        });
        let flags: Vec<_> = flags.collect();
        let variables = variables(&keys)?;
        let above = combined(&keys, [&*flags, &*variables]);
        let above = ListenerSettings::read(&above, None)?;
        let path = above.args.process.config.as_deref();
        let file = path.map(File::read).transpose()?;
        let (top, tables) = file.map_or_else(Default::default, |file| (file.top, file.listen));
        let top = layer(&keys, &top, Place::Top)?;
        let layers = Layers {
            keys: &keys,
            service: typed.service.flags().collect(),
            layers: [flags, variables, top],
        };
        layers.settings(&tables)
    }
}

/// What holds for all listeners.
struct Layers<'a> {
    keys: &'a Keys,
    /// Which flags are one service's alone.
    service: Vec<(&'static str, ServiceName)>,
    /// Flags, variables, the top of the file.
    layers: [Vec<Said<'a>>; 3],
}

impl Layers<'_> {
    fn settings(&self, tables: &[Table]) -> Result<Settings, Failure> {
        let [flags, variables, top] = &self.layers;
        if tables.len() > 1
            && let Some(said) = flags
                .iter()
                .chain(variables)
                .find(|it| Keys::is_one_listeners(it.arg))
        {
            let what = match &said.origin {
                Origin::Variable(name) => name.clone(),
                _ => said.arg.to_string(),
            };
            return Err(Failure::usage(format!(
                "{what}: of which listener? the file has {} of them, and is the place to say it",
                tables.len()
            )));
        }
        let own = tables.iter().map(|table| {
            let said = layer(self.keys, &table.entries, Place::Anywhere)?;
            Ok((said, Some(table.origin.clone())))
        });
        let mut own = own.collect::<Result<Vec<_>, Failure>>()?;
        if own.is_empty() {
            own.push((Vec::new(), None));
        }
        let all = own.into_iter().map(|(own, origin)| {
            let said = combined(self.keys, [flags, variables, &*own, top]);
            let service = service(&said);
            (said, service, origin)
        });
        let mut all: Vec<_> = all.collect();
        let services: Vec<_> = all.iter().map(|(_, service, _)| *service).collect();
        for (said, service, _) in &mut all {
            // What holds for all is for those that it is something to; it is refused where that is nobody.
            said.retain(|it| {
                let is_for = |one: &Option<ServiceName>| self.is_for(it, *one);
                it.is_own || is_for(service) || !services.iter().any(is_for)
            });
        }
        let listeners = all.into_iter().map(|(said, _, origin)| {
            let has_address = said.iter().any(|it| Keys::is_where(it.arg));
            match &origin {
                Some(origin) if !has_address => Err(Failure::usage(format!(
                    "{origin}: this [[listen]] has no address"
                ))),
                _ => ListenerSettings::read(&said, origin),
            }
        });
        let listeners = listeners.collect::<Result<_, _>>()?;
        let mut whole = combined(self.keys, [flags, variables, top]);
        whole.retain(|said| self.keys.is_of_process(said.arg));
        Ok(Settings {
            whole: ListenerSettings::read(&whole, None)?,
            listeners,
        })
    }

    /// Whether `said` is something to that service. One that is none is told of later.
    fn is_for(&self, said: &Said<'_>, service: Option<ServiceName>) -> bool {
        let long = said.arg.get_long().unwrap_or_default();
        let mut flags = self.service.iter();
        let flag = flags.find(|(flag, _)| flag.strip_prefix("--") == Some(long));
        let of = flag.map(|(_, of)| *of);
        let of = of.or_else(|| service_of_operands(&said.key));
        of.is_none() || service.is_none() || of == service
    }
}

impl ListenerSettings {
    /// As clap reads it.
    fn read(said: &[Said<'_>], origin: Option<Origin>) -> Result<Self, Failure> {
        let sources = Sources::new(said, origin);
        match Args::try_parse_from(words(said)).map(|args| args.command) {
            Ok(Command::Serve(args)) => Ok(Self { args, sources }),
            Ok(_) => Err(Failure::usage("serve is no command")),
            Err(error) => Err(sources.locate(&Failure::usage(in_one_line(&error)))),
        }
    }
}

/// The command line that says all of it.
fn words(said: &[Said<'_>]) -> Vec<OsString> {
    let mut words = vec!["standfast".into(), "serve".into()];
    let (mut service, mut operands) = (None, Vec::new());
    for one in said {
        match one.arg.get_id().as_str() {
            "service" => service = one.values.first().cloned(),
            "operands" => operands.clone_from(&one.values),
            _ => words.extend(Keys::words(one.arg, &one.values)),
        }
    }
    if service.is_some() || !operands.is_empty() {
        words.push("--".into());
        words.push(service.unwrap_or_else(|| ServiceName::Echo.as_str().into()));
        words.append(&mut operands);
    }
    words
}

/// Which service it says. `None`: there is none of that name.
fn service(said: &[Said<'_>]) -> Option<ServiceName> {
    let named = said.iter().find(|it| it.arg.get_id() == "service");
    let named = named.and_then(|it| it.values.first());
    named.map_or(Some(ServiceName::Echo), |name| {
        ServiceName::from_str(name.to_str()?, false).ok()
    })
}

/// What is left of `layers`, the highest first: of what two of them say the higher one's.
fn combined<'a: 'b, 'b, const N: usize>(keys: &Keys, layers: [&'b [Said<'a>]; N]) -> Vec<Said<'a>> {
    let mut all: Vec<Said<'a>> = Vec::new();
    for layer in layers {
        let left = layer.iter();
        let left = left.filter(|it| !all.iter().any(|above| keys.hides(above.arg, it.arg)));
        let left: Vec<_> = left.cloned().collect();
        all.extend(left);
    }
    all
}

/// A part of the file.
fn layer<'a>(keys: &'a Keys, entries: &[Entry], place: Place) -> Result<Vec<Said<'a>>, Failure> {
    let each = entries.iter().map(|entry| {
        let (key, origin) = (&entry.key, &entry.origin);
        let refused = |why: String| Failure::usage(format!("{origin}: {why}"));
        let arg = keys.find(key).filter(|arg| Keys::is_in_file(arg));
        let Some(arg) = arg else {
            let nearest = keys.nearest(key).map_or_else(String::new, |(name, _)| name);
            return Err(refused(format!(
                "there is no key {key}; the nearest one is {nearest}"
            )));
        };
        if place == Place::Anywhere && keys.place(arg) == Place::Top {
            return Err(refused(format!(
                "{key} is the whole server's: it stands above all [[listen]]"
            )));
        }
        let values = keys::values(arg, &entry.value);
        let values = values.map_err(|why| refused(format!("{key}: {why}")))?;
        if Keys::is_one_listeners(arg) && values.iter().all(|value| value.is_empty()) {
            return Err(refused(format!("{key}: there is nothing in it")));
        }
        if Keys::is_for_somebody(arg) && values.is_empty() {
            return Err(refused(format!(
                "{key}: there is no range in it; everybody is \"0.0.0.0/0\" and \"::/0\""
            )));
        }
        let is_own = place == Place::Anywhere;
        said(arg, key, values, origin.clone(), is_own)
    });
    each.collect()
}

/// The environment.
fn variables(keys: &Keys) -> Result<Vec<Said<'_>>, Failure> {
    let mut found: Vec<_> = env::vars_os()
        .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value)))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    found.sort();
    let mut all = Vec::new();
    for (variable, value) in found {
        let name = variable.strip_prefix(PREFIX).unwrap_or_default();
        if name.is_empty() || NO_SETTING.iter().any(|none| name.starts_with(none)) {
            continue;
        }
        let key = name.to_lowercase().replace('_', "-");
        let Some(arg) = keys.find(&key) else {
            if let Some((nearest, likeness)) = keys.nearest(&key)
                && likeness >= ALIKE
            {
                let nearest = nearest.to_uppercase().replace('-', "_");
                return Err(Failure::usage(format!(
                    "there is no variable {variable}; the nearest one is {PREFIX}{nearest}"
                )));
            }
            continue;
        };
        let refused = |why: &str| Failure::usage(format!("{variable}: {why}"));
        let value = value.to_str().ok_or_else(|| refused("not text (UTF-8)"))?;
        let values = keys::values(arg, &keys::of_variable(arg, value));
        let values = values.map_err(|why| refused(&why))?;
        all.push(said(arg, &key, values, Origin::Variable(variable), false)?);
    }
    Ok(all)
}

/// One setting, if clap takes it: by itself, so that it is known which one it does not take.
fn said<'a>(
    arg: &'a Arg,
    key: &str,
    values: Vec<OsString>,
    origin: Origin,
    is_own: bool,
) -> Result<Said<'a>, Failure> {
    let said = Said {
        arg,
        key: key.to_owned(),
        values,
        origin,
        is_own,
    };
    match Args::try_parse_from(words(std::slice::from_ref(&said))) {
        Ok(_) => Ok(said),
        Err(error) => {
            let (origin, line) = (&said.origin, in_one_line(&error));
            // Not by its flag alone, where it is called otherwise.
            let named = match line.contains(key) {
                true => line,
                false => format!("{key}: {line}"),
            };
            Err(Failure::usage(format!("{origin}: {named}")))
        }
    }
}
