//! Makes a [`State`] of what the edition, the board, the streams and the counters say.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::rates::{Rates, tenths};
use super::{About, Edge, MEMBERS_MAX, Node, NodeNow, Now, Refused, State, Waiting, settings};
use crate::event::now_us;
use crate::spec::Room;
use crate::stream::{GroupStatus, StreamStatus};
use crate::telemetry::board::{Board, Component, State as Doing, Trouble};
use crate::telemetry::metrics::{GroupLabels, process};
use crate::topology::Tracing;
use crate::topology::edition::Edition;
use crate::topology::graph::{Placed, place};
use crate::topology::promise::routes;

/// What was last heard of those who have to be asked.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Streams that are open here.
    pub streams: Vec<StreamStatus>,
    /// Queries that could not be answered.
    pub queries: Vec<Trouble>,
}

/// Where the traces of a topology are shown.
pub type FindJaeger = Box<dyn Fn(Option<&Tracing>) -> Option<String>>;

/// Makes states, one after the other.
pub struct Builder {
    board: Arc<Board>,
    jaeger: FindJaeger,
    about: About,
    shape: u64,
    edition: Arc<Edition>,
    placed: Placed,
    settings: Vec<settings::Settings>,
    rates: Rates,
    /// Processor time, and when it was read.
    cpu: Option<(f64, Instant)>,
    busy: f64,
}

