//! What is counted, in Prometheus' terms. One table, [`Metrics::default`], names and explains
//! all of it; the one in the documentation is made from it.

mod exposition;
mod process;
mod table;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use self::exposition::Exposition;
use self::process::Process;
pub use self::table::Described;

/// Labels of a source's figures.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabels {
    /// The source.
    pub source: String,
    /// The stream it writes.
    pub stream: String,
}

/// Labels of a group's figures.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GroupLabels {
    /// The stream it reads.
    pub stream: String,
    /// The group.
    pub group: String,
}

/// Labels of an actor's figures.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ComponentLabels {
    /// `sink.db`
    pub component: String,
}

/// Why spans were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    /// `queue`: it was full. `collector`: it could not be reached, or refused them.
    pub reason: &'static str,
}

/// Labels of the requests to a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The source.
    pub source: String,
    /// The HTTP status of the answer.
    pub status: u16,
}

/// Labels of the seconds that requests to a source take.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestedLabels {
    /// The source.
    pub source: String,
}

/// An event whose trace shows what a figure means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Exemplar {
    /// Its trace.
    pub trace_id: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;
/// A histogram of events, some of which can be looked at.
pub type Ages = HistogramWithExemplars<Exemplar>;

const OF_SOURCE: &[&str] = &["source", "stream"];
const OF_GROUP: &[&str] = &["stream", "group"];
const OF_COMPONENT: &[&str] = &["component"];

