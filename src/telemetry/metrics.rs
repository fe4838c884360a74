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

/// Why spans were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    /// `queue`: it was full. `collector`: it could not be reached, or refused them.
    pub reason: &'static str,
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
    /// Spans the collector took.
    pub spans_exported: Counter,
    /// Spans that were lost.
    pub spans_dropped: Family<DropLabels, Counter>,
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
            spans_exported: declare!(
                "spans_exported",
                "Spans that the collector of [tracing] took",
                Counter::default()
            ),
            spans_dropped: declare!(
                "spans_dropped",
                "Spans that were lost because the queue was full or the collector did not take them",
                Family::default()
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
