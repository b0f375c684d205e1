//! What the terminal can show.

use ratatui::style::{Color, Modifier, Style};

use crate::top::words::{Glyphs, Weight, printable};

/// A title, or what is less important than the rest.
pub(super) const FAINT: Style = Style::new().add_modifier(Modifier::DIM);

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) has_colours: bool,
    pub(super) glyphs: Glyphs,
    pub(super) is_unicode: bool,
}

impl Look {
    pub(super) fn new(has_colours: bool, is_unicode: bool) -> Self {
        Self {
            has_colours,
            is_unicode,
            glyphs: if is_unicode {
                Glyphs::UNICODE
            } else {
                Glyphs::ASCII
            },
        }
    }

    /// By `NO_COLOR` (no-color.org), `TERM` and the locale (locale(7)).
    pub(super) fn of_environment() -> Self {
        let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| said(name));
        let is_utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        // The fonts of Linux' own console have few bars.
        let is_console = said("TERM").is_some_and(|term| term == "linux");
        Self::new(said("NO_COLOR").is_none(), is_utf8 && !is_console)
    }

    pub(super) fn style(&self, weight: Weight) -> Style {
        let style = Style::new();
        match (weight, self.has_colours) {
            (Weight::Plain, _) | (Weight::Good | Weight::Warn, false) => style,
            (Weight::Good, true) => style.fg(Color::Green),
            (Weight::Warn, true) => style.fg(Color::Yellow),
            (Weight::Bad, true) => style.fg(Color::Red),
            (Weight::Bad, false) => style.add_modifier(Modifier::BOLD),
        }
    }

    /// `text` as this terminal can show it: what a server says may be anything.
    pub(super) fn text(&self, text: &str) -> String {
        let text = printable(text);
        if self.is_unicode || text.is_ascii() {
            return text;
        }
        let shown = text.chars().map(|c| match c {
            c if c.is_ascii() => c.to_string(),
            c => c.escape_default().to_string(),
        });
        shown.collect()
    }
}
