//! Tables as such: columns, and which rows stand where.

use std::cmp::Reverse;

use crate::top::words::{Weight, printable};

/// Which row it is, whatever stands before it by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Number(u64),
    Name(String),
}

/// What stands in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// From the left; the least comes first; the filter looks at it.
    Name,
    /// From the right; the most comes first.
    Number,
}

/// A number that there is none of: below all others.
pub(super) const NONE: f64 = f64::NEG_INFINITY;

/// A column of a table of `T`.
pub(super) struct Column<T> {
    pub(super) title: &'static str,
    pub(super) shows: Shows<T>,
    weight: fn(&T) -> Weight,
}

pub(super) enum Shows<T> {
    Name(fn(&T) -> String),
    /// And how a number is written.
    Number(fn(&T) -> f64, fn(f64) -> String),
}

impl<T> Column<T> {
    pub(super) const fn name(title: &'static str, name: fn(&T) -> String) -> Self {
        Self::new(title, Shows::Name(name))
    }

    pub(super) const fn number(
        title: &'static str,
        number: fn(&T) -> f64,
        written: fn(f64) -> String,
    ) -> Self {
        Self::new(title, Shows::Number(number, written))
    }

    const fn new(title: &'static str, shows: Shows<T>) -> Self {
        let weight = |_: &T| Weight::Plain;
        Self {
            title,
            shows,
            weight,
        }
    }

    pub(super) const fn weighed(self, weight: fn(&T) -> Weight) -> Self {
        Self { weight, ..self }
    }

    fn kind(&self) -> Kind {
        match self.shows {
            Shows::Name(_) => Kind::Name,
            Shows::Number(..) => Kind::Number,
        }
    }

    pub(super) fn text(&self, row: &T) -> String {
        match self.shows {
            Shows::Name(name) => name(row),
            Shows::Number(number, written) => match number(row) {
                NONE => "-".to_owned(),
                number => written(number),
            },
        }
    }
}

/// A table, whatever its rows are.
pub(super) trait Table {
    /// The titles of its columns.
    fn heads(&self) -> Vec<(&'static str, Kind)>;
    fn rows(&self) -> usize;
    fn key(&self, row: usize) -> Option<Key>;
    /// What stands there, as it may stand on a terminal.
    fn cell(&self, row: usize, column: usize) -> (String, Weight);
    /// The rows that have all words of `filter`, in that order.
    fn arranged(&self, sort: Option<Sort>, filter: &str) -> Vec<usize>;
}

/// By which column, and whether from its other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) reversed: bool,
}

impl Sort {
    /// Whether the most stands first.
    pub(super) fn falls(self, kind: Kind) -> bool {
        (kind == Kind::Number) != self.reversed
    }
}

/// Rows and what to show of them.
pub(super) struct Grid<'a, T> {
    pub(super) columns: &'a [Column<T>],
    pub(super) rows: &'a [T],
    pub(super) key: fn(&T) -> Key,
}

impl<T> Table for Grid<'_, T> {
    fn heads(&self) -> Vec<(&'static str, Kind)> {
        let columns = self.columns.iter();
        columns
            .map(|column| (column.title, column.kind()))
            .collect()
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn key(&self, row: usize) -> Option<Key> {
        self.rows.get(row).map(self.key)
    }

    fn cell(&self, row: usize, column: usize) -> (String, Weight) {
        match (self.rows.get(row), self.columns.get(column)) {
            (Some(row), Some(column)) => (printable(&column.text(row)), (column.weight)(row)),
            _ => (String::new(), Weight::Plain),
        }
    }

    fn arranged(&self, sort: Option<Sort>, filter: &str) -> Vec<usize> {
        let wanted = filter.to_lowercase();
        let wanted: Vec<&str> = wanted.split_whitespace().collect();
        let mut rows: Vec<(usize, &T)> = self.rows.iter().enumerate().collect();
        if !wanted.is_empty() {
            rows.retain(|(_, row)| {
                let text = self.searched(row);
                wanted.iter().all(|word| text.contains(word))
            });
        }
        if let Some(sort) = sort
            && let Some(column) = self.columns.get(sort.column)
        {
            // Stable: those that are alike stay as they were told.
            let falls = sort.falls(column.kind());
            match column.shows {
                Shows::Number(of, _) if falls => rows.sort_by(|a, b| of(b.1).total_cmp(&of(a.1))),
                Shows::Number(of, _) => rows.sort_by(|a, b| of(a.1).total_cmp(&of(b.1))),
                Shows::Name(of) if falls => rows.sort_by_cached_key(|row| Reverse(of(row.1))),
                Shows::Name(of) => rows.sort_by_cached_key(|row| of(row.1)),
            }
        }
        rows.into_iter().map(|(at, _)| at).collect()
    }
}

