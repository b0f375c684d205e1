//! How it looks.

use std::time::Duration;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

use crate::ctl::short;
use crate::top::dashboard::Dashboard;
use crate::top::history::Measure;
use crate::top::layout::{FIGURES, Plan, Wanted, plan};
use crate::top::look::{FAINT, Look};
use crate::top::table::{Kind, Table};
use crate::top::view::View;
use crate::top::words::{Weight, bytes, count, rate, whole};
use crate::units::Bytes;

/// A name is that wide at most, unless there is nothing behind it.
const NAME_MOST: usize = 45;

/// The keys, and what they do.
const KEYS: [(&str, &str); 15] = [
    ("q", "end; Ctrl-C, too"),
    ("?", "this; any key ends it"),
    ("Tab, 1 to 6", "look at another table"),
    (
        "/",
        "filter: rows that have all of these words in their names, #ID is a number",
    ),
    ("s  >  <", "sort by the next column, or the one before"),
    ("r", "turn the order"),
    ("Up  Down  PgUp  PgDn", "choose a row"),
    ("Home  End", "choose the first, the last"),
    ("Left  Right", "see other columns"),
    ("Enter", "all of the chosen row"),
    ("k", "kill the chosen connection; y or n is asked first"),
    ("Space", "hold still what is shown, and go on"),
    (
        "Esc",
        "one step back: from a row, from the choice, from the filter",
    ),
    ("Ctrl-L", "draw all anew"),
    ("Ctrl-Z", "stop, until the shell has it go on"),
];

const FOOTER: &str =
    "q quit  ? help  / filter  < > sort  r reverse  Tab tables  Enter details  k kill  Space hold";

/// The dashboard as it is `now`.
pub(super) fn draw(frame: &mut Frame<'_>, board: &mut Dashboard, look: &Look, now: Duration) {
    let area = frame.area();
    let mut pen = Pen {
        buffer: frame.buffer_mut(),
        look,
    };
    if board.shows_help {
        pen.help(area);
        return;
    }
    let (footer, style) = footer(board, look, now);
    let trouble = trouble(board, now);
    let is_asked = board.asked.is_some();
    let wanted = Wanted {
        trouble: trouble.is_some(),
        footer: if is_asked {
            lines(&footer, area.width)
        } else {
            1
        },
        listeners: board.status.listeners.len(),
        reasons: board.status.closed.len(),
        upstreams: board.status.upstreams.len(),
        takeovers: board.count(View::Takeovers),
        ended_below: board.view == View::Connections && board.details.is_none(),
    };
    let plan = plan(area, &wanted);
    pen.header(plan.header, board, now);
    if let Some(trouble) = trouble {
        pen.put(plan.trouble, 0, &trouble, look.style(Weight::Bad));
    }
    pen.figures(plan.figures, board);
    for (view, place) in &plan.panels {
        pen.panel(*place, board, *view);
    }
    pen.tabs(plan.tabs, board);
    pen.view(&plan, board);
    pen.panel(plan.below, board, View::Ended);
    let rows = footer.chars().collect::<Vec<_>>();
    let rows = rows.chunks(usize::from(area.width.max(1)));
    for (at, row) in rows.take(usize::from(plan.footer.height)).enumerate() {
        let row: String = row.iter().collect();
        pen.put(plan.footer, at, &row, style);
    }
}

/// How many lines a text takes.
fn lines(text: &str, width: u16) -> u16 {
    let lines = text.chars().count().div_ceil(usize::from(width.max(1)));
    u16::try_from(lines).unwrap_or(u16::MAX).clamp(1, 4)
}

/// The last line: a question, what is typed, what is said, or the keys.
fn footer(board: &Dashboard, look: &Look, now: Duration) -> (String, Style) {
    let loud = Style::new().add_modifier(Modifier::REVERSED);
    if let Some((id, peer)) = &board.asked {
        let question = look.text(&format!("kill connection {id} of {peer}? y/n"));
        return (question, loud);
    }
    if board.is_typing {
        let typed = look.text(&format!(
            "/{}_   Enter keeps it, Esc does not",
            board.choice().filter
        ));
        return (typed, Style::new());
    }
    if let Some(message) = board.message(now) {
        return (look.text(&message.text), look.style(message.weight));
    }
    (FOOTER.to_owned(), FAINT)
}

