//! The table of all metrics in the documentation.

use std::fmt::Write;

/// One metric, as the documentation has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name, without what its kind adds (`_total`, `_bucket`).
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub unit: &'static str,
    /// What it tells.
    pub doc: &'static str,
}

impl Described {
    /// The name under which it is asked for.
    pub fn shown(&self) -> String {
        match self.kind {
            "counter" => format!("{}_total", self.name),
            _ => self.name.to_owned(),
        }
    }
}

/// The table, in Markdown.
pub(super) fn markdown(metrics: &[Described]) -> String {
    let mut text = String::from("| name | kind | labels | unit | |\n|---|---|---|---|---|\n");
    for metric in metrics {
        let labels: Vec<String> = metric.labels.iter().map(|it| format!("`{it}`")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            metric.shown(),
            metric.kind,
            labels.join(", "),
            metric.unit,
            metric.doc
        );
    }
    text
}
