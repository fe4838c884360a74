//! What is counted, in Prometheus' terms. One table, [`Metrics::default`], names and explains
//! all of it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

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

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
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
    pub storage_seconds: Histograms<GroupLabels>,
    /// Requests of a query, by the status of the answer.
    pub query_requests: Family<QueryStatusLabels, Counter>,
    /// Answers of a query that its cache had.
    pub query_cache_hits: Family<QueryLabels, Counter>,
    /// Answers of a query that its cache did not have.
    pub query_cache_misses: Family<QueryLabels, Counter>,
    /// Seconds a query took to be answered.
    pub query_seconds: Histograms<QueryLabels>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        macro_rules! declare {
            ($name:literal, $doc:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register(concat!("aqueduct_", $name), $doc, metric.clone());
                metric
            }};
        }
        let batch_sizes: fn() -> Histogram = || Histogram::new(exponential_buckets(1.0, 4.0, 8));
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 10));
        Self {
            published: declare!(
                "events_published",
                "Events a source made durable in its stream",
                Family::default()
            ),
            delivered: declare!(
                "events_delivered",
                "Events a group handed to its sink or stream, deliveries again included",
                Family::default()
            ),
            stored: declare!(
                "events_stored",
                "Events a group's sink or stream confirmed as stored",
                Family::default()
            ),
            refused: declare!(
                "events_refused",
                "Refusals of events by a group's sink, each attempt counted",
                Family::default()
            ),
            dead: declare!("dead_letters", "Events a group gave up", Family::default()),
            restarts: declare!(
                "restarts",
                "Times an actor was started anew after an error or a panic",
                Family::default()
            ),
            lag: declare!(
                "group_lag",
                "Events of the stream that no member of the group was given yet",
                Family::default()
            ),
            pending: declare!(
                "group_pending",
                "Events that members of the group hold and have not acknowledged",
                Family::default()
            ),
            batch_events: declare!(
                "batch_events",
                "Events in one write of a sink or stream",
                Family::new_with_constructor(batch_sizes)
            ),
            storage_seconds: declare!(
                "storage_seconds",
                "Seconds from the acceptance of an event to its storage",
                Family::new_with_constructor(seconds)
            ),
            query_requests: declare!(
                "query_requests",
                "Requests of a query, by the status of the answer",
                Family::default()
            ),
            query_cache_hits: declare!(
                "query_cache_hits",
                "Answers of a query that came from its cache",
                Family::default()
            ),
            query_cache_misses: declare!(
                "query_cache_misses",
                "Answers of a query that its cache did not have",
                Family::default()
            ),
            query_seconds: declare!(
                "query_seconds",
                "Seconds until a query was answered",
                Family::new_with_constructor(seconds)
            ),
            named: Mutex::default(),
            registry: Mutex::new(registry),
        }
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

    /// All of it in Prometheus' text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
