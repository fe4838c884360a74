//! The topology that runs now, and what became of the last edit of its file.

use std::sync::Arc;

use super::Topology;

/// What runs: replaced as a whole by every edit that is applied, and by every one that is refused.
#[derive(Clone, Debug)]
pub struct Edition {
    /// 1 for what the process started with; one more with each edit that was applied.
    pub generation: u64,
    /// What runs.
    pub topology: Arc<Topology>,
    /// Since when, in microseconds since 1970 UTC.
    pub since_us: i64,
    /// The last edit, where it was refused: what runs is older than the file.
    pub refused: Option<Refused>,
}

/// An edit that changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// When, in microseconds since 1970 UTC.
    pub time_us: i64,
    /// What is wrong with it: lines `file:line:column: what`.
    pub faults: Vec<String>,
}

impl Edition {
    /// What a process starts with.
    pub fn first(topology: Arc<Topology>) -> Self {
        Self { generation: 1, topology, since_us: crate::event::now_us(), refused: None }
    }

    /// What runs once an edit is applied to it.
    pub fn next(&self, topology: Arc<Topology>) -> Self {
        Self { generation: self.generation + 1, ..Self::first(topology) }
    }

    /// The same, with the news that an edit of it was refused.
    pub fn with_refused(&self, faults: Vec<String>) -> Self {
        let refused = Refused { time_us: crate::event::now_us(), faults };
        Self { refused: Some(refused), ..self.clone() }
    }
}
