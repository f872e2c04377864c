//! What was measured, held against the targets: for people as Markdown, for programs as JSON.

use serde_json::{Map, Value, json};

use crate::machine::Machine;

/// One figure.
#[derive(Debug)]
struct Metric {
    name: String,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
    /// How much better than what it is compared with.
    ratio: Option<f64>,
}

/// What a figure should be.
#[derive(Debug)]
enum Target {
    /// So many times better than that; of rates that means more, of times less.
    Times(f64, &'static str),
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
}

/// All figures of a run.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    /// What was run, in words.
    title: String,
    metrics: Vec<Metric>,
}

impl Report {
    /// Of a run on a machine.
    pub(crate) fn new(machine: Machine, title: String) -> Self {
        Self {
            machine,
            title,
            metrics: Vec::new(),
        }
    }

    /// A figure without a target.
    pub(crate) fn state(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.add(name, value, unit, None, None);
    }

    /// A figure that should be `factor` times better than `what`, and is `ratio` times better.
    pub(crate) fn compare(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        ratio: f64,
        (factor, what): (f64, &'static str),
    ) {
        let target = Target::Times(factor, what);
        self.add(name, value, unit, Some(target), Some(ratio));
    }

    /// A figure that should be at least so much.
    pub(crate) fn at_least(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        limit: f64,
    ) {
        self.add(name, value, unit, Some(Target::AtLeast(limit)), None);
    }

    /// A figure that should be at most so much.
    pub(crate) fn at_most(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        limit: f64,
    ) {
        self.add(name, value, unit, Some(Target::AtMost(limit)), None);
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Option<Target>,
        ratio: Option<f64>,
    ) {
        let name = name.into();
        self.metrics.push(Metric {
            name,
            value,
            unit,
            target,
            ratio,
        });
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let mut object = Map::new();
        for metric in &self.metrics {
            let fields = json!({
                "value": metric.value,
                "unit": metric.unit,
                "limit": metric.limit(),
                "ratio": metric.ratio,
            });
            object.insert(metric.name.clone(), fields);
        }
        object.insert("machine".to_owned(), self.machine.json());
        Value::Object(object)
    }

    /// For people.
    pub(crate) fn markdown(&self) -> String {
        let header = ["metric", "value", "unit", "target", "ratio", "result"];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(self.metrics.iter().map(Metric::row));
        let width = |column: usize| {
            let widths = rows.iter().map(|row| row[column].chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        let mut text = format!("{}\n\n{}.\n\n", self.title, self.machine.sentence());
        for (index, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(widths).enumerate();
            let cells = cells.map(|(column, (cell, width))| match column {
                1 | 4 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
            text.push_str(&format!("| {} |\n", cells.collect::<Vec<_>>().join(" | ")));
            if index == 0 {
                let rules = widths
                    .iter()
                    .enumerate()
                    .map(|(column, width)| match column {
                        1 | 4 => format!("{}:", "-".repeat(width - 1)),
                        _ => "-".repeat(*width),
                    });
                text.push_str(&format!("| {} |\n", rules.collect::<Vec<_>>().join(" | ")));
            }
        }
        text
    }
}

impl Metric {
    fn is_time(&self) -> bool {
        self.unit == "ms"
    }

    /// The value that would just meet the target.
    fn limit(&self) -> Option<f64> {
        match (self.target.as_ref()?, self.ratio) {
            (Target::AtLeast(limit) | Target::AtMost(limit), _) => Some(*limit),
            (Target::Times(factor, _), Some(ratio)) if self.is_time() => {
                Some(self.value * ratio / factor)
            }
            (Target::Times(factor, _), Some(ratio)) => Some(self.value / ratio * factor),
            (Target::Times(..), None) => None,
        }
    }

    fn is_met(&self) -> Option<bool> {
        Some(match self.target.as_ref()? {
            Target::Times(factor, _) => self.ratio? >= *factor,
            Target::AtLeast(limit) => self.value >= *limit,
            Target::AtMost(limit) => self.value <= *limit,
        })
    }

    fn row(&self) -> [String; 6] {
        let target = match &self.target {
            None => String::new(),
            Some(Target::Times(factor, what)) => format!("≥ {factor} × {what}"),
            Some(Target::AtLeast(limit)) => format!("≥ {}", number(*limit)),
            Some(Target::AtMost(limit)) => format!("≤ {}", number(*limit)),
        };
        let ratio = self.ratio.map(|ratio| format!("{} ×", number(ratio)));
        let result = match self.is_met() {
            None => "stated",
            Some(true) => "met",
            Some(false) => "missed",
        };
        [
            format!("`{}`", self.name),
            number(self.value),
            self.unit.to_owned(),
            target,
            ratio.unwrap_or_default(),
            result.to_owned(),
        ]
    }
}

/// Three digits that matter, at least, and thousands apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) => (whole, format!(".{fraction}")),
        None => (text.as_str(), String::new()),
    };
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(Machine::here("15.1".to_owned()), "A run.".to_owned());
        let copy = (1.0, "raw `COPY` in");
        report.compare("ids_per_s", 1_000_000.0, "ids/s", 0.5, copy);
        report.compare("count_ms", 2.0, "ms", 700.0, (500.0, "the rows"));
        report.at_most("bytes", 99.5, "bytes", 100.0);
        report.at_least("users_per_s", 99_000.0, "users/s", 100_000.0);
        report.state("stated", 1.234, "ms");
        report
    }

    #[test]
    fn the_limit_is_the_value_that_just_meets_the_target() {
        let json = report().json();
        assert_eq!(json["ids_per_s"]["limit"], 2_000_000.0);
        assert_eq!(json["count_ms"]["limit"], 2.8);
        assert_eq!(json["bytes"]["limit"], 100.0);
        assert_eq!(json["stated"]["limit"], Value::Null);
        assert!(json["machine"]["cores"].is_u64());
    }

    #[test]
    fn the_table_says_what_is_met() {
        let text = report().markdown();
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap();
        assert!(line("`ids_per_s`").contains("| 1,000,000 |"), "{text}");
        for (name, result) in [
            ("`ids_per_s`", "missed"),
            ("`count_ms`", "met"),
            ("`bytes`", "met"),
            ("`users_per_s`", "missed"),
            ("`stated`", "stated"),
        ] {
            assert!(line(name).contains(result), "{text}");
        }
    }
}
