//! What is counted, in Prometheus' terms. One table (`table.rs`) names and explains all of it; the
//! one in the documentation is made from it.

mod exposition;
pub mod process;
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
use prometheus_client::registry::{Metric, Registry};

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

/// Labels of a query's figures.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    /// The query.
    pub query: String,
}

/// Labels of a query's answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryStatusLabels {
    /// The query.
    pub query: String,
    /// The HTTP status.
    pub status: u16,
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

/// Of edits of the topology file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReloadLabels {
    /// `applied` or `refused`
    pub result: &'static str,
}

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
    /// Requests of a query, by the status of the answer.
    pub query_requests: Family<QueryStatusLabels, Counter>,
    /// Answers of a query that its cache had.
    pub query_cache_hits: Family<QueryLabels, Counter>,
    /// Answers of a query that its cache did not have.
    pub query_cache_misses: Family<QueryLabels, Counter>,
    /// Seconds a query took to be answered.
    pub query_seconds: Histograms<QueryLabels>,
    /// Whether an actor works.
    pub up: Family<ComponentLabels, Gauge>,
    /// Edits of the topology file.
    pub reloads: Family<ReloadLabels, Counter>,
    /// The generation of what runs.
    pub generation: Gauge,
    /// Whether the last edit was refused.
    pub refused_edit: Gauge,
    /// Spans the collector took.
    pub spans_exported: Counter,
    /// Spans that were lost.
    pub spans_dropped: Family<DropLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let batch_sizes: fn() -> Histogram = || Histogram::new(exponential_buckets(1.0, 4.0, 8));
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 10));
        let ages: fn() -> Ages = || Ages::new(exponential_buckets(0.001, 4.0, 10));
        let mut table = Declared::default();
        let mut metrics = Self {
            published: table.declare(table::PUBLISHED, Family::default()),
            publish_failures: table.declare(table::PUBLISH_FAILURES, Family::default()),
            publish_seconds: table
                .declare(table::PUBLISH_SECONDS, Family::new_with_constructor(seconds)),
            requests: table.declare(table::REQUESTS, Family::default()),
            request_seconds: table
                .declare(table::REQUEST_SECONDS, Family::new_with_constructor(seconds)),
            delivered: table.declare(table::DELIVERED, Family::default()),
            stored: table.declare(table::STORED, Family::default()),
            refused: table.declare(table::REFUSED, Family::default()),
            dead: table.declare(table::DEAD, Family::default()),
            storage_seconds: table
                .declare(table::STORAGE_SECONDS, Family::new_with_constructor(ages)),
            lag: table.declare(table::LAG, Family::default()),
            pending: table.declare(table::PENDING, Family::default()),
            batch_events: table
                .declare(table::BATCH_EVENTS, Family::new_with_constructor(batch_sizes)),
            write_seconds: table
                .declare(table::WRITE_SECONDS, Family::new_with_constructor(seconds)),
            write_failures: table.declare(table::WRITE_FAILURES, Family::default()),
            restarts: table.declare(table::RESTARTS, Family::default()),
            query_requests: table.declare(table::QUERY_REQUESTS, Family::default()),
            query_cache_hits: table.declare(table::QUERY_CACHE_HITS, Family::default()),
            query_cache_misses: table.declare(table::QUERY_CACHE_MISSES, Family::default()),
            query_seconds: table
                .declare(table::QUERY_SECONDS, Family::new_with_constructor(seconds)),
            up: table.declare(table::UP, Family::default()),
            reloads: table.declare(table::RELOADS, Family::default()),
            generation: table.declare(table::GENERATION, Gauge::default()),
            refused_edit: table.declare(table::REFUSED_EDIT, Gauge::default()),
            spans_exported: table.declare(table::SPANS_EXPORTED, Counter::default()),
            spans_dropped: table.declare(table::SPANS_DROPPED, Family::default()),
            registry: Mutex::default(),
            described: Vec::new(),
            named: Mutex::default(),
        };
        table.registry.register_collector(Box::new(Process::new()));
        metrics.described = table.described.into_iter().chain(Process::described()).collect();
        metrics.registry = Mutex::new(table.registry);
        metrics
    }
}

/// What was declared so far.
#[derive(Default)]
struct Declared {
    registry: Registry,
    described: Vec<Described>,
}

impl Declared {
    fn declare<M: Metric + Clone>(&mut self, described: Described, metric: M) -> M {
        self.described.push(Described { kind: kind(&metric), ..described });
        self.registry.register(described.name, described.doc, metric.clone());
        metric
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
