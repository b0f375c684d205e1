//! Figures over time as SVG: scales, lines and bars. Pure.

use maud::{Markup, html};

/// Of the picture, in its own units.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;

/// How numbers become heights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From nothing to so much.
    Linear(f64),
    /// From and to a power of ten.
    Powers(i32, i32),
}

impl Scale {
    /// One that reaches the highest of these.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0, f64::max);
        let step = step(most, 4);
        Self::Linear((most / step).ceil().max(1.0) * step)
    }

    /// Powers of ten around all of these.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a cast from a float saturates"
    )]
    pub(super) fn powers(values: impl Iterator<Item = f64> + Clone) -> Self {
        let above = |value: &f64| *value > 0.0;
        let least = values.clone().filter(above).fold(f64::INFINITY, f64::min);
        let most = values.filter(above).fold(0.0, f64::max);
        if most == 0.0 {
            return Self::Powers(0, 1);
        }
        let least = least.log10().floor() as i32;
        Self::Powers(least, (most.log10().ceil() as i32).max(least + 1))
    }

    /// Where a number stands: 0 is the bottom, 1 the top.
    fn share(self, value: f64) -> f64 {
        let share = match self {
            Self::Linear(most) => value / most,
            Self::Powers(least, most) => {
                (value.max(f64::MIN_POSITIVE).log10() - f64::from(least)) / f64::from(most - least)
            }
        };
        share.clamp(0.0, 1.0)
    }

    fn y(self, value: f64) -> f64 {
        tenth(HEIGHT - BOTTOM - self.share(value) * (HEIGHT - BOTTOM - TOP))
    }

    /// What is written beside it.
    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(most) => ticks(most, 5),
            Self::Powers(least, most) => (least..=most).map(|power| 10_f64.powi(power)).collect(),
        }
    }
}

/// Seconds, from left to right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) f64);

impl Time {
    fn x(self, at: f64) -> f64 {
        let share = (at / self.0.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        tenth(LEFT + share * (WIDTH - LEFT - RIGHT))
    }
}

/// What is drawn.
pub(super) enum Shape {
    /// A line through these, by time; it is broken where there is none.
    Line(Vec<(f64, Option<f64>)>),
    /// Bars: from, to, how high.
    Bars(Vec<(f64, f64, f64)>),
}

/// A figure over time.
pub(super) struct Series {
    /// What it is called, and what it looks like: the page's style knows it.
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) shape: Shape,
}

/// A stretch of time that says what it was when it is pointed at.
pub(super) struct Hint {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) words: String,
}

/// Something that happened.
pub(super) struct Mark<'a> {
    pub(super) at: f64,
    pub(super) words: &'a str,
}

/// One picture. `title` says what the numbers are.
pub(super) fn chart(
    title: &str,
    time: Time,
    scale: Scale,
    series: &[Series],
    marks: &[Mark<'_>],
    hints: &[Hint],
) -> Markup {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    html! {
        figure {
            figcaption {
                (title)
                @for one in series { " " span class=(one.class) { (one.name) } }
            }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) {
                @for tick in scale.ticks() {
                    line class="grid" x1=(LEFT) x2=(right) y1=(scale.y(tick)) y2=(scale.y(tick)) {}
                    text class="y" x=(LEFT - 6.0) y=(scale.y(tick) + 4.0) { (short(tick)) }
                }
                @for tick in ticks(time.0, 10) {
                    line class="grid" x1=(time.x(tick)) x2=(time.x(tick)) y1=(bottom) y2=(bottom + 4.0) {}
                    text class="x" x=(time.x(tick)) y=(HEIGHT - 6.0) { (short(tick)) " s" }
                }
                @for one in series { g class=(one.class) { (drawn(&one.shape, time, scale)) } }
                @for mark in marks {
                    line class="mark" x1=(time.x(mark.at)) x2=(time.x(mark.at)) y1=(TOP) y2=(bottom) {
                        title { (mark.words) }
                    }
                }
                @for hint in hints {
                    rect class="hint" x=(time.x(hint.from)) y=(TOP)
                        width=(tenth(time.x(hint.to) - time.x(hint.from))) height=(bottom - TOP) {
                        title { (hint.words) }
                    }
                }
            }
        }
    }
}