impl Builder {
    /// A builder that knows no rates yet. `jaeger`: where the traces of a topology are shown.
    pub fn new(board: Arc<Board>, edition: Arc<Edition>, jaeger: FindJaeger) -> Self {
        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            file: edition.topology.file.display().to_string(),
            instance: edition.topology.runtime.instance.clone(),
            started_us: edition.since_us,
            generation: edition.generation,
            since_us: edition.since_us,
            refused: None,
            token: false,
            jaeger: None,
            service: None,
            promises: Vec::new(),
        };
        let placed = place(&edition.topology);
        let (settings, rates) = (Vec::new(), Rates::default());
        let mut builder = Self {
            board,
            jaeger,
            about,
            shape: 0,
            edition: edition.clone(),
            placed,
            settings,
            rates,
            cpu: None,
            busy: 0.0,
        };
        builder.turn(edition);
        builder
    }

    /// What it reads.
    pub fn board(&self) -> Arc<Board> {
        self.board.clone()
    }

    /// Another edition runs, or one was refused.
    pub fn turn(&mut self, edition: Arc<Edition>) {
        let topology = &edition.topology;
        self.shape += 1;
        self.placed = place(topology);
        self.rates.follow(topology, &self.placed);
        self.settings = settings_of(&edition);
        self.about.generation = edition.generation;
        self.about.since_us = edition.since_us;
        self.about.refused = edition
            .refused
            .as_ref()
            .map(|it| Refused { time_us: it.time_us, faults: it.faults.clone() });
        let asked = topology.http.as_ref().is_some_and(|http| !http.tokens.is_empty());
        self.about.token = asked;
        self.about.jaeger = (self.jaeger)(topology.tracing.as_ref());
        self.about.service = topology.tracing.as_ref().map(|tracing| tracing.service.clone());
        self.about.promises = routes(topology).iter().map(ToString::to_string).collect();
        self.edition = edition;
    }

    /// Reads the counters; to be called once a second, also while nobody looks.
    pub fn sample(&mut self) {
        self.rates.sample(&self.board.metrics);
        let used = process::cpu_seconds();
        if let Some((before, at)) = self.cpu.replace((used, Instant::now())) {
            self.busy = (used - before) / at.elapsed().as_secs_f64().max(0.001);
        }
    }

    /// Everything, as it is now.
    pub fn state(&self, seen: &Seen) -> State {
        let placed = &self.placed;
        let mut edges: Vec<Edge> = Vec::with_capacity(placed.edges.len());
        for edge in &placed.edges {
            let (now, history) = self.rates.of(placed, edge.from, edge.to);
            let passes = edge.passes.iter().map(|(column, y)| (*column, rounded(*y))).collect();
            edges.push(Edge { from: edge.from, to: edge.to, passes, history, now });
        }
        let mut nodes = self.nodes(seen);
        count(&mut nodes, &edges);
        self.wait(&mut nodes, seen);
        let now = self.now(&nodes, &edges, seen);
        State {
            shape: self.shape,
            about: self.about.clone(),
            nodes,
            edges,
            columns: placed.columns,
            height: rounded(placed.height),
            now,
        }
    }

    fn nodes(&self, seen: &Seen) -> Vec<Node> {
        let mut actors: HashMap<(&str, &str), Vec<&Component>> = HashMap::new();
        let all = self.board.all();
        for component in &all {
            let key = (component.room.noun(), &*component.name);
            actors.entry(key).or_default().push(component);
        }
        let placed = self.placed.nodes.iter().zip(&self.settings);
        let nodes = placed.map(|(placed, settings)| {
            let room = placed.room.noun();
            let actors = actors.get(&(room, &*placed.name)).map_or(&[][..], Vec::as_slice);
            let mut now = working(actors);
            match placed.room {
                Room::Stream => self.of_stream(&mut now, &placed.name, seen),
                Room::Group => self.of_group(&mut now, &placed.name, seen),
                Room::Query => of_query(&mut now, &placed.name, seen),
                _ => {}
            }
            Node {
                id: format!("{room}.{}", placed.name),
                room: room.to_owned(),
                name: placed.name.clone(),
                detail: placed.detail.clone(),
                settings: settings.clone(),
                column: placed.column,
                y: rounded(placed.y),
                now,
            }
        });
        nodes.collect()
    }

    fn of_stream(&self, now: &mut NodeNow, name: &str, seen: &Seen) {
        let Some(status) = seen.streams.iter().find(|status| status.stream == name) else { return };
        now.length = status.length;
        now.shards = status.shards.clone();
        let groups = &self.edition.topology.groups;
        let known = |it: &GroupStatus| groups.iter().any(|g| *g.name == *it.name && g.from == name);
        now.others = (status.groups.iter())
            .filter(|group| !known(group))
            .map(|group| Waiting {
                name: group.name.clone(),
                lag: group.lag,
                pending: group.pending,
            })
            .collect();
    }

    fn of_group(&self, now: &mut NodeNow, name: &str, seen: &Seen) {
        let Some(spec) = self.edition.topology.groups.iter().find(|group| *group.name == *name)
        else {
            return;
        };
        let labels = GroupLabels { stream: spec.from.clone(), group: name.to_owned() };
        let metrics = &self.board.metrics;
        now.refused = metrics.refused.get(&labels).map_or(0, |counter| counter.get());
        now.dead = metrics.dead.get(&labels).map_or(0, |counter| counter.get());
        let Some(status) = group_status(seen, &spec.from, name) else { return };
        now.lag = status.lag;
        now.pending = status.pending;
        now.oldest_us = status.oldest_us;
        now.members_count = status.consumers.len();
        now.members = status.consumers.iter().take(MEMBERS_MAX).cloned().collect();
    }

    /// What works itself waits where what it needs does not.
    fn wait(&self, nodes: &mut [Node], seen: &Seen) {
        let waits: Vec<Option<String>> = (nodes.iter())
            .enumerate()
            .map(|(at, node)| {
                if !matches!(&*node.now.state, "up" | "starting") {
                    return None;
                }
                let needs = self.placed.edges.iter().filter(|edge| edge.from == at);
                let target = needs.map(|edge| &nodes[edge.to]).next()?;
                match (&*node.room, &*target.now.state) {
                    ("source" | "group", "down" | "starting") => {
                        let why = target.now.cause.as_deref().unwrap_or("is starting");
                        Some(format!("waits for {}: {why}", target.id))
                    }
                    ("source", _) => self.full(&target.name, seen),
                    _ => None,
                }
            })
            .collect();
        for (node, wait) in nodes.iter_mut().zip(waits) {
            if let Some(cause) = wait {
                node.now.state = "waiting".to_owned();
                node.now.cause = Some(cause);
            }
        }
    }

    /// Why a stream takes nothing, where its slowest group is too far behind.
    fn full(&self, stream: &str, seen: &Seen) -> Option<String> {
        let spec = self.edition.topology.stream(stream)?;
        let status = seen.streams.iter().find(|status| status.stream == stream)?;
        let behind = |group: &GroupStatus| Some(group.lag? + group.pending?);
        let slowest = status.groups.iter().max_by_key(|group| behind(group))?;
        let behind = behind(slowest)?;
        (behind >= spec.max_backlog).then(|| {
            format!("stream.{stream} is full: group {} is {behind} events behind", slowest.name)
        })
    }

    fn now(&self, nodes: &[Node], edges: &[Edge], seen: &Seen) -> Now {
        let of = |room: &str| {
            let from = edges.iter().filter(|edge| nodes[edge.from].room == room);
            from.fold((0, 0.0), |(total, rate), edge| {
                (total + edge.now.total.unwrap_or(0), rate + edge.now.rate)
            })
        };
        let ((published, published_rate), (stored, stored_rate)) = (of("source"), of("group"));
        let mut troubles = self.board.troubles();
        troubles.extend(seen.queries.iter().cloned());
        Now {
            time_us: now_us(),
            healthy: troubles.is_empty(),
            troubles,
            published,
            published_rate: tenths(published_rate),
            stored,
            stored_rate: tenths(stored_rate),
            dead: nodes.iter().map(|node| node.now.dead).sum(),
            cpu: (self.busy * 1000.0).round() / 1000.0,
            memory_bytes: process::memory_bytes().map(|bytes| bytes as u64),
        }
    }
}

