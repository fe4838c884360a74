//! The supervisor: builds the actors of a topology, last stage first, and stops them, first stage
//! first. Everything in between is the keepers' work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{
    Actor, Addr, ArbiterHandle, AsyncContext, Context, Handler, Recipient, ResponseFuture,
};
use futures_util::future::join_all;
use serde::Serialize;
use tokio::sync::watch;

use super::Shared;
use super::keeper::keep;
use super::member::{MemberActor, Target};
use super::message::{Drain, Exited, Inspect, Status};
use super::sink::SinkActor;
use super::source::SourceActor;
use super::stream::StreamActor;
use super::traced::Sends;
use crate::spec::Room;
use crate::stream::StreamStatus;
use crate::telemetry::board::{Component, LastError, State, Trouble};
use crate::telemetry::metrics::{ComponentLabels, GroupLabels};
use crate::topology::edition::Edition;
use crate::topology::{Topology, needs_http};

/// How long a stream may take to say how it is.
const STATUS_WAIT: Duration = Duration::from_secs(2);

/// Which sources and groups of the topology run in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// `source.NAME` and `group.NAME`; everything where it is empty.
    pub only: Vec<String>,
}

impl Part {
    /// Whether this source or group is among them.
    pub fn has(&self, room: Room, name: &str) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|only| *only == format!("{}.{name}", room.noun()))
    }
}

/// How the process is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// Every actor.
    pub components: Vec<ComponentStatus>,
    /// Every stream that this process has open, in the order of the file.
    pub streams: Vec<StreamStatus>,
    /// What does not work.
    pub troubles: Vec<Trouble>,
}

/// How an actor is.
#[derive(Clone, Debug, Serialize)]
pub struct ComponentStatus {
    /// `sink.db`, `group.writer/2`
    pub name: String,
    /// The kind of its plug-in.
    pub kind: &'static str,
    /// `starting`, `up`, `down` or `done`
    pub state: &'static str,
    /// How often it was started anew.
    pub restarts: u64,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
}

/// How a stop went.
#[derive(Clone, Debug, Default)]
pub struct Drained {
    /// What was cut off when the time was up.
    pub cut_off: Vec<String>,
}

type Kept<A> = (Addr<A>, Arc<Component>);

/// The one actor above all others.
pub struct Supervisor {
    /// What runs. Whoever serves it looks here.
    editions: watch::Sender<Arc<Edition>>,
    topology: Arc<Topology>,
    part: Part,
    shared: Shared,
    arbiters: Vec<ArbiterHandle>,
    next_arbiter: usize,
    sinks: BTreeMap<String, Kept<SinkActor>>,
    streams: BTreeMap<String, Kept<StreamActor>>,
    members: Vec<Kept<MemberActor>>,
    sources: Vec<Kept<SourceActor>>,
}

