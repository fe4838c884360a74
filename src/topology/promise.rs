//! What each route promises, derived from what its parts declare they can do.

use std::fmt;

use super::Topology;
use crate::sink::SinkSpec;
use crate::source::SourceSpec;
use crate::stream::{GroupSpec, StreamSpec};

/// Routes that are followed, at most: streams that part and meet again have very many.
pub const ROUTES_MAX: usize = 1000;

/// A way that events take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The names on the way: a source, unless another program writes the stream; streams; a sink,
    /// unless no group reads the last stream.
    pub path: Vec<String>,
    /// What holds at its end.
    pub promise: Promise,
}

/// What holds at the end of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every event is stored once, whatever is killed on the way; `ordered`: and in the order of
    /// its shard.
    ExactlyOnce {
        /// Every group on the way is ordered.
        ordered: bool,
    },
    /// Every event is stored, some perhaps more than once, for these reasons.
    AtLeastOnce(Vec<String>),
    /// Every event is kept in the stream where the route ends.
    Kept,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.join(" → "), self.promise)
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Promise::ExactlyOnce { ordered: false } => f.write_str("exactly once"),
            Promise::ExactlyOnce { ordered: true } => f.write_str("exactly once, in order"),
            Promise::AtLeastOnce(why) => {
                write!(f, "at least once, because {}", why.join(", and "))
            }
            Promise::Kept => f.write_str("kept in the stream, no group reads it"),
        }
    }
}

/// The routes of a topology and their promises, in the order of the file: at most [`ROUTES_MAX`].
pub fn routes(topology: &Topology) -> Vec<Route> {
    let mut walk = Walk { topology, routes: Vec::new() };
    for source in &topology.sources {
        if let Some(stream) = topology.stream(&source.to) {
            walk.follow(stream, Way::from_source(source));
        }
    }
    for stream in &topology.streams {
        let name = &*stream.name;
        let written = topology.sources.iter().any(|source| source.to == name)
            || topology.groups.iter().any(|group| group.to == name);
        if !written && !stream.groups.is_empty() {
            walk.follow(stream, Way::from_elsewhere(stream));
        }
    }
    walk.routes
}

/// The way so far.
#[derive(Clone)]
struct Way {
    path: Vec<String>,
    doubts: Vec<String>,
    ordered: bool,
}

impl Way {
    fn from_source(source: &SourceSpec) -> Self {
        let mut doubts = Vec::new();
        if !source.kind.capabilities.identity {
            doubts.push(format!(
                "`{}` ({}) cannot tell an event that comes again from a new one",
                source.name, source.kind.name
            ));
        }
        Self { path: vec![source.name.to_string()], doubts, ordered: true }
    }

    /// Another program writes the stream.
    fn from_elsewhere(stream: &StreamSpec) -> Self {
        let mut doubts = Vec::new();
        if !stream.kind.capabilities.foreign_identity {
            doubts.push(format!(
                "what other programs put into `{}` ({}) need not have an id",
                stream.name, stream.kind.name
            ));
        }
        Self { path: Vec::new(), doubts, ordered: true }
    }

    fn promise(self, sink: &SinkSpec) -> Promise {
        let mut doubts = self.doubts;
        if let Err(why) = sink.kind.capabilities.idempotent {
            doubts.push(format!("`{}` ({}) {why}", sink.name, sink.kind.name));
        }
        match doubts.is_empty() {
            true => Promise::ExactlyOnce { ordered: self.ordered },
            false => Promise::AtLeastOnce(doubts),
        }
    }
}

struct Walk<'a> {
    topology: &'a Topology,
    routes: Vec<Route>,
}

impl Walk<'_> {
    /// Follows a stream to every end it has. Streams have no circles: `check` saw to that.
    fn follow(&mut self, stream: &StreamSpec, mut way: Way) {
        way.path.push(stream.name.to_string());
        if stream.groups.is_empty() {
            self.end(way.path, Promise::Kept);
            return;
        }
        for group in &stream.groups {
            if self.routes.len() >= ROUTES_MAX {
                return;
            }
            let mut way = way.clone();
            way.ordered &= group.ordered;
            if let Some(next) = self.topology.stream(&group.to) {
                self.follow(next, way);
            } else if let Some(sink) = self.topology.sink(&group.to) {
                let path = [way.path.as_slice(), &[sink_name(stream, group)]].concat();
                let promise = way.promise(sink);
                self.end(path, promise);
            }
        }
    }

    fn end(&mut self, path: Vec<String>, promise: Promise) {
        if self.routes.len() < ROUTES_MAX {
            self.routes.push(Route { path, promise });
        }
    }
}

/// The sink; and by which group, where several groups carry one stream to it.
fn sink_name(stream: &StreamSpec, group: &GroupSpec) -> String {
    let alike = stream.groups.iter().filter(|other| other.to == group.to).count();
    if alike > 1 { format!("{} (by {})", group.to, group.name) } else { group.to.clone() }
}

/// Every sink that events of this stream come to.
pub(super) fn reached<'a>(topology: &'a Topology, stream: &str) -> Vec<&'a SinkSpec> {
    let mut streams = vec![stream];
    let mut sinks: Vec<&SinkSpec> = Vec::new();
    let mut next = 0;
    while let Some(stream) = streams.get(next).copied() {
        next += 1;
        for group in topology.groups.iter().filter(|group| group.from == stream) {
            if let Some(sink) = topology.sink(&group.to) {
                if !sinks.iter().any(|known| known.name == sink.name) {
                    sinks.push(sink);
                }
            } else if !streams.contains(&group.to.as_str()) {
                streams.push(&group.to);
            }
        }
    }
    sinks
}