fn drawn(shape: &Shape, time: Time, scale: Scale) -> Markup {
    match shape {
        Shape::Line(points) => {
            let pieces = points.split(|(_, value)| value.is_none());
            let pieces = pieces.filter(|piece| !piece.is_empty()).map(|piece| {
                let places = piece.iter().map(|(at, value)| {
                    let y = scale.y(value.unwrap_or_default());
                    format!("{},{y}", time.x(*at))
                });
                places.collect::<Vec<_>>().join(" ")
            });
            html! { @for piece in pieces { polyline points=(piece) {} } }
        }
        Shape::Bars(bars) => html! {
            @for (from, to, value) in bars {
                @let (x, y) = (time.x(*from), scale.y(*value));
                // A short one is to be seen, too.
                rect x=(x) y=(y) width=(tenth(time.x(*to) - x).max(1.5)) height=(tenth(HEIGHT - BOTTOM - y)) {}
            }
        },
    }
}

/// Up to so many round distances make up `most`.
fn step(most: f64, count: u32) -> f64 {
    let rough = (most / f64::from(count)).max(1e-9);
    let power = 10_f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0];
    let fits = times
        .into_iter()
        .find(|times| times * power >= rough * 0.999);
    fits.unwrap_or(10.0) * power
}

/// Round numbers from nothing to `most`.
fn ticks(most: f64, count: u32) -> Vec<f64> {
    let step = step(most, count);
    let at = (0..=2 * count).map(|nth| f64::from(nth) * step);
    at.take_while(|tick| *tick <= most * 1.001).collect()
}

/// To no more places than a picture has.
fn tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// A number as short as can be read.
pub(super) fn short(number: f64) -> String {
    let (number, unit) = match number {
        1e6.. => (number / 1e6, "M"),
        1e4.. => (number / 1e3, "k"),
        _ => (number, ""),
    };
    format!("{}{unit}", (number * 1e4).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_has_round_numbers_and_room_for_the_highest() {
        for (most, top, shown) in [
            (0.0, 1e-9, 2),
            (1.0, 1.0, 3),
            (7.0, 8.0, 5),
            (19_999.0, 20_000.0, 5),
            (20_001.0, 25_000.0, 6),
        ] {
            let Scale::Linear(linear) = Scale::linear([0.0, most].into_iter()) else {
                panic!("not linear");
            };
            assert!(
                linear >= most && (linear - top).abs() <= top * 1e-6,
                "{most}: {linear}"
            );
            assert!(Scale::Linear(linear).ticks().len() >= shown, "{most}");
        }
        assert_eq!(
            Scale::powers([0.04, 3.0, 0.0].into_iter()),
            Scale::Powers(-2, 1)
        );
        assert_eq!(Scale::powers([1.0].into_iter()), Scale::Powers(0, 1));
        assert_eq!(Scale::powers([].into_iter()), Scale::Powers(0, 1));
    }

    #[test]
    fn what_is_drawn_stays_in_the_picture() {
        let scale = Scale::powers([0.1, 1000.0].into_iter());
        for value in [0.0, 0.01, 0.1, 5.0, 1000.0, 1e9] {
            assert!((TOP..=HEIGHT - BOTTOM).contains(&scale.y(value)), "{value}");
        }
        assert_eq!(Time(10.0).x(-1.0), LEFT);
        assert_eq!(Time(10.0).x(11.0), WIDTH - RIGHT);
        assert_eq!(Time(0.0).x(0.0), LEFT);
    }

    #[test]
    fn a_line_is_broken_where_nothing_was() {
        let points = vec![
            (0.0, Some(1.0)),
            (1.0, None),
            (2.0, Some(1.0)),
            (3.0, Some(1.0)),
        ];
        let drawn = drawn(&Shape::Line(points), Time(3.0), Scale::Linear(1.0)).into_string();
        assert_eq!(drawn.matches("<polyline").count(), 2, "{drawn}");
    }

    #[test]
    fn numbers_are_short() {
        for (number, shown) in [
            (0.001, "0.001"),
            (5.0, "5"),
            (9_999.0, "9999"),
            (12_500.0, "12.5k"),
            (3e6, "3M"),
        ] {
            assert_eq!(short(number), shown);
        }
    }
}