impl<T> Grid<'_, T> {
    /// What the filter looks at: the names of a row, and `#` with its number.
    fn searched(&self, row: &T) -> String {
        let mut text = match (self.key)(row) {
            Key::Number(number) => format!("#{number}"),
            Key::Name(_) => String::new(),
        };
        for column in self.columns {
            if let Shows::Name(name) = column.shows {
                text.push(' ');
                text += &name(row).to_lowercase();
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column<(u64, &str)>] = &[
        Column::name("NAME", |row| row.1.to_owned()),
        Column::number(
            "COUNT",
            |row| (row.0 / 10) as f64,
            |count| count.to_string(),
        ),
    ];

    fn arranged(sort: Option<(usize, bool)>, filter: &str) -> Vec<&'static str> {
        let rows = [
            (12, "10.0.0.1:5 echo"),
            (15, "Hub 10.0.0.2:5"),
            (30, "unix:7 echo"),
        ];
        let grid = Grid {
            columns: COLUMNS,
            rows: &rows,
            key: |row| Key::Number(row.0),
        };
        let sort = sort.map(|(column, reversed)| Sort { column, reversed });
        let arranged = grid.arranged(sort, filter).into_iter();
        arranged.map(|at| rows[at].1).collect()
    }

    #[test]
    fn rows_stand_as_they_were_told_or_by_a_column_from_either_end() {
        let [first, second, third] = ["10.0.0.1:5 echo", "Hub 10.0.0.2:5", "unix:7 echo"];
        assert_eq!(arranged(None, ""), [first, second, third]);
        assert_eq!(arranged(Some((0, false)), ""), [first, second, third]);
        assert_eq!(arranged(Some((0, true)), ""), [third, second, first]);
        // The most first, and those that are alike as they were.
        assert_eq!(arranged(Some((1, false)), ""), [third, first, second]);
        assert_eq!(arranged(Some((1, true)), ""), [first, second, third]);
        assert_eq!(arranged(Some((9, true)), ""), [first, second, third]);
    }

    #[test]
    fn a_row_has_to_have_every_word_of_a_filter_in_its_names_or_as_its_number() {
        assert_eq!(arranged(None, "ECHO 10."), ["10.0.0.1:5 echo"]);
        assert_eq!(arranged(None, " hub "), ["Hub 10.0.0.2:5"]);
        assert_eq!(arranged(None, "#30"), ["unix:7 echo"]);
        assert_eq!(arranged(None, "nobody").len(), 0);
    }

    #[test]
    fn what_stands_in_a_cell_may_stand_on_a_terminal() {
        let rows = [(1, "a\x1b[2J")];
        let grid = Grid {
            columns: COLUMNS,
            rows: &rows,
            key: |row| Key::Number(row.0),
        };
        assert_eq!(grid.cell(0, 0).0, "a\\u{1b}[2J");
        assert_eq!(grid.cell(1, 0).0, "");
        assert_eq!(grid.cell(0, 2).0, "");
    }
}