impl Supervisor {
    /// A supervisor that spreads the actors of the first edition over `arbiters`.
    pub fn new(
        editions: watch::Sender<Arc<Edition>>,
        part: Part,
        shared: Shared,
        arbiters: Vec<ArbiterHandle>,
    ) -> Self {
        let topology = editions.borrow().topology.clone();
        Self {
            editions,
            topology,
            part,
            shared,
            arbiters,
            next_arbiter: 0,
            sinks: BTreeMap::new(),
            streams: BTreeMap::new(),
            members: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// Starts what runs here: sinks, streams, members, sources. Each is handed its successor.
    fn start_all(&mut self, exits: Recipient<Exited>) {
        let topology = self.topology.clone();
        let groups: Vec<_> =
            topology.groups.iter().filter(|g| self.part.has(Room::Group, &g.name)).collect();
        let sources: Vec<_> =
            topology.sources.iter().filter(|s| self.part.has(Room::Source, &s.name)).collect();
        for spec in &topology.sinks {
            if groups.iter().any(|group| *group.to == *spec.name) {
                let component = self.component(Room::Sink, &spec.name, 1, spec.kind.name);
                let (actor, shared) = (spec.clone(), self.shared.clone());
                let kept = self.keep(&component, &exits, {
                    let component = component.clone();
                    move || SinkActor::new(actor, shared, component)
                });
                self.sinks.insert(spec.name.to_string(), (kept, component));
            }
        }
        for spec in &topology.streams {
            let used = groups.iter().any(|g| *g.to == *spec.name || *g.from == *spec.name)
                || sources.iter().any(|source| *source.to == *spec.name);
            if used {
                let component = self.component(Room::Stream, &spec.name, 1, spec.kind.name);
                let (actor, shared) = (spec.clone(), self.shared.clone());
                let mut writers = sources.iter().filter(|source| *source.to == *spec.name);
                let answers = writers.any(|it| needs_http(it.kind, &it.values).is_some());
                let kept = self.keep(&component, &exits, {
                    let component = component.clone();
                    move || StreamActor::new(actor, shared, component, answers)
                });
                self.streams.insert(spec.name.to_string(), (kept, component));
            }
        }
        for group in groups {
            for number in 1..=group.members {
                self.start_member(group, number, &exits);
            }
        }
        for spec in sources {
            for number in 1..=(spec.kind.instances)(&spec.values) {
                self.start_source(spec, number, &exits);
            }
        }
    }

    fn start_member(
        &mut self,
        group: &crate::stream::GroupSpec,
        number: u64,
        exits: &Recipient<Exited>,
    ) {
        let target = match (self.sinks.get(&group.to), self.streams.get(&group.to)) {
            (Some((sink, component)), _) => Target::Sink(sink.clone(), component.clone()),
            (None, Some((stream, component))) => {
                let Some(spec) = self.topology.stream(&group.to) else { return };
                let sends = Arc::new(Sends::of_group(&self.shared.board.traces, spec));
                Target::Stream(stream.clone(), component.clone(), sends)
            }
            (None, None) => return, // the check of the topology does not let this happen
        };
        let Some(stream) = self.topology.streams.iter().find(|s| *s.name == *group.from) else {
            return; // nor this
        };
        let component = self.component(Room::Group, &group.name, number, stream.kind.name);
        let (group, stream, shared) = (group.clone(), stream.clone(), self.shared.clone());
        let kept = self.keep(&component, exits, {
            let component = component.clone();
            move || MemberActor::new(group, stream, target, shared, component)
        });
        self.members.push((kept, component));
    }

    fn start_source(
        &mut self,
        spec: &crate::source::SourceSpec,
        number: u64,
        exits: &Recipient<Exited>,
    ) {
        let (Some(stream), Some(stream_spec)) =
            (self.streams.get(&spec.to).cloned(), self.topology.stream(&spec.to).cloned())
        else {
            return; // the check of the topology does not let this happen
        };
        let component = self.component(Room::Source, &spec.name, number, spec.kind.name);
        let (spec, shared) = (spec.clone(), self.shared.clone());
        let kept = self.keep(&component, exits, {
            let component = component.clone();
            move || SourceActor::new(spec, stream, stream_spec, shared, component)
        });
        self.sources.push((kept, component));
    }

    fn component(
        &self,
        room: Room,
        name: &Arc<str>,
        number: u64,
        kind: &'static str,
    ) -> Arc<Component> {
        self.shared.board.add(room, name, number, kind)
    }

    fn keep<A>(
        &mut self,
        component: &Arc<Component>,
        exits: &Recipient<Exited>,
        make: impl FnOnce() -> A + Send + 'static,
    ) -> Addr<A>
    where
        A: Actor<Context = Context<A>> + actix::Supervised,
    {
        let arbiter = &self.arbiters[self.next_arbiter % self.arbiters.len()];
        self.next_arbiter += 1;
        keep(arbiter, component.clone(), &self.shared.board.metrics, exits.clone(), make)
    }

    /// The components in flow order, a stage at a time.
    fn stages(&self) -> [Vec<Arc<Component>>; 3] {
        let sources = self.sources.iter().map(|(_, component)| component.clone()).collect();
        let members = self.members.iter().map(|(_, component)| component.clone()).collect();
        let streams = self.streams.values().map(|(_, component)| component.clone());
        let sinks = self.sinks.values().map(|(_, component)| component.clone());
        [sources, members, streams.chain(sinks).collect()]
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.start_all(ctx.address().recipient());
    }
}

impl Handler<Exited> for Supervisor {
    type Result = ();

    fn handle(&mut self, exited: Exited, _: &mut Self::Context) {
        tracing::debug!(component = exited.name, "starts anew after: {}", exited.cause);
    }
}

impl Handler<Inspect> for Supervisor {
    type Result = ResponseFuture<Snapshot>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        let board = self.shared.board.clone();
        let in_file = |name: &&str| self.streams.contains_key(*name);
        let asked: Vec<_> = self
            .topology
            .streams
            .iter()
            .map(|spec| &*spec.name)
            .filter(in_file)
            .map(|name| {
                let (actor, component) = &self.streams[name];
                // One that waits to start anew reads its messages only then.
                let down = matches!(component.state(), State::Down(_));
                (name.to_owned(), (!down).then(|| actor.send(Status)))
            })
            .collect();
        Box::pin(async move {
            let answers = asked.into_iter().map(|(name, answer)| async move {
                let unknown = StreamStatus { stream: name, ..StreamStatus::default() };
                let Some(answer) = answer else { return unknown };
                match tokio::time::timeout(STATUS_WAIT, answer).await {
                    Ok(Ok(Ok(status))) => status,
                    _ => unknown,
                }
            });
            let streams = join_all(answers).await;
            for stream in &streams {
                for group in &stream.groups {
                    let labels =
                        GroupLabels { stream: stream.stream.clone(), group: group.name.clone() };
                    let known = |figure: Option<u64>| figure.map(|f| f.min(i64::MAX as u64) as i64);
                    if let Some(lag) = known(group.lag) {
                        board.metrics.lag.get_or_create_owned(&labels).set(lag);
                    }
                    if let Some(pending) = known(group.pending) {
                        board.metrics.pending.get_or_create_owned(&labels).set(pending);
                    }
                }
            }
            for component in board.all() {
                let labels = ComponentLabels { component: component.to_string() };
                let up = i64::from(component.state() == State::Up);
                board.metrics.up.get_or_create_owned(&labels).set(up);
            }
            let components = board.all().iter().map(|c| component_status(c)).collect();
            Snapshot { components, streams, troubles: board.troubles() }
        })
    }
}

fn component_status(component: &Component) -> ComponentStatus {
    ComponentStatus {
        name: component.to_string(),
        kind: component.kind,
        state: match component.state() {
            State::Starting => "starting",
            State::Up => "up",
            State::Down(_) => "down",
            State::Done => "done",
        },
        restarts: component.restarts(),
        last_error: component.last_error(),
    }
}

impl Handler<Drain> for Supervisor {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let stages = self.stages();
        let deadline = Instant::now() + self.topology.runtime.drain;
        Box::pin(async move {
            let mut drained = Drained::default();
            for stage in stages {
                for component in &stage {
                    component.stop.cancel();
                }
                for component in stage {
                    let done = component.done.cancelled();
                    if tokio::time::timeout_at(deadline.into(), done).await.is_err() {
                        drained.cut_off.push(component.to_string());
                    }
                }
            }
            drained
        })
    }
}