/// Everything that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
    described: Vec<Described>,
    named: Mutex<HashMap<String, Counter>>,
    /// Events a source made durable.
    pub published: Family<SourceLabels, Counter>,
    /// Events handed to a sink or stream, again included.
    pub delivered: Family<GroupLabels, Counter>,
    /// Events a sink or stream confirmed.
    pub stored: Family<GroupLabels, Counter>,
    /// Refusals by a sink, each attempt counted.
    pub refused: Family<GroupLabels, Counter>,
    /// Events given up.
    pub dead: Family<GroupLabels, Counter>,
    /// Times an actor was started anew.
    pub restarts: Family<ComponentLabels, Counter>,
    /// Events that no member was given yet.
    pub lag: Family<GroupLabels, Gauge>,
    /// Events that members hold.
    pub pending: Family<GroupLabels, Gauge>,
    /// Events in one write of a sink or stream.
    pub batch_events: Histograms<ComponentLabels>,
    /// Seconds from acceptance to storage.
    pub storage_seconds: Family<GroupLabels, Ages, fn() -> Ages>,
    /// Seconds from a batch of a source to its durability.
    pub publish_seconds: Histograms<SourceLabels>,
    /// Batches of a source that its stream did not take.
    pub publish_failures: Family<SourceLabels, Counter>,
    /// Seconds of one write of a sink or stream.
    pub write_seconds: Histograms<ComponentLabels>,
    /// Writes of a sink or stream that failed.
    pub write_failures: Family<ComponentLabels, Counter>,
    /// Requests to a source, by the status of the answer.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds until a request was answered.
    pub request_seconds: Histograms<RequestedLabels>,
    /// Whether an actor works.
    pub up: Family<ComponentLabels, Gauge>,
    /// Spans the collector took.
    pub spans_exported: Counter,
    /// Spans that were lost.
    pub spans_dropped: Family<DropLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let mut described = Vec::new();
        macro_rules! declare {
            ($name:literal, $labels:expr, $unit:literal, $doc:literal, $metric:expr) => {{
                let metric = $metric;
                let (name, kind) = (concat!("aqueduct_", $name), kind(&metric));
                described.push(Described { name, kind, labels: $labels, unit: $unit, doc: $doc });
                registry.register(name, $doc, metric.clone());
                metric
            }};
        }
        let batch_sizes: fn() -> Histogram = || Histogram::new(exponential_buckets(1.0, 4.0, 8));
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 10));
        let ages: fn() -> Ages = || Ages::new(exponential_buckets(0.001, 4.0, 10));
        let published = declare!(
            "events_published",
            OF_SOURCE,
            "events",
            "Events a source made durable in its stream",
            Family::default()
        );
        let publish_failures = declare!(
            "publish_failures",
            OF_SOURCE,
            "batches",
            "Batches of a source that its stream did not take: it was away, full, or held another \
             checkpoint",
            Family::default()
        );
        let publish_seconds = declare!(
            "publish_seconds",
            OF_SOURCE,
            "seconds",
            "Seconds from a batch of a source until it is durable",
            Family::new_with_constructor(seconds)
        );
        let requests = declare!(
            "http_requests",
            &["source", "status"],
            "requests",
            "Requests to an http source or a trigger, by the status of the answer",
            Family::default()
        );
        let request_seconds = declare!(
            "http_request_seconds",
            &["source"],
            "seconds",
            "Seconds until a request to an http source or a trigger was answered",
            Family::new_with_constructor(seconds)
        );
        let delivered = declare!(
            "events_delivered",
            OF_GROUP,
            "events",
            "Events a group handed to its sink or stream, deliveries again included",
            Family::default()
        );
        let stored = declare!(
            "events_stored",
            OF_GROUP,
            "events",
            "Events a group's sink or stream confirmed as stored",
            Family::default()
        );
        let refused = declare!(
            "events_refused",
            OF_GROUP,
            "refusals",
            "Refusals of events by a group's sink, each attempt counted",
            Family::default()
        );
        let dead = declare!(
            "dead_letters",
            OF_GROUP,
            "events",
            "Events a group gave up",
            Family::default()
        );
        let storage_seconds = declare!(
            "storage_seconds",
            OF_GROUP,
            "seconds",
            "Seconds from the acceptance of an event to its storage; with exemplars that carry the \
             `trace_id` of one",
            Family::new_with_constructor(ages)
        );
        let lag = declare!(
            "group_lag",
            OF_GROUP,
            "events",
            "Events of the stream that no member of the group was given yet",
            Family::default()
        );
        let pending = declare!(
            "group_pending",
            OF_GROUP,
            "events",
            "Events that members of the group hold and have not acknowledged",
            Family::default()
        );
        let batch_events = declare!(
            "batch_events",
            OF_COMPONENT,
            "events",
            "Events in one write of a sink or stream, or one fetch of a group's member",
            Family::new_with_constructor(batch_sizes)
        );
        let write_seconds = declare!(
            "write_seconds",
            OF_COMPONENT,
            "seconds",
            "Seconds of one write of a sink or stream",
            Family::new_with_constructor(seconds)
        );
        let write_failures = declare!(
            "write_failures",
            OF_COMPONENT,
            "writes",
            "Writes of a sink or stream that failed as a whole, and are done again",
            Family::default()
        );
        let restarts = declare!(
            "restarts",
            OF_COMPONENT,
            "restarts",
            "Times an actor was started anew after an error or a panic",
            Family::default()
        );
        let up = declare!(
            "component_up",
            OF_COMPONENT,
            "0 or 1",
            "Whether an actor works",
            Family::default()
        );
        let spans_exported = declare!(
            "spans_exported",
            &[],
            "spans",
            "Spans that the collector of `[tracing]` took",
            Counter::default()
        );
        let spans_dropped = declare!(
            "spans_dropped",
            &["reason"],
            "spans",
            "Spans that were lost: the `queue` was full, or the `collector` did not take them",
            Family::default()
        );
        registry.register_collector(Box::new(Process::new()));
        described.extend(Process::described());
        Self {
            registry: Mutex::new(registry),
            described,
            named: Mutex::default(),
            published,
            delivered,
            stored,
            refused,
            dead,
            restarts,
            lag,
            pending,
            batch_events,
            storage_seconds,
            publish_seconds,
            publish_failures,
            write_seconds,
            write_failures,
            requests,
            request_seconds,
            up,
            spans_exported,
            spans_dropped,
        }
    }
}

fn kind(metric: &impl EncodeMetric) -> &'static str {
    match metric.metric_type() {
        MetricType::Counter => "counter",
        MetricType::Gauge => "gauge",
        MetricType::Histogram => "histogram",
        MetricType::Info => "info",
        MetricType::Unknown => "unknown",
    }
}

impl Metrics {
    /// The counter a user named with `counter = "…"`; the same one for the same name.
    pub fn named(&self, name: &str, doc: &str) -> Counter {
        // The encoder adds `_total` to every counter's name.
        let name = name.strip_suffix("_total").unwrap_or(name);
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = named.get(name) {
            return counter.clone();
        }
        let counter = Counter::default();
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register(name, doc, counter.clone());
        named.insert(name.to_owned(), counter.clone());
        counter
    }

    /// All of it, written as asked for.
    pub fn encode(&self, exposition: Exposition) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        match exposition {
            Exposition::OpenMetrics => Ok(text),
            Exposition::Text => Ok(exposition::older(&text)),
        }
    }

    /// What there is, in the order of the documentation.
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// The table of it all in the documentation, in Markdown.
    pub fn table(&self) -> String {
        table::markdown(&self.described)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