fn group_status<'s>(seen: &'s Seen, stream: &str, group: &str) -> Option<&'s GroupStatus> {
    let status = seen.streams.iter().find(|status| status.stream == stream)?;
    status.groups.iter().find(|status| status.name == group)
}

/// How several actors of one component are: as the worst of them.
fn working(actors: &[&Component]) -> NodeNow {
    let mut now = NodeNow { state: "elsewhere".to_owned(), ..NodeNow::default() };
    let mut worst = 0;
    for actor in actors {
        let (rank, state, cause) = match actor.state() {
            Doing::Down(cause) => (4, "down", Some(cause)),
            Doing::Starting => (3, "starting", None),
            Doing::Up => (2, "up", None),
            Doing::Done => (1, "done", None),
        };
        now.actors.0 += 1;
        now.actors.1 += u32::from(state == "up");
        now.restarts += actor.restarts();
        if rank > worst {
            worst = rank;
            now.state = state.to_owned();
            now.cause = cause.map(|cause| cause.to_string());
        }
        let later = |error: &crate::telemetry::board::LastError| {
            now.last_error.as_ref().is_none_or(|known| known.time_us < error.time_us)
        };
        if let Some(error) = actor.last_error().filter(later) {
            now.last_error = Some(error);
        }
    }
    now
}

fn of_query(now: &mut NodeNow, name: &str, seen: &Seen) {
    let trouble = seen.queries.iter().find(|it| it.name.strip_prefix("query.") == Some(name));
    now.state = if trouble.is_some() { "down" } else { "up" }.to_owned();
    now.cause = trouble.map(|trouble| trouble.cause.to_string());
}

/// What went through a node is what left it, or, at a sink or stream, what came.
fn count(nodes: &mut [Node], edges: &[Edge]) {
    for (at, node) in nodes.iter_mut().enumerate() {
        let leaves = matches!(&*node.room, "source" | "group");
        let mine = edges.iter().filter(|edge| (if leaves { edge.from } else { edge.to }) == at);
        for edge in mine {
            node.now.events += edge.now.total.unwrap_or(0);
            node.now.rate = tenths(node.now.rate + edge.now.rate);
        }
    }
}

fn settings_of(edition: &Edition) -> Vec<settings::Settings> {
    let topology = &edition.topology;
    let of_group = |group: &crate::stream::GroupSpec| {
        let keys = topology.stream(&group.from).map_or(&[][..], |it| it.kind.group_keys);
        settings::group(group, keys)
    };
    (topology.sources.iter().map(settings::source))
        .chain(topology.streams.iter().map(settings::stream))
        .chain(topology.groups.iter().map(of_group))
        .chain(topology.sinks.iter().map(settings::sink))
        .chain(topology.queries.iter().map(settings::query))
        .collect()
}

fn rounded(y: f64) -> f64 {
    (y * 1000.0).round() / 1000.0
}
