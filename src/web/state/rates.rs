//! How many events pass each edge: read from the counters once a second, and kept for a minute.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;

use super::{EdgeNow, HISTORY};
use crate::spec::Room;
use crate::telemetry::metrics::{GroupLabels, Metrics, SourceLabels};
use crate::topology::Topology;
use crate::topology::graph::Placed;

/// Seconds that a rate is the mean of.
const MEAN: usize = 3;

/// What an edge is known by, also when the topology is another one: its two ends.
type Ends = (String, String);

/// The edges' counters and what they showed.
#[derive(Default)]
pub(super) struct Rates {
    edges: HashMap<Ends, Rate>,
    sampled: Option<Instant>,
}

/// One edge.
#[derive(Default)]
struct Rate {
    labels: Option<Labels>,
    counter: Option<Counter>,
    total: u64,
    history: VecDeque<f64>,
}

/// Which counter counts it.
enum Labels {
    Published(SourceLabels),
    Delivered(GroupLabels),
    Stored(GroupLabels),
}

impl Labels {
    /// The counter, where anything runs here that counts.
    fn find(&self, metrics: &Metrics) -> Option<Counter> {
        match self {
            Self::Published(labels) => metrics.published.get(labels).map(|it| it.clone()),
            Self::Delivered(labels) => metrics.delivered.get(labels).map(|it| it.clone()),
            Self::Stored(labels) => metrics.stored.get(labels).map(|it| it.clone()),
        }
    }
}

impl Rates {
    /// Counts on these edges from now on; what is known of those that stay is kept.
    pub fn follow(&mut self, topology: &Topology, placed: &Placed) {
        let mut before = std::mem::take(&mut self.edges);
        for edge in &placed.edges {
            let (from, to) = (&placed.nodes[edge.from], &placed.nodes[edge.to]);
            let group = |name: &str| {
                let spec = topology.groups.iter().find(|group| *group.name == *name)?;
                Some(GroupLabels { stream: spec.from.clone(), group: name.to_owned() })
            };
            let labels = match (from.room, to.room) {
                (Room::Source, _) => Some(Labels::Published(SourceLabels {
                    source: from.name.clone(),
                    stream: to.name.clone(),
                })),
                (Room::Stream, _) => group(&to.name).map(Labels::Delivered),
                (Room::Group, _) => group(&from.name).map(Labels::Stored),
                _ => None,
            };
            let ends = ends(placed, edge.from, edge.to);
            let mut rate = before.remove(&ends).unwrap_or_default();
            (rate.labels, rate.counter) = (labels, None);
            self.edges.insert(ends, rate);
        }
    }

    /// Reads every counter.
    pub fn sample(&mut self, metrics: &Metrics) {
        let passed = self.sampled.replace(Instant::now()).map(|before| before.elapsed());
        for rate in self.edges.values_mut() {
            if rate.counter.is_none() {
                rate.counter = rate.labels.as_ref().and_then(|labels| labels.find(metrics));
                // What came before anybody counted came in no second.
                rate.total = rate.counter.as_ref().map_or(0, Counter::get);
                if rate.history.is_empty() {
                    continue;
                }
            }
            let total = rate.counter.as_ref().map_or(rate.total, Counter::get);
            let events = total.saturating_sub(rate.total) as f64;
            rate.total = total;
            let Some(passed) = passed else { continue };
            if rate.history.len() >= HISTORY {
                rate.history.pop_front();
            }
            rate.history.push_back(tenths(events / passed.as_secs_f64().max(0.001)));
        }
    }

    /// How much passes an edge, and did in each second of the last minute.
    pub fn of(&self, placed: &Placed, from: usize, to: usize) -> (EdgeNow, Vec<f64>) {
        let Some(rate) = self.edges.get(&ends(placed, from, to)) else {
            return (EdgeNow::default(), Vec::new());
        };
        let last = rate.history.back().copied().unwrap_or_default();
        let recent = rate.history.iter().rev().take(MEAN);
        let mean = recent.clone().sum::<f64>() / recent.count().max(1) as f64;
        let total = rate.counter.as_ref().map(Counter::get);
        let now = EdgeNow { total, rate: tenths(mean), last };
        (now, rate.history.iter().copied().collect())
    }
}

fn ends(placed: &Placed, from: usize, to: usize) -> Ends {
    let id = |at: usize| format!("{}.{}", placed.nodes[at].room.noun(), placed.nodes[at].name);
    (id(from), id(to))
}

/// Rounded: nobody reads more, and it travels every second.
pub(super) fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}
