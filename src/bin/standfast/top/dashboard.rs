//! What is shown: what the server told, and what was made of it by keys.

use std::collections::HashMap;
use std::time::Duration;

use ratatui::termion::event::Key as Pressed;
use standfast::CloseReason;
use standfast::inspect::{ConnectionInfo, EndedInfo, Status};

use crate::top::columns::{self, Connection, Ended, Past};
use crate::top::history::{History, Serves};
use crate::top::table::{Column, Grid, Key, Kind, Sort, Table};
use crate::top::view::View;
use crate::top::words::Weight;

/// How many of those that ended are kept, those that former processes told of included; the page has as many.
const ENDED_MOST: usize = 100;

/// Longer than that an answer is not waited for without a word.
const LONG: Duration = Duration::from_secs(3);

/// How long a message stands.
const MESSAGE: Duration = Duration::from_secs(5);

/// A filter is no longer than that.
const FILTER_MOST: usize = 200;

/// What is chosen in a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    pub(super) sort: Option<Sort>,
    pub(super) filter: String,
    /// The row that the keys are about, wherever it stands by now.
    pub(super) chosen: Option<Key>,
    /// Where it stood.
    at: usize,
    /// The first row that is shown.
    pub(super) from: usize,
    /// How many columns behind the first are left out.
    pub(super) shift: usize,
    /// How wide the columns have been.
    pub(super) widths: Vec<usize>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Kill(u64),
    Suspend,
    Redraw,
}

/// Something that is said for a while.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) text: String,
    pub(super) weight: Weight,
    until: Duration,
}

#[derive(Debug)]
pub(super) struct Dashboard {
    pub(super) status: Status,
    pub(super) history: History,
    connections: Vec<Connection>,
    /// They have been told.
    pub(super) is_listed: bool,
    /// The last first, and when they ended by our clock.
    ended: Vec<(EndedInfo, Duration)>,
    ended_shown: Vec<Ended>,
    takeovers: Vec<Past>,
    pub(super) view: View,
    choices: [Choice; View::ALL.len()],
    /// The filter is being typed.
    pub(super) is_typing: bool,
    /// Whether to kill this one, who that is, is asked.
    pub(super) asked: Option<(u64, String)>,
    /// All of this row is shown.
    pub(super) details: Option<Key>,
    pub(super) shows_help: bool,
    /// What is told is left out for now.
    pub(super) is_paused: bool,
    message: Option<Message>,
    /// Why the server does not answer, and since when.
    silence: Option<(String, Duration)>,
    /// Since when the server has been asked for something.
    asked_at: Option<Duration>,
    /// The rows of the view, as they stand. `None`: they are to be arranged.
    arranged: Option<Vec<usize>>,
    /// Rows that the table has room for.
    pub(super) room: usize,
}

impl Dashboard {
    /// `now` is a time of our clock, `today` one of the world's, in seconds since 1970; so everywhere.
    pub(super) fn new(status: Status, now: Duration, today: u64) -> Self {
        let choice = |view: &View| Choice {
            sort: view.sort(),
            ..Choice::default()
        };
        let mut dashboard = Self {
            status: status.clone(),
            history: History::default(),
            connections: Vec::new(),
            is_listed: false,
            ended: Vec::new(),
            ended_shown: Vec::new(),
            takeovers: Vec::new(),
            view: View::Connections,
            choices: View::ALL.each_ref().map(choice),
            is_typing: false,
            asked: None,
            details: None,
            shows_help: false,
            is_paused: false,
            message: None,
            silence: None,
            asked_at: None,
            arranged: None,
            room: 0,
        };
        dashboard.told(status, Serves::Still, now, today);
        dashboard
    }

    /// Whether it is worth asking for the connections.
    pub(super) fn wants_connections(&self) -> bool {
        self.view == View::Connections && !self.is_paused
    }

