//! Metrics as text: the format of Prometheus, version 0.0.4, and that of `OpenMetrics` 1.0.0.
//!
//! Written here, since no crate writes both, and each differs from the other in a few words:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>,
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::fmt::{Display, Write as _};

/// What a family of metrics is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    /// Its name ends with `_total`.
    Counter,
    /// Its name ends with `_info`, its value is 1.
    Info,
    Histogram,
}

/// A text in the making.
#[derive(Debug)]
pub(super) struct Text {
    open_metrics: bool,
    text: String,
    /// The name of the family that is being written.
    name: &'static str,
}

impl Text {
    pub(super) fn new(open_metrics: bool) -> Self {
        Self {
            open_metrics,
            text: String::new(),
            name: "",
        }
    }

    /// Begins the next family. `help` is plain text of one line.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        self.name = name;
        let (named, kind) = match (kind, self.open_metrics) {
            (Kind::Gauge, _) | (Kind::Info, false) => (name, "gauge"),
            (Kind::Histogram, _) => (name, "histogram"),
            (Kind::Counter, false) => (name, "counter"),
            (Kind::Counter, true) => (name.trim_end_matches("_total"), "counter"),
            (Kind::Info, true) => (name.trim_end_matches("_info"), "info"),
        };
        self.line(format_args!("# HELP {named} {help}"));
        self.line(format_args!("# TYPE {named} {kind}"));
        self
    }

    /// One value of the family.
    pub(super) fn value(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.sample("", labels, value);
    }

    /// A value for each of `counts`, by the label `name`.
    pub(super) fn by(&mut self, name: &str, counts: impl IntoIterator<Item = (impl Display, u64)>) {
        for (label, count) in counts {
            self.value(&[(name, &label)], count);
        }
    }

    /// The histogram of the family: how many there are within each bound, all in all, and their sum.
    pub(super) fn histogram(&mut self, within: &[(f64, u64)], count: u64, sum: f64) {
        for (bound, count) in within {
            self.sample("_bucket", &[("le", bound)], count);
        }
        self.sample("_bucket", &[("le", &"+Inf")], count);
        self.sample("_sum", &[], sum);
        self.sample("_count", &[], count);
    }

    pub(super) fn finish(mut self) -> String {
        if self.open_metrics {
            self.line(format_args!("# EOF"));
        }
        self.text
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.text += self.name;
        self.text += suffix;
        for (at, (name, value)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text += name;
            self.text += "=\"";
            for c in value.to_string().chars() {
                match c {
                    '\\' => self.text += "\\\\",
                    '"' => self.text += "\\\"",
                    '\n' => self.text += "\\n",
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(open_metrics: bool) -> String {
        let mut text = Text::new(open_metrics);
        let family = text.family("a_total", Kind::Counter, "Of a.");
        family.by("of", [("x\"\\\n", 1), ("y", 2)]);
        text.family("b", Kind::Gauge, "Of b.").value(&[], 0.5);
        let build = text.family("c_info", Kind::Info, "Of c.");
        build.value(&[("version", &"1"), ("other", &2)], 1);
        let times = text.family("d_seconds", Kind::Histogram, "Of d.");
        times.histogram(&[(0.5, 1), (1.0, 2)], 3, 2.25);
        text.finish()
    }

    #[test]
    fn the_format_of_prometheus_is_this() {
        let expected = r##"# HELP a_total Of a.
# TYPE a_total counter
a_total{of="x\"\\\n"} 1
a_total{of="y"} 2
# HELP b Of b.
# TYPE b gauge
b 0.5
# HELP c_info Of c.
# TYPE c_info gauge
c_info{version="1",other="2"} 1
# HELP d_seconds Of d.
# TYPE d_seconds histogram
d_seconds_bucket{le="0.5"} 1
d_seconds_bucket{le="1"} 2
d_seconds_bucket{le="+Inf"} 3
d_seconds_sum 2.25
d_seconds_count 3
"##;
        assert_eq!(written(false), expected);
    }

    #[test]
    fn open_metrics_names_families_without_their_suffix_and_says_where_it_ends() {
        let text = written(true);
        for line in [
            "# TYPE a counter\na_total{",
            "# HELP c Of c.\n# TYPE c info\nc_info{",
            "\n# EOF\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