/// What is wrong, as the page says it.
fn trouble(board: &Dashboard, now: Duration) -> Option<String> {
    if let Some((time, why)) = board.waits(now) {
        let time = short(time);
        return Some(format!("waiting for the server for {time}: {why}"));
    }
    let status = &board.status;
    status.accept_paused.then(|| {
        let errors = status.accept_errors.iter();
        let errors: Vec<_> = errors
            .map(|(errno, times)| format!("{} {errno}", count(*times)))
            .collect();
        let failed = if errors.is_empty() {
            String::new()
        } else {
            format!(" Failed accepts: {}.", errors.join(", "))
        };
        format!(
            "Nobody new is accepted: there are no descriptors or no memory for one more.{failed}"
        )
    })
}

/// How a figure is said.
type Words<'a> = &'a dyn Fn(f64) -> String;

/// What is drawn with.
struct Pen<'a> {
    buffer: &'a mut Buffer,
    look: &'a Look,
}

impl Pen<'_> {
    /// `text` in the line `at` of `place`.
    fn put(&mut self, place: Rect, at: usize, text: &str, style: Style) {
        self.put_at(place, 0, at, usize::from(place.width), text, style);
    }

    /// `text` at column `x` and line `y` of `place`, in so many columns at most. Answers how many it took.
    fn put_at(
        &mut self,
        place: Rect,
        x: usize,
        y: usize,
        width: usize,
        text: &str,
        style: Style,
    ) -> usize {
        let left = usize::from(place.width).saturating_sub(x);
        let width = width.min(left);
        let (Ok(x), Ok(y)) = (u16::try_from(x), u16::try_from(y)) else {
            return 0;
        };
        if y >= place.height || width == 0 {
            return 0;
        }
        let text = self.look.text(text);
        let wide = Span::raw(text.as_str()).width();
        let (x, y) = (place.x + x, place.y + y);
        if wide <= width {
            self.buffer.set_stringn(x, y, &text, width, style);
            return wide;
        }
        let (end, _) = self.buffer.set_stringn(x, y, &text, width - 1, style);
        self.buffer
            .set_stringn(end, y, self.look.glyphs.cut, 1, style);
        width
    }

    /// The same of what is made of glyphs of our own.
    fn picture(&mut self, place: Rect, x: usize, y: usize, text: &str, style: Style) {
        let left = usize::from(place.width).saturating_sub(x);
        let (Ok(x), Ok(y)) = (u16::try_from(x), u16::try_from(y)) else {
            return;
        };
        if y < place.height && left > 0 {
            self.buffer
                .set_stringn(place.x + x, place.y + y, text, left, style);
        }
    }

    fn help(&mut self, area: Rect) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        self.put(area, 0, "standfast top: keys", bold);
        let wide = KEYS.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        for (at, (key, what)) in KEYS.iter().enumerate() {
            self.put(
                area,
                at + 2,
                &format!("  {key:<wide$}  {what}"),
                Style::new(),
            );
        }
    }

    fn header(&mut self, place: Rect, board: &Dashboard, now: Duration) {
        let status = &board.status;
        let (state, weight) = if board.waits(now).is_some() {
            ("no answer", Weight::Bad)
        } else if status.draining {
            ("draining", Weight::Warn)
        } else if status.accept_paused {
            ("accept paused", Weight::Bad)
        } else {
            ("serving", Weight::Good)
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let state_style = self.look.style(weight).add_modifier(Modifier::BOLD);
        let mut x = 0;
        let mut say = |text: &str, style: Style| {
            x += self.put_at(place, x, 0, usize::MAX, text, style) + 2;
        };
        say("standfast", bold);
        say(state, state_style);
        if board.is_paused {
            say("held", bold.add_modifier(Modifier::REVERSED));
        }
        let here = if status.takeovers.completed > 0 {
            format!(" (this process {})", short(status.uptime))
        } else {
            String::new()
        };
        let up = short(status.counted_for);
        let (pid, version, workers) = (status.pid, &status.version, status.workers);
        let plural = if workers == 1 { "" } else { "s" };
        say(&format!("pid {pid}"), Style::new());
        say(&format!("up {up}{here}"), Style::new());
        say(&format!("version {version}"), Style::new());
        say(&format!("{workers} worker{plural}"), Style::new());
    }

    fn figures(&mut self, place: Rect, board: &Dashboard) {
        let history = &board.history;
        let now = |measure| history.now(measure);
        if place.height < FIGURES {
            let text = format!(
                "{} open  {}/s accepted  {}/s ended  {}/s read  {}/s written",
                count(board.status.open as u64),
                rate(now(Measure::Accepted)),
                rate(now(Measure::Ended)),
                bytes(now(Measure::Read)),
                bytes(now(Measure::Written)),
            );
            self.put(place, 0, &text, Style::new());
            return;
        }
        let open = |value: f64| count(whole(value));
        let rows: [(&str, Measure, &str, Words<'_>); 5] = [
            ("Connections", Measure::Open, "open", &open),
            ("Accepted", Measure::Accepted, "/s", &rate),
            ("Ended", Measure::Ended, "/s", &rate),
            ("Read from clients", Measure::Read, "/s", &bytes),
            ("Written to clients", Measure::Written, "/s", &bytes),
        ];
        let width = usize::from(place.width);
        // The name, the value, the most of it; then the line.
        let from = if width >= 70 { 54 } else { 34 };
        let columns = width.saturating_sub(from);
        for (at, (title, measure, unit, words)) in rows.into_iter().enumerate() {
            self.put_at(place, 0, at, 19, title, FAINT);
            let value = format!("{:>9} {unit}", words(now(measure)));
            self.put_at(place, 19, at, 15, &value, Style::new());
            let most = history.most(measure);
            if from == 54 {
                let most = format!("at most {}", words(most));
                self.put_at(place, 35, at, 18, &most, FAINT);
            }
            let values = history.columns(measure, columns);
            let top = values.iter().flatten().copied().fold(0.0, f64::max);
            let line = self.look.glyphs.line(&values, top);
            let style = self.colour(Color::Cyan);
            self.picture(place, from, at, &line, style);
        }
        let takeovers = &board.status.takeovers;
        self.put_at(place, 0, 5, 19, "Takeovers", FAINT);
        let done = format!("{:>9}", count(takeovers.completed));
        self.put_at(place, 19, 5, 15, &done, Style::new());
        if from == 54 && takeovers.refused + takeovers.failed > 0 {
            let others = format!("{} not done", count(takeovers.refused + takeovers.failed));
            self.put_at(place, 35, 5, 18, &others, self.look.style(Weight::Warn));
        }
        let marks = history.takeovers(columns);
        let marks: String = marks
            .into_iter()
            .map(|is| if is { self.look.glyphs.up } else { " " })
            .collect();
        let style = self.colour(Color::Magenta);
        self.picture(place, from, 5, &marks, style);
        self.levels(place, board);
    }

    fn colour(&self, colour: Color) -> Style {
        if self.look.has_colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    /// What is used of what there is.
    fn levels(&mut self, place: Rect, board: &Dashboard) {
        let status = &board.status;
        let memory = &status.memory;
        let mut x = 0;
        let mut level = |title: &str, value: String, share: f64| {
            let weight = match share {
                _ if share > 0.9 => Weight::Bad,
                _ if share > 0.75 => Weight::Warn,
                _ => Weight::Plain,
            };
            x += self.put_at(place, x, 6, usize::MAX, title, FAINT) + 1;
            x += self.put_at(place, x, 6, usize::MAX, &value, self.look.style(weight)) + 3;
        };
        let (held, limit) = (memory.held as u64, memory.limit as u64);
        let share = |used: u64, limit: u64| used as f64 / limit.max(1) as f64;
        let of = format!("{} of {}", Bytes(held), Bytes(limit));
        level("Bytes that wait", of, share(held, limit));
        if let Some(descriptors) = status.descriptors {
            let (used, limit) = (descriptors.used, descriptors.limit);
            let of = format!("{} of {}", count(used), count(limit));
            level("Descriptors", of, share(used, limit));
        }
        if let Some(children) = status.children {
            level("Processes of exec", count(children as u64), 0.0);
        }
    }

    fn tabs(&mut self, place: Rect, board: &Dashboard) {
        let width = usize::from(place.width);
        let title = |view: &View| match board.count(*view) {
            0 => view.title().to_owned(),
            some => format!("{} {}", view.title(), count(some as u64)),
        };
        let wide: usize = View::ALL.iter().map(|view| title(view).len() + 2).sum();
        let filter = match board.choice().filter.as_str() {
            "" => String::new(),
            filter => format!("/{filter}"),
        };
        // Where there is no room for all, the one that is looked at.
        let only = wide - 2
            + if filter.is_empty() {
                0
            } else {
                2 + filter.len()
            }
            > width;
        let mut x = 0;
        for view in View::ALL {
            let is_shown = view == board.view;
            if only && !is_shown {
                continue;
            }
            let style = if is_shown {
                Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
            } else {
                FAINT
            };
            x += self.put_at(place, x, 0, usize::MAX, &title(&view), style) + 2;
        }
        self.put_at(place, x, 0, usize::MAX, &filter, self.colour(Color::Yellow));
    }

    /// A table of another view than the one that is looked at: as it was told, as much as there is room for.
    fn panel(&mut self, place: Rect, board: &Dashboard, view: View) {
        if place.height == 0 {
            return;
        }
        let bold = Style::new().add_modifier(Modifier::BOLD);
        self.put(place, 0, view.title(), bold);
        let inner = Rect::new(place.x, place.y + 1, place.width, place.height - 1);
        let table = board.table(view);
        if table.rows() == 0 {
            self.put(inner, 0, nothing(view), FAINT);
            return;
        }
        let rows = table.arranged(view.sort(), "");
        if view == View::Reasons {
            self.bars(inner, board, &rows);
            return;
        }
        let shown = Shown {
            rows: &rows,
            chosen: None,
            sorted: None,
            shift: 0,
        };
        self.table(inner, &*table, &shown, &mut Vec::new());
    }

    /// Ends by reason, as bars.
    fn bars(&mut self, place: Rect, board: &Dashboard, rows: &[usize]) {
        let table = board.table(View::Reasons);
        let closed = &board.status.closed;
        let sum: u64 = closed.iter().map(|(_, count)| count).sum();
        let (name, number) = (19, 11);
        let room = usize::from(place.width).saturating_sub(name + number);
        for (at, row) in rows.iter().enumerate() {
            let (reason, weight) = table.cell(*row, 0);
            let style = self.look.style(weight);
            self.put_at(place, 0, at, name - 1, &reason, style);
            let ends = closed.get(*row).map_or(0, |(_, count)| *count);
            let text = format!("{:>10}", count(ends));
            self.put_at(place, name, at, number, &text, Style::new());
            let wide = ends as f64 / sum.max(1) as f64 * room as f64;
            let bar = (0..room).take_while(|column| (*column as f64) < wide);
            let bar: String = bar.map(|_| self.look.glyphs.bar).collect();
            self.picture(place, name + number, at, &bar, style);
        }
    }

    /// The view that is looked at.
    fn view(&mut self, plan: &Plan, board: &mut Dashboard) {
        let place = plan.table;
        board.room = usize::from(place.height.saturating_sub(1));
        let (rows, chosen) = board.arranged();
        if let Some(key) = board.details.clone() {
            let told = board.details_of(&key);
            self.details(place, &told);
            return;
        }
        let view = board.view;
        if rows.is_empty() {
            let known = board.table(view).rows();
            let text = match (known, view) {
                (0, View::Connections) if !board.is_listed && board.status.open > 0 => {
                    "asking for the connections".to_owned()
                }
                (0, view) => nothing(view).to_owned(),
                (known, _) => format!("none of these {} has that", count(known as u64)),
            };
            self.put(place, 0, &text, FAINT);
            return;
        }
        let from = board.choice().from;
        let mut widths = std::mem::take(&mut board.choice_mut().widths);
        let shown = Shown {
            rows: rows.get(from..).unwrap_or_default(),
            chosen: chosen.and_then(|chosen| chosen.checked_sub(from)),
            sorted: board.sorted(),
            shift: board.choice().shift,
        };
        self.table(place, &*board.table(view), &shown, &mut widths);
        board.choice_mut().widths = widths;
    }

    fn details(&mut self, place: Rect, told: &[(&str, String)]) {
        let wide = told.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (at, (name, value)) in told.iter().enumerate() {
            self.put_at(place, 0, at, wide, name, FAINT);
            self.put_at(place, wide + 2, at, usize::MAX, value, Style::new());
        }
    }

    /// A head and rows. The columns have been `widths` wide: they do not jump as rows come and go.
    fn table(
        &mut self,
        place: Rect,
        table: &dyn Table,
        shown: &Shown<'_>,
        widths: &mut Vec<usize>,
    ) {
        let room = usize::from(place.height.saturating_sub(1));
        let heads = table.heads();
        widths.resize(heads.len(), 0);
        let mut x = 0;
        for (column, (title, kind)) in heads.into_iter().enumerate() {
            if column > 0 && column <= shown.shift {
                continue;
            }
            let sorted = shown.sorted.filter(|(sorted, _)| *sorted == column);
            let title = match sorted {
                Some((_, true)) => format!("{title}{}", self.look.glyphs.down),
                Some((_, false)) => format!("{title}{}", self.look.glyphs.up),
                None => title.to_owned(),
            };
            let rows = shown.rows.iter().take(room);
            let cells: Vec<(String, Weight)> = rows
                .map(|row| table.cell(*row, column))
                .map(|(text, weight)| (self.look.text(&text), weight))
                .collect();
            let wide = |text: &str| Span::raw(text).width();
            let widest = cells.iter().map(|(text, _)| wide(text)).max().unwrap_or(0);
            let mut width = widest.max(wide(&title));
            if let Some(before) = widths.get_mut(column) {
                width = width.max(*before);
                *before = width;
            }
            width = width.min(NAME_MOST);
            let left = usize::from(place.width).saturating_sub(x);
            let is_cut = width > left;
            // A number of which digits are missing is another number.
            if left == 0 || is_cut && column > 0 && (kind == Kind::Number || left < 6) {
                break;
            }
            let width = width.min(left);
            let aligned = |text: &str| {
                let wide = wide(text);
                match kind {
                    Kind::Name => 0,
                    Kind::Number => width.saturating_sub(wide),
                }
            };
            let head = Style::new().add_modifier(Modifier::BOLD);
            let start = x + aligned(&title);
            self.picture(place, start, 0, &title, head);
            for (at, (text, weight)) in cells.iter().enumerate() {
                let start = x + aligned(text);
                let style = self.look.style(*weight);
                self.put_at(place, start, at + 1, width, text, style);
            }
            x += width + 1;
        }
        if let Some(chosen) = shown.chosen.filter(|chosen| *chosen < room) {
            let y = place.y + u16::try_from(chosen + 1).unwrap_or(0);
            let row = Rect::new(place.x, y, place.width, 1);
            let style = Style::new().add_modifier(Modifier::REVERSED);
            self.buffer.set_style(row.intersection(place), style);
        }
    }
}

/// What of a table is shown, and how.
struct Shown<'a> {
    rows: &'a [usize],
    chosen: Option<usize>,
    sorted: Option<(usize, bool)>,
    shift: usize,
}

/// What is said of a table without rows.
fn nothing(view: View) -> &'static str {
    match view {
        View::Connections => "nobody is connected",
        View::Ended => "none has ended yet",
        View::Listeners => "there are none",
        View::Reasons => "no connection has ended yet",
        View::Upstreams => "no service here has any",
        View::Takeovers => "none yet",
    }
}

#[cfg(test)]
mod tests;