    /// The server is being asked.
    pub(super) fn asking(&mut self, now: Duration) {
        self.asked_at = Some(now);
    }

    /// That is over, whatever came of it.
    pub(super) fn heard(&mut self) {
        self.asked_at = None;
    }

    /// For how long the server has been waited for, if that is long, and why.
    pub(super) fn waits(&self, now: Duration) -> Option<(Duration, &str)> {
        let failed = self.silence.as_ref();
        let failed = failed.map(|(why, since)| (now.saturating_sub(*since), why.as_str()));
        let asked = self.asked_at.map(|since| now.saturating_sub(since));
        let asked = asked.filter(|time| *time >= LONG);
        failed.or_else(|| asked.map(|time| (time, "it was asked, and does not answer")))
    }

    /// The server answered.
    pub(super) fn told(&mut self, status: Status, serves: Serves, now: Duration, today: u64) {
        self.silence = None;
        self.history.remember(&status, serves);
        if serves == Serves::Other {
            self.ended.clear();
            self.connections.clear();
            self.is_listed = false;
            self.asked = None;
            self.details = None;
            self.say("another server, started afresh", Weight::Warn, now);
        }
        if self.is_paused {
            return;
        }
        if serves == Serves::Successor {
            let text = format!("pid {} took over from {}", status.pid, self.status.pid);
            self.say(&text, Weight::Good, now);
        }
        self.remember_ended(&status.ended, now);
        let takeovers = status.takeovers.recent.iter().rev();
        let past = takeovers.map(|info| Past {
            info: info.clone(),
            ago: Duration::from_secs(today.saturating_sub(info.at)),
        });
        self.takeovers = past.collect();
        self.status = status;
        self.arranged = None;
    }

    fn remember_ended(&mut self, told: &[EndedInfo], now: Duration) {
        let known: HashMap<u64, Duration> =
            self.ended.iter().map(|(end, at)| (end.id, *at)).collect();
        let when = |end: &EndedInfo| match known.get(&end.id) {
            Some(at) => *at,
            None => now.saturating_sub(end.ago),
        };
        let mut ended: Vec<_> = told.iter().map(|end| (end.clone(), when(end))).collect();
        let is_told = |id| told.iter().any(|end| end.id == id);
        let former = std::mem::take(&mut self.ended).into_iter();
        ended.extend(former.filter(|(end, _)| !is_told(end.id)));
        ended.truncate(ENDED_MOST);
        let shown = ended.iter().map(|(info, at)| Ended {
            info: info.clone(),
            ago: now.saturating_sub(*at),
        });
        self.ended_shown = shown.collect();
        self.ended = ended;
    }

    /// These are the connections.
    pub(super) fn listed(&mut self, connections: Vec<ConnectionInfo>) {
        if self.is_paused {
            return;
        }
        let former: HashMap<u64, &ConnectionInfo> = self
            .connections
            .iter()
            .map(|former| (former.info.id, &former.info))
            .collect();
        let connections = connections
            .into_iter()
            .map(|info| {
                let former = former.get(&info.id).copied();
                Connection::new(info, former)
            })
            .collect();
        self.connections = connections;
        self.is_listed = true;
        self.arranged = None;
    }

    /// The server does not answer; why.
    pub(super) fn unanswered(&mut self, line: String, now: Duration) {
        let since = self.silence.take().map_or(now, |(_, since)| since);
        self.silence = Some((line, since));
        self.asked = None;
    }

    /// What came of an order to kill.
    pub(super) fn killed(&mut self, id: u64, outcome: Result<(), String>, now: Duration) {
        match outcome {
            Ok(()) => self.say(&format!("killed {id}"), Weight::Good, now),
            Err(why) => self.say(&format!("{id} is not killed: {why}"), Weight::Bad, now),
        }
    }

    fn say(&mut self, text: &str, weight: Weight, now: Duration) {
        self.message = Some(Message {
            text: text.to_owned(),
            weight,
            until: now + MESSAGE,
        });
    }

