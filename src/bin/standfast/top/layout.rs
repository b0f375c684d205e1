//! What stands where: in a small window the table alone, in a larger one more and more beside it.

use std::cell::Cell;

use ratatui::layout::Rect;

use crate::top::view::View;

/// What a table has to have, its head included, before anything but the most needed stands beside it.
const TABLE: u16 = 8;

/// The figures with their lines.
pub(super) const FIGURES: u16 = 7;

/// A panel is that high at most, its title included, and at least.
const PANEL: std::ops::RangeInclusive<u16> = 3..=8;

/// Two panels stand beside one another from that width on.
const BESIDE: u16 = 60;

/// From that height on the table shares its place.
const SHARED: u16 = 26;

/// What there is to show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    /// Something is wrong, and said in a line.
    pub(super) trouble: bool,
    /// Lines at the bottom.
    pub(super) footer: u16,
    pub(super) listeners: usize,
    pub(super) reasons: usize,
    pub(super) upstreams: usize,
    pub(super) takeovers: usize,
    /// The last that ended stand below the connections where there is room.
    pub(super) ended_below: bool,
}

/// Where it stands; what has no height is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) header: Rect,
    pub(super) trouble: Rect,
    /// One line, or [`FIGURES`].
    pub(super) figures: Rect,
    pub(super) panels: Vec<(View, Rect)>,
    pub(super) tabs: Rect,
    pub(super) table: Rect,
    pub(super) below: Rect,
    pub(super) footer: Rect,
}

pub(super) fn plan(area: Rect, wanted: &Wanted) -> Plan {
    let left = Cell::new(area.height);
    // So many lines, if that many are left for the rest.
    let take = |lines: u16, rest: u16| {
        let taken = if left.get() >= lines + rest { lines } else { 0 };
        left.set(left.get() - taken);
        taken
    };
    let footer = match take(wanted.footer, 2) {
        0 => take(1, 1),
        lines => lines,
    };
    let header = take(1, 1);
    let trouble = take(u16::from(wanted.trouble), 1);
    let tabs = take(1, 2);
    let figures = match take(FIGURES, TABLE) {
        0 => take(1, 4),
        lines => lines,
    };
    let rows = |one: usize, other: usize| {
        let rows = u16::try_from(one.max(other)).unwrap_or(u16::MAX);
        rows.saturating_add(2).clamp(*PANEL.start(), *PANEL.end())
    };
    let first = match area.width {
        0..BESIDE => 0,
        _ => take(rows(wanted.listeners, wanted.reasons), TABLE),
    };
    let second = match wanted.upstreams + wanted.takeovers {
        0 => 0,
        _ if first == 0 => 0,
        _ => take(rows(wanted.upstreams, wanted.takeovers), TABLE),
    };
    let below = match left.get() {
        left @ SHARED.. if wanted.ended_below => take(left / 3, TABLE),
        _ => 0,
    };
    let mut y = area.y;
    let mut place = |height: u16| {
        let placed = Rect::new(area.x, y, area.width, height);
        y += height;
        placed
    };
    let header = place(header);
    let trouble = place(trouble);
    let figures = place(figures);
    let mut panels = beside(place(first), [View::Listeners, View::Reasons]);
    let row = place(second);
    panels.extend(match (wanted.upstreams, wanted.takeovers) {
        (0, _) => beside(row, [View::Takeovers]),
        (_, 0) => beside(row, [View::Upstreams]),
        _ => beside(row, [View::Upstreams, View::Takeovers]),
    });
    panels.retain(|(_, place)| place.height > 0);
    let tabs = place(tabs);
    let table = place(left.get());
    let below = place(below);
    Plan {
        header,
        trouble,
        figures,
        panels,
        tabs,
        table,
        below,
        footer: place(footer),
    }
}

/// Views beside one another, with a column between them.
fn beside<const N: usize>(row: Rect, views: [View; N]) -> Vec<(View, Rect)> {
    let count = u16::try_from(N).unwrap_or(1);
    let width = row.width / count;
    let place = |at: u16| {
        let x = row.x + at * width;
        let width = if at + 1 < count {
            width.saturating_sub(2)
        } else {
            row.right() - x
        };
        Rect::new(x, row.y, width, row.height)
    };
    views.into_iter().zip((0..count).map(place)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(width: u16, height: u16) -> Plan {
        let wanted = Wanted {
            trouble: true,
            footer: 1,
            listeners: 2,
            reasons: 3,
            upstreams: 2,
            takeovers: 1,
            ended_below: true,
        };
        plan(Rect::new(0, 0, width, height), &wanted)
    }

    fn all(plan: &Plan) -> Vec<Rect> {
        let one = [plan.header, plan.trouble, plan.figures];
        let other = [plan.tabs, plan.table, plan.below, plan.footer];
        let panels = plan.panels.iter().map(|(_, place)| *place);
        [&one[..], &panels.collect::<Vec<_>>(), &other].concat()
    }

    #[test]
    fn whatever_the_size_nothing_stands_on_anything_else_or_outside() {
        for width in [1, 20, 59, 60, 61, 80, 200] {
            for height in 0..120 {
                let plan = planned(width, height);
                let area = Rect::new(0, 0, width, height);
                let places = all(&plan);
                let lines: u32 = places.iter().map(|place| place.area()).sum();
                assert!(lines <= area.area(), "{width}x{height}");
                for (at, place) in places.iter().enumerate() {
                    assert_eq!(area.union(*place).area(), area.area(), "{width}x{height}");
                    for other in &places[at + 1..] {
                        let both = place.intersection(*other);
                        assert_eq!(both.area(), 0, "{width}x{height}: {place} and {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_small_window_has_a_table_and_a_larger_one_more() {
        let heights = |height| {
            let plan = planned(80, height);
            let places = [plan.header, plan.trouble, plan.figures, plan.tabs];
            let rest = [plan.table, plan.below, plan.footer];
            let panels = plan.panels.len();
            (
                [&places[..], &rest]
                    .concat()
                    .iter()
                    .map(|p| p.height)
                    .collect::<Vec<_>>(),
                panels,
            )
        };
        assert_eq!(heights(2), (vec![0, 0, 0, 0, 1, 0, 1], 0));
        assert_eq!(heights(5), (vec![1, 1, 0, 0, 2, 0, 1], 0));
        assert_eq!(heights(6), (vec![1, 1, 0, 1, 2, 0, 1], 0));
        assert_eq!(heights(12), (vec![1, 1, 1, 1, 7, 0, 1], 0));
        assert_eq!(heights(24), (vec![1, 1, 7, 1, 8, 0, 1], 2));
        let (places, panels) = heights(60);
        assert_eq!((places[4] + places[5], panels), (40, 4));
    }
}
