//! The two ways in which metrics are written: OpenMetrics, which has exemplars, and Prometheus'
//! older text format, which everything reads.

use std::fmt::Write;

/// How somebody wants to read metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Exposition {
    /// What an `Accept` header asks for. Where it does not ask for OpenMetrics, the older one.
    pub fn accepted(accept: &str) -> Self {
        let wanted = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next() == Some("application/openmetrics-text");
            let refused =
                |part: &str| part.strip_prefix("q=").is_some_and(|q| q.parse::<f64>() == Ok(0.0));
            named && !parts.any(refused)
        };
        match accept.to_ascii_lowercase().split(',').any(wanted) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// OpenMetrics in the older format: a counter's description has its whole name there, and there
/// are no exemplars, units and end marks.
pub(super) fn older(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(doc)) => {
                let kind = lines.peek().and_then(|next| next.strip_prefix("# TYPE "));
                let counter = kind.is_some_and(|kind| kind.ends_with(" counter"));
                let total = if counter { "_total" } else { "" };
                // Writing to a string cannot fail.
                let _ = writeln!(text, "# HELP {name}{total} {doc}");
            }
            (Some("#"), Some("TYPE"), Some(name), Some("counter")) => {
                let _ = writeln!(text, "# TYPE {name}_total counter");
            }
            (Some("#"), Some("UNIT" | "EOF"), ..) => {}
            _ => {
                let sample = line.split_once(" # {").map_or(line, |(sample, _)| sample);
                text.push_str(sample);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_who_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,\
                          application/openmetrics-text;version=0.0.1;q=0.7,text/plain;q=0.5,*/*;q=0.1";
        assert_eq!(Exposition::accepted(prometheus), Exposition::OpenMetrics);
        for other in ["", "*/*", "text/plain", "text/html, application/openmetrics-text;q=0"] {
            assert_eq!(Exposition::accepted(other), Exposition::Text, "{other}");
        }
    }

    #[test]
    fn the_older_format_has_no_exemplars() {
        let new = "# HELP a_b Some text.\n# TYPE a_b counter\n# UNIT a_b b\na_b_total{x=\"y\"} 1\n\
                   # HELP s Of a type.\n# TYPE s histogram\ns_bucket{le=\"1.0\"} 1 # {trace_id=\"t\"} \
                   0.5 1.2\ns_count 1\n# EOF\n";
        let old = "# HELP a_b_total Some text.\n# TYPE a_b_total counter\na_b_total{x=\"y\"} 1\n\
                   # HELP s Of a type.\n# TYPE s histogram\ns_bucket{le=\"1.0\"} 1\ns_count 1\n";
        assert_eq!(older(new), old);
    }
}