    /// What is to be said for now.
    pub(super) fn message(&self, now: Duration) -> Option<&Message> {
        self.message.as_ref().filter(|message| now < message.until)
    }

    /// A view, as a table.
    pub(super) fn table(&self, view: View) -> Box<dyn Table + '_> {
        fn grid<'a, T>(
            columns: &'a [Column<T>],
            rows: &'a [T],
            key: fn(&T) -> Key,
        ) -> Box<dyn Table + 'a> {
            Box::new(Grid { columns, rows, key })
        }
        let status = &self.status;
        match view {
            View::Connections => {
                let key = columns::key_of_connection;
                grid(columns::CONNECTIONS, &self.connections, key)
            }
            View::Ended => grid(columns::ENDED, &self.ended_shown, columns::key_of_ended),
            View::Listeners => {
                let key = columns::key_of_listener;
                grid(columns::LISTENERS, &status.listeners, key)
            }
            View::Reasons => {
                grid::<(CloseReason, u64)>(columns::REASONS, &status.closed, columns::key_of_reason)
            }
            View::Upstreams => {
                let key = columns::key_of_upstream;
                grid(columns::UPSTREAMS, &status.upstreams, key)
            }
            View::Takeovers => {
                let key = columns::key_of_takeover;
                grid(columns::TAKEOVERS, &self.takeovers, key)
            }
        }
    }

    /// How many rows a view has; of the connections, which are not always asked for, what the status says.
    pub(super) fn count(&self, view: View) -> usize {
        match view {
            View::Connections => self.status.open,
            view => self.table(view).rows(),
        }
    }

    pub(super) fn choice(&self) -> &Choice {
        &self.choices[self.view as usize]
    }

    pub(super) fn choice_mut(&mut self) -> &mut Choice {
        &mut self.choices[self.view as usize]
    }

    /// The rows of the view as they stand, which of them is chosen, and from which on they are shown.
    pub(super) fn arranged(&mut self) -> (Vec<usize>, Option<usize>) {
        let rows = match self.arranged.take() {
            Some(rows) => rows,
            None => {
                let table = self.table(self.view);
                table.arranged(self.choice().sort, &self.choice().filter)
            }
        };
        let chosen = self.choice().chosen.clone();
        let mut at = chosen.as_ref().and_then(|chosen| {
            let table = self.table(self.view);
            let is_chosen = |row: &usize| table.key(*row).as_ref() == Some(chosen);
            rows.iter().position(is_chosen)
        });
        if chosen.is_some() && at.is_none() && !rows.is_empty() && self.details.is_none() {
            // It is gone: the one that stands in its place.
            at = Some(self.choice().at.min(rows.len() - 1));
        }
        let key = at.and_then(|at| self.table(self.view).key(*rows.get(at)?));
        let (room, count) = (self.room.max(1), rows.len());
        let is_shown_whole = self.details.is_some();
        let choice = self.choice_mut();
        if let Some(at) = at {
            choice.at = at;
            choice.chosen = key;
            choice.from = choice.from.clamp((at + 1).saturating_sub(room), at);
        } else if !is_shown_whole {
            choice.chosen = None;
        }
        choice.from = choice.from.min(count.saturating_sub(room));
        self.arranged = Some(rows.clone());
        (rows, at)
    }

    /// What stands in a line each of the row that is shown whole.
    pub(super) fn details_of(&self, key: &Key) -> Vec<(&'static str, String)> {
        let status = &self.status;
        let ended = |id: u64| {
            let mut ended = self.ended_shown.iter();
            ended.find(|end| end.info.id == id).map(columns::of_ended)
        };
        match (self.view, key) {
            (View::Connections, Key::Number(id)) => {
                let mut connections = self.connections.iter();
                let connection = connections.find(|row| row.info.id == *id);
                connection
                    .map(columns::of_connection)
                    .or_else(|| ended(*id))
                    .unwrap_or_else(|| vec![("id", id.to_string()), ("ended", "yes".to_owned())])
            }
            (View::Ended, Key::Number(id)) => ended(*id).unwrap_or_default(),
            (View::Listeners, key) => {
                let mut listeners = status.listeners.iter();
                let listener = listeners.find(|row| columns::key_of_listener(row) == *key);
                listener.map(columns::of_listener).unwrap_or_default()
            }
            (view, key) => {
                let table = self.table(view);
                let row = (0..table.rows()).find(|row| table.key(*row).as_ref() == Some(key));
                let heads = table.heads();
                let cells = row.into_iter().flat_map(|row| {
                    let cells = heads.iter().enumerate();
                    cells.map(move |(at, (title, _))| (*title, row, at))
                });
                let cells = cells.map(|(title, row, at)| (title, table.cell(row, at).0));
                cells.collect()
            }
        }
    }

    /// What a key does.
    pub(super) fn press(&mut self, key: Pressed, now: Duration) -> Option<Wish> {
        match key {
            Pressed::Ctrl('c') => return Some(Wish::Quit),
            Pressed::Ctrl('z') => return Some(Wish::Suspend),
            Pressed::Ctrl('l') => return Some(Wish::Redraw),
            _ => {}
        }
        if let Some((id, _)) = self.asked {
            return self.answer(id, key, now);
        }
        if self.is_typing {
            self.type_on(key);
            return None;
        }
        if self.shows_help {
            self.shows_help = false;
            return (key == Pressed::Char('q')).then_some(Wish::Quit);
        }
        match key {
            Pressed::Char('q') => return Some(Wish::Quit),
            Pressed::Char('?' | 'h') | Pressed::F(1) => self.shows_help = true,
            Pressed::Char('/') => self.is_typing = true,
            Pressed::Char('k') => self.ask(now),
            Pressed::Char(' ') => self.is_paused = !self.is_paused,
            Pressed::Char('\n') => {
                self.details = match self.details {
                    Some(_) => None,
                    None => self.choice().chosen.clone(),
                };
                if self.choice().chosen.is_none() {
                    self.say("choose one by the arrow keys first", Weight::Warn, now);
                }
            }
            Pressed::Esc => self.back(),
            Pressed::Char('\t') => self.look_at(self.view.further(1)),
            Pressed::BackTab => self.look_at(self.view.further(View::ALL.len() - 1)),
            Pressed::Char(digit @ '1'..='6') => {
                let at = usize::try_from(u32::from(digit) - u32::from('1')).unwrap_or(0);
                self.look_at(View::Connections.further(at));
            }
            Pressed::Char('s' | '>') => self.sort_by(|at, columns| (at + 1) % columns),
            Pressed::Char('<') => self.sort_by(|at, columns| (at + columns - 1) % columns),
            Pressed::Char('r') => self.reverse(),
            Pressed::Up => self.choose(|at, _| at.saturating_sub(1)),
            Pressed::Down => self.choose(|at, _| at + 1),
            Pressed::PageUp => self.choose(usize::saturating_sub),
            Pressed::PageDown => self.choose(|at, room| at + room),
            Pressed::Home => self.choose(|_, _| 0),
            Pressed::End => self.choose(|_, _| usize::MAX),
            Pressed::Left => {
                let choice = self.choice_mut();
                choice.shift = choice.shift.saturating_sub(1);
            }
            Pressed::Right => {
                let columns = self.table(self.view).heads().len();
                let choice = self.choice_mut();
                choice.shift = (choice.shift + 1).min(columns.saturating_sub(2));
            }
            _ => {}
        }
        None
    }

    /// An answer to the question whether to kill.
    fn answer(&mut self, id: u64, key: Pressed, now: Duration) -> Option<Wish> {
        match key {
            Pressed::Char('y' | 'Y') => {
                self.asked = None;
                self.say(&format!("killing {id}"), Weight::Plain, now);
                Some(Wish::Kill(id))
            }
            Pressed::Char('n' | 'N' | 'q') | Pressed::Esc => {
                self.asked = None;
                self.say(&format!("{id} is left alone"), Weight::Plain, now);
                None
            }
            // Anything else may have been meant for what stood here before.
            _ => None,
        }
    }

    fn type_on(&mut self, key: Pressed) {
        self.is_typing = !matches!(key, Pressed::Char('\n') | Pressed::Esc);
        self.arranged = None;
        let choice = self.choice_mut();
        choice.from = 0;
        let filter = &mut choice.filter;
        match key {
            Pressed::Esc | Pressed::Ctrl('u') => filter.clear(),
            Pressed::Backspace | Pressed::Ctrl('h') => drop(filter.pop()),
            Pressed::Char(c) if !c.is_control() && filter.len() < FILTER_MOST => filter.push(c),
            _ => {}
        }
    }

    /// One step back: from the whole of a row, from the choice, from the filter.
    fn back(&mut self) {
        if self.details.take().is_some() {
            return;
        }
        let choice = self.choice_mut();
        if choice.chosen.take().is_some() {
            choice.from = 0;
            return;
        }
        choice.filter.clear();
        self.arranged = None;
    }

    fn look_at(&mut self, view: View) {
        self.view = view;
        self.details = None;
        self.arranged = None;
    }

    fn ask(&mut self, now: Duration) {
        if self.view != View::Connections {
            self.say("only connections can be killed", Weight::Warn, now);
            return;
        }
        let chosen = self.details.as_ref();
        let chosen = chosen.or_else(|| self.choice().chosen.as_ref());
        let Some(Key::Number(id)) = chosen else {
            self.say("choose one by the arrow keys first", Weight::Warn, now);
            return;
        };
        let mut connections = self.connections.iter();
        match connections.find(|row| row.info.id == *id) {
            Some(row) => self.asked = Some((*id, row.info.peer.to_string())),
            None => self.say("it has ended", Weight::Warn, now),
        }
    }

    fn sort_by(&mut self, next: impl Fn(usize, usize) -> usize) {
        let columns = self.table(self.view).heads().len();
        let choice = self.choice_mut();
        let column = match choice.sort {
            Some(sort) => next(sort.column, columns),
            None => 0,
        };
        choice.sort = Some(Sort {
            column,
            reversed: false,
        });
        choice.from = 0;
        self.arranged = None;
    }

    fn reverse(&mut self) {
        let choice = self.choice_mut();
        let sort = choice.sort.get_or_insert(Sort {
            column: 0,
            reversed: false,
        });
        sort.reversed = !sort.reversed;
        choice.from = 0;
        self.arranged = None;
    }

    /// Which column the view is sorted by, and whether the most stands first.
    pub(super) fn sorted(&self) -> Option<(usize, bool)> {
        let sort = self.choice().sort?;
        let kind = self
            .table(self.view)
            .heads()
            .get(sort.column)
            .map_or(Kind::Name, |head| head.1);
        Some((sort.column, sort.falls(kind)))
    }

    /// Chooses the row that `to` says, of where the chosen one stands and how many are shown at a time.
    fn choose(&mut self, to: impl Fn(usize, usize) -> usize) {
        let (rows, at) = self.arranged();
        let Some(last) = rows.len().checked_sub(1) else {
            return;
        };
        let next = match at {
            Some(at) => to(at, self.room.max(1)).min(last),
            // The first key shows where it is.
            None => to(0, 0).saturating_sub(1).min(last),
        };
        let key = rows
            .get(next)
            .and_then(|row| self.table(self.view).key(*row));
        if self.details.is_some() {
            self.details.clone_from(&key);
        }
        let choice = self.choice_mut();
        choice.chosen = key;
        choice.at = next;
    }
}

#[cfg(test)]
mod tests;
