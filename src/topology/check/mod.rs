//! Checking: from the values of all layers to a [`Topology`], or everything that is wrong.

mod build;
mod claims;
mod components;
mod limits;
mod relations;

use std::collections::HashSet;

use super::Topology;
use super::env::Environment;
use super::fault::{self, Fault, Faults};
use super::places::Places;
use super::read::{self, Layers};
use super::tables::Kinds;
use crate::spec::{Room, Values};
use crate::{sink, source, stream};

/// A component as far as it could be read.
struct Part<K: 'static> {
    name: String,
    /// Its kind, where that is known; of a group, the kind of the stream it reads.
    kind: Option<&'static K>,
    values: Values,
    /// All of its kind's own keys could be read.
    sound: bool,
}

impl<K> Part<K> {
    fn path<'a>(&'a self, room: Room, key: &'a str) -> [&'a str; 3] {
        [room.noun(), &self.name, key]
    }
}

/// A whole file as far as it could be read.
struct Draft {
    kinds: Kinds,
    runtime: Values,
    http: Option<Values>,
    tracing: Option<Values>,
    sources: Vec<Part<source::Kind>>,
    streams: Vec<Part<stream::Kind>>,
    groups: Vec<Part<stream::Kind>>,
    sinks: Vec<Part<sink::Kind>>,
    queries: Vec<Part<()>>,
}

impl Draft {
    fn stream(&self, name: &str) -> Option<&Part<stream::Kind>> {
        self.streams.iter().find(|part| part.name == name)
    }

    fn sink(&self, name: &str) -> Option<&Part<sink::Kind>> {
        self.sinks.iter().find(|part| part.name == name)
    }

    /// The streams and sinks that a source or a group of the file writes.
    fn written(&self) -> HashSet<&str> {
        let sources = self.sources.iter().map(|part| part.values.str("to"));
        sources.chain(self.groups.iter().map(|part| part.values.str("to"))).collect()
    }

    /// The sinks that a query of the file reads.
    fn queried(&self) -> HashSet<&str> {
        self.queries.iter().map(|part| part.values.str("sink")).collect()
    }

    /// The streams that a group of the file reads.
    fn read(&self) -> HashSet<&str> {
        self.groups.iter().map(|part| part.values.str("from")).collect()
    }

    fn has(&self, room: Room, name: &str) -> bool {
        fn of<K>(parts: &[Part<K>], name: &str) -> bool {
            parts.iter().any(|part| part.name == name)
        }
        match room {
            Room::Source => of(&self.sources, name),
            Room::Stream => of(&self.streams, name),
            Room::Group => of(&self.groups, name),
            Room::Sink => of(&self.sinks, name),
            Room::Query => of(&self.queries, name),
            Room::SinkOrStream => of(&self.sinks, name) || of(&self.streams, name),
        }
    }

    /// The names of a table's components, in the order of the file.
    fn names(&self, room: Room) -> Vec<&str> {
        fn of<K>(parts: &[Part<K>]) -> Vec<&str> {
            parts.iter().map(|part| part.name.as_str()).collect()
        }
        match room {
            Room::Source => of(&self.sources),
            Room::Stream => of(&self.streams),
            Room::Group => of(&self.groups),
            Room::Sink => of(&self.sinks),
            Room::Query => of(&self.queries),
            Room::SinkOrStream => [of(&self.sinks), of(&self.streams)].concat(),
        }
    }
}

/// What is found on the way.
struct Findings {
    places: Places,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
}

impl Findings {
    /// A fault of the value at `path`, or of the nearest table around it.
    fn fault(&mut self, path: &[&str], message: String) {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        self.faults.push(self.places.fault(&path, false, message));
    }

    /// The same, placed at the key.
    fn fault_at_key(&mut self, path: &[&str], message: String) {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        self.faults.push(self.places.fault(&path, true, message));
    }

    /// Something that works and is likely not meant.
    fn warn(&mut self, path: &[&str], message: String) {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        self.warnings.push(self.places.fault(&path, false, message));
    }
}

/// Reads and checks a whole file.
pub(super) fn check(
    file: &str,
    text: &str,
    env: &Environment,
    kinds: Kinds,
) -> Result<Topology, Faults> {
    let wrong = |mut faults: Vec<Fault>| {
        fault::sort(&mut faults);
        Faults { file: file.to_owned(), faults }
    };
    let Layers { values, places, faults } = read::read(text, env, kinds).map_err(wrong)?;
    let mut findings = Findings { places, faults, warnings: Vec::new() };
    let mut draft = components::draft(&values, kinds, &mut findings);
    limits::check(&draft, &mut findings);
    limits::log(&mut draft.runtime, env, &mut findings);
    relations::check(&draft, &mut findings);
    claims::check(&draft, &mut findings);
    let mut topology = build::build(file, &draft);
    claims::kinds(&draft, &topology, &mut findings);
    if !findings.faults.is_empty() {
        return Err(wrong(findings.faults));
    }
    fault::sort(&mut findings.warnings);
    topology.warnings = findings.warnings;
    topology.places = findings.places.into();
    Ok(topology)
}
