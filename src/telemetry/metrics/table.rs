//! All metrics by name, and the table of them in the documentation.

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

const fn described(
    name: &'static str,
    labels: &'static [&'static str],
    unit: &'static str,
    doc: &'static str,
) -> Described {
    Described { name, kind: "", labels, unit, doc } // the kind is the metric's
}

const OF_SOURCE: &[&str] = &["source", "stream"];
const OF_GROUP: &[&str] = &["stream", "group"];
const OF_COMPONENT: &[&str] = &["component"];

pub(super) const RELOADS: Described = described(
    "aqueduct_reloads",
    &["result"],
    "edits",
    "Edits of the topology file that were `applied`, or `refused` because of what is wrong with them",
);

pub(super) const GENERATION: Described = described(
    "aqueduct_topology_generation",
    &[],
    "generations",
    "The generation of the topology that runs: 1 at the start, one more with each applied edit",
);

pub(super) const REFUSED_EDIT: Described = described(
    "aqueduct_topology_refused",
    &[],
    "1 or 0",
    "1 while the last edit of the topology file was refused, and what runs is older than the file",
);

pub(super) const PUBLISHED: Described = described(
    "aqueduct_events_published",
    OF_SOURCE,
    "events",
    "Events a source made durable in its stream",
);

pub(super) const PUBLISH_FAILURES: Described = described(
    "aqueduct_publish_failures",
    OF_SOURCE,
    "batches",
    "Batches of a source that its stream did not take: it was away, full, or held another \
     checkpoint",
);

pub(super) const PUBLISH_SECONDS: Described = described(
    "aqueduct_publish_seconds",
    OF_SOURCE,
    "seconds",
    "Seconds from a batch of a source until it is durable",
);

pub(super) const REQUESTS: Described = described(
    "aqueduct_http_requests",
    &["source", "status"],
    "requests",
    "Requests to an http source or a trigger, by the status of the answer",
);

pub(super) const REQUEST_SECONDS: Described = described(
    "aqueduct_http_request_seconds",
    &["source"],
    "seconds",
    "Seconds until a request to an http source or a trigger was answered",
);

pub(super) const DELIVERED: Described = described(
    "aqueduct_events_delivered",
    OF_GROUP,
    "events",
    "Events a group handed to its sink or stream, deliveries again included",
);

pub(super) const STORED: Described = described(
    "aqueduct_events_stored",
    OF_GROUP,
    "events",
    "Events a group's sink or stream confirmed as stored",
);

pub(super) const REFUSED: Described = described(
    "aqueduct_events_refused",
    OF_GROUP,
    "refusals",
    "Refusals of events by a group's sink, each attempt counted",
);

pub(super) const DEAD: Described =
    described("aqueduct_dead_letters", OF_GROUP, "events", "Events a group gave up");

pub(super) const STORAGE_SECONDS: Described = described(
    "aqueduct_storage_seconds",
    OF_GROUP,
    "seconds",
    "Seconds from the acceptance of an event to its storage; with exemplars that carry the \
     `trace_id` of one",
);

pub(super) const LAG: Described = described(
    "aqueduct_group_lag",
    OF_GROUP,
    "events",
    "Events of the stream that no member of the group was given yet",
);

pub(super) const PENDING: Described = described(
    "aqueduct_group_pending",
    OF_GROUP,
    "events",
    "Events that members of the group hold and have not acknowledged",
);

pub(super) const BATCH_EVENTS: Described = described(
    "aqueduct_batch_events",
    OF_COMPONENT,
    "events",
    "Events in one write of a sink or stream, or one fetch of a group's member",
);

pub(super) const WRITE_SECONDS: Described = described(
    "aqueduct_write_seconds",
    OF_COMPONENT,
    "seconds",
    "Seconds of one write of a sink or stream",
);

pub(super) const WRITE_FAILURES: Described = described(
    "aqueduct_write_failures",
    OF_COMPONENT,
    "writes",
    "Writes of a sink or stream that failed as a whole, and are done again",
);

pub(super) const RESTARTS: Described = described(
    "aqueduct_restarts",
    OF_COMPONENT,
    "restarts",
    "Times an actor was started anew after an error or a panic",
);

pub(super) const UP: Described =
    described("aqueduct_component_up", OF_COMPONENT, "0 or 1", "Whether an actor works");

pub(super) const SPANS_EXPORTED: Described = described(
    "aqueduct_spans_exported",
    &[],
    "spans",
    "Spans that the collector of `[tracing]` took",
);

pub(super) const SPANS_DROPPED: Described = described(
    "aqueduct_spans_dropped",
    &["reason"],
    "spans",
    "Spans that were lost: the `queue` was full, or the `collector` did not take them",
);

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

pub(super) const QUERY_REQUESTS: Described = described(
    "aqueduct_query_requests",
    &["query", "status"],
    "requests",
    "Requests of a query, by the status of the answer",
);

pub(super) const QUERY_CACHE_HITS: Described = described(
    "aqueduct_query_cache_hits",
    &["query"],
    "requests",
    "Answers of a query that came from its cache",
);

pub(super) const QUERY_CACHE_MISSES: Described = described(
    "aqueduct_query_cache_misses",
    &["query"],
    "requests",
    "Answers of a query that its cache did not have",
);

pub(super) const QUERY_SECONDS: Described = described(
    "aqueduct_query_seconds",
    &["query"],
    "seconds",
    "Seconds until a query was answered",
);
