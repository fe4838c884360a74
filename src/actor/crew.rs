//! The crew: every actor that runs, with what it was made from. It starts what a topology asks for
//! and is not there yet, last stage first, and tells what is there and not asked for any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::{Actor, Addr, ArbiterHandle, Context, Recipient};

use super::keeper::keep;
use super::member::{MemberActor, Target};
use super::message::Exited;
use super::sink::SinkActor;
use super::source::SourceActor;
use super::stream::{StreamActor, StreamPart};
use super::supervisor::Part;
use super::traced::Sends;
use super::{Current, Shared};
use crate::sink::SinkSpec;
use crate::source::SourceSpec;
use crate::spec::Room;
use crate::stream::{GroupSpec, StreamSpec};
use crate::telemetry::board::Component;
use crate::topology::compare::{
    same_group, same_groups, same_place, same_sink, same_source, same_stream,
};
use crate::topology::{Topology, needs_http};

/// An actor that runs, and what it was made from.
struct Running<A: Actor, S> {
    addr: Addr<A>,
    component: Arc<Component>,
    spec: S,
}

/// What a member was made from.
struct MemberSpec {
    group: GroupSpec,
    stream: StreamSpec,
    /// The stream it writes, unless it delivers to a sink.
    to: Option<StreamSpec>,
}

/// What a source's instance was made from.
struct WriterSpec {
    source: SourceSpec,
    stream: StreamSpec,
}

/// Everything that runs.
pub struct Crew {
    part: Part,
    shared: Shared,
    arbiters: Vec<ArbiterHandle>,
    next_arbiter: usize,
    exits: Recipient<Exited>,
    sinks: BTreeMap<Arc<str>, Running<SinkActor, Current<SinkSpec>>>,
    streams: BTreeMap<Arc<str>, Running<StreamActor, Current<StreamPart>>>,
    members: Vec<Running<MemberActor, MemberSpec>>,
    sources: Vec<Running<SourceActor, WriterSpec>>,
}

/// What a topology asks for of one process.
struct Wanted<'a> {
    topology: &'a Topology,
    sources: Vec<&'a SourceSpec>,
    groups: Vec<&'a GroupSpec>,
}

impl<'a> Wanted<'a> {
    fn new(topology: &'a Topology, part: &Part) -> Self {
        let sources = topology.sources.iter().filter(|it| part.has(Room::Source, &it.name));
        let groups = topology.groups.iter().filter(|it| part.has(Room::Group, &it.name));
        Self { topology, sources: sources.collect(), groups: groups.collect() }
    }

    fn sinks(&self) -> impl Iterator<Item = &'a SinkSpec> {
        let used = |sink: &&SinkSpec| self.groups.iter().any(|group| *group.to == *sink.name);
        self.topology.sinks.iter().filter(used)
    }

    fn streams(&self) -> impl Iterator<Item = &'a StreamSpec> {
        let used = |stream: &&StreamSpec| {
            let named = |name: &str| *name == *stream.name;
            self.groups.iter().any(|group| named(&group.to) || named(&group.from))
                || self.sources.iter().any(|source| named(&source.to))
        };
        self.topology.streams.iter().filter(used)
    }

    /// The stream as an actor runs it.
    fn part(&self, spec: &StreamSpec) -> StreamPart {
        let mut writers = self.sources.iter().filter(|source| *source.to == *spec.name);
        let answers = writers.any(|it| needs_http(it.kind, &it.values).is_some());
        StreamPart { spec: spec.clone(), answers }
    }

    /// The group that a member of this spec and number would be one of.
    fn has_member(&self, member: &MemberSpec, number: u64) -> bool {
        let Some(group) = self.groups.iter().find(|group| group.name == member.group.name) else {
            return false;
        };
        let (from, to) = (self.topology.stream(&group.from), self.topology.stream(&group.to));
        number <= group.members
            && same_group(group, &member.group)
            && from.is_some_and(|from| same_stream(from, &member.stream))
            && match (&member.to, to) {
                (Some(before), Some(after)) => same_stream(before, after),
                (None, None) => true,
                _ => false,
            }
    }

    fn has_source(&self, instance: &WriterSpec) -> bool {
        let found = self.sources.iter().find(|source| source.name == instance.source.name);
        let stream = self.topology.stream(&instance.source.to);
        found.is_some_and(|source| same_source(source, &instance.source))
            && stream.is_some_and(|stream| same_stream(stream, &instance.stream))
    }
}

/// What runs and is not asked for any more, or not so.
#[derive(Default)]
pub struct Surplus {
    /// Sources' instances, each with the stream it writes.
    pub sources: Vec<(Arc<Component>, String)>,
    /// Groups' members, each with the stream it writes, if it does.
    pub members: Vec<(Arc<Component>, Option<String>)>,
    /// Streams and sinks.
    pub ends: Vec<Arc<Component>>,
}

/// What was begun.
#[derive(Default)]
pub struct Begun {
    /// New actors.
    pub started: Vec<String>,
    /// Actors that begin a new life with another spec.
    pub renewed: Vec<String>,
}

impl Crew {
    /// A crew of nobody yet, which spreads its actors over `arbiters`.
    pub fn new(
        part: Part,
        shared: Shared,
        arbiters: Vec<ArbiterHandle>,
        exits: Recipient<Exited>,
    ) -> Self {
        Self {
            part,
            shared,
            arbiters,
            next_arbiter: 0,
            exits,
            sinks: BTreeMap::new(),
            streams: BTreeMap::new(),
            members: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// What runs and is not in `topology`, or is another one there. What merely has another spec
    /// and can go on at its address is not among it.
    pub fn surplus(&self, topology: &Topology) -> Surplus {
        let wanted = Wanted::new(topology, &self.part);
        let sources = self.sources.iter().filter(|it| !wanted.has_source(&it.spec));
        let gone = |it: &&Running<MemberActor, MemberSpec>| {
            !wanted.has_member(&it.spec, it.component.number)
        };
        let members = self.members.iter().filter(gone);
        let streams = self
            .streams
            .iter()
            .filter(|(name, _)| wanted.streams().all(|stream| stream.name != **name));
        let sinks =
            self.sinks.iter().filter(|(name, _)| wanted.sinks().all(|sink| sink.name != **name));
        let ends = streams.map(|(_, it)| &it.component).chain(sinks.map(|(_, it)| &it.component));
        Surplus {
            sources: sources.map(|it| (it.component.clone(), it.spec.source.to.clone())).collect(),
            members: members
                .map(|it| (it.component.clone(), it.spec.to.as_ref().map(|to| to.name.to_string())))
                .collect(),
            ends: ends.cloned().collect(),
        }
    }

    /// Starts what `topology` asks for and is not there, last stage first, and has go on with
    /// their new specs what is there with another one.
    pub fn fill(&mut self, topology: &Topology) -> Begun {
        let (part, mut begun) = (self.part.clone(), Begun::default());
        let wanted = Wanted::new(topology, &part);
        for spec in wanted.sinks() {
            self.fill_sink(spec, &mut begun);
        }
        for spec in wanted.streams() {
            self.fill_stream(wanted.part(spec), &mut begun);
        }
        for group in &wanted.groups {
            for number in 1..=group.members {
                self.fill_member(topology, group, number, &mut begun);
            }
        }
        for source in &wanted.sources {
            for number in 1..=(source.kind.instances)(&source.values) {
                self.fill_source(topology, source, number, &mut begun);
            }
        }
        begun
    }

    fn fill_sink(&mut self, spec: &SinkSpec, begun: &mut Begun) {
        if let Some(running) = self.sinks.get(&spec.name) {
            if !same_sink(&running.spec.get(), spec) {
                running.spec.set(spec.clone());
                running.component.renew(spec.kind.name);
                begun.renewed.push(running.component.to_string());
            }
            return;
        }
        let component = self.component(Room::Sink, &spec.name, 1, spec.kind.name, begun);
        let current = Current::new(spec.clone());
        let (actor, shared, own) = (current.clone(), self.shared.clone(), component.clone());
        let addr = self.keep(&component, move || SinkActor::new(actor, shared, own));
        self.sinks.insert(spec.name.clone(), Running { addr, component, spec: current });
    }

    fn fill_stream(&mut self, part: StreamPart, begun: &mut Begun) {
        let spec = &part.spec;
        if let Some(running) = self.streams.get(&spec.name) {
            let before = running.spec.get();
            if !same_stream(&before.spec, spec) || !same_groups(&before.spec, spec) {
                if !same_place(&before.spec, spec) {
                    running.component.moved();
                }
                running.spec.set(part.clone());
                running.component.renew(spec.kind.name);
                begun.renewed.push(running.component.to_string());
            }
            return;
        }
        let component = self.component(Room::Stream, &spec.name, 1, spec.kind.name, begun);
        let (name, current) = (spec.name.clone(), Current::new(part));
        let (actor, shared, own) = (current.clone(), self.shared.clone(), component.clone());
        let addr = self.keep(&component, move || StreamActor::new(actor, shared, own));
        self.streams.insert(name, Running { addr, component, spec: current });
    }

    fn fill_member(
        &mut self,
        topology: &Topology,
        group: &GroupSpec,
        number: u64,
        begun: &mut Begun,
    ) {
        let own = |it: &Running<MemberActor, MemberSpec>| {
            it.spec.group.name == group.name && it.component.number == number
        };
        let Some(stream) = topology.stream(&group.from).cloned() else {
            return; // the check of the topology does not let this happen
        };
        if self.members.iter().any(own) {
            return;
        }
        let to = topology.stream(&group.to).cloned();
        let target = match (self.sinks.get(&*group.to), self.streams.get(&*group.to), &to) {
            (Some(sink), _, _) => Target::Sink(sink.addr.clone(), sink.component.clone()),
            (None, Some(stream), Some(spec)) => {
                let sends = Arc::new(Sends::of_group(&self.shared.board.traces, spec));
                Target::Stream(stream.addr.clone(), stream.component.clone(), sends)
            }
            _ => return, // nor this
        };
        let component = self.component(Room::Group, &group.name, number, stream.kind.name, begun);
        let spec = MemberSpec { group: group.clone(), stream: stream.clone(), to };
        let (group, shared, own) = (group.clone(), self.shared.clone(), component.clone());
        let make = move || MemberActor::new(group, stream, target, shared, own);
        let addr = self.keep(&component, make);
        self.members.push(Running { addr, component, spec });
    }

    fn fill_source(
        &mut self,
        topology: &Topology,
        source: &SourceSpec,
        number: u64,
        begun: &mut Begun,
    ) {
        let own = |it: &Running<SourceActor, WriterSpec>| {
            it.spec.source.name == source.name && it.component.number == number
        };
        let stream = topology.stream(&source.to).cloned();
        let (Some(running), Some(stream)) = (self.streams.get(&*source.to), stream) else {
            return; // the check of the topology does not let this happen
        };
        if self.sources.iter().any(own) {
            return;
        }
        let to = (running.addr.clone(), running.component.clone());
        let component = self.component(Room::Source, &source.name, number, source.kind.name, begun);
        let spec = WriterSpec { source: source.clone(), stream: stream.clone() };
        let (source, shared, own) = (source.clone(), self.shared.clone(), component.clone());
        let make = move || SourceActor::new(source, to, stream, shared, own);
        let addr = self.keep(&component, make);
        self.sources.push(Running { addr, component, spec });
    }

    fn component(
        &self,
        room: Room,
        name: &Arc<str>,
        number: u64,
        kind: &'static str,
        begun: &mut Begun,
    ) -> Arc<Component> {
        let component = self.shared.board.add(room, name, number, kind);
        begun.started.push(component.to_string());
        component
    }

    fn keep<A>(
        &mut self,
        component: &Arc<Component>,
        make: impl FnOnce() -> A + Send + 'static,
    ) -> Addr<A>
    where
        A: Actor<Context = Context<A>> + actix::Supervised,
    {
        let arbiter = &self.arbiters[self.next_arbiter % self.arbiters.len()];
        self.next_arbiter += 1;
        let metrics = &self.shared.board.metrics;
        keep(arbiter, component.clone(), metrics, self.exits.clone(), make)
    }

    /// Lets go of those that have stopped for good.
    pub fn dismiss(&mut self, gone: &[Arc<Component>]) {
        let stays = |component: &Arc<Component>| !gone.iter().any(|it| Arc::ptr_eq(it, component));
        self.sinks.retain(|_, it| stays(&it.component));
        self.streams.retain(|_, it| stays(&it.component));
        self.members.retain(|it| stays(&it.component));
        self.sources.retain(|it| stays(&it.component));
        gone.iter().for_each(|component| self.shared.board.remove(component));
    }

    /// The components in flow order, a stage at a time.
    pub fn stages(&self) -> [Vec<Arc<Component>>; 3] {
        let sources = self.sources.iter().map(|it| it.component.clone()).collect();
        let members = self.members.iter().map(|it| it.component.clone()).collect();
        let streams = self.streams.values().map(|it| it.component.clone());
        let sinks = self.sinks.values().map(|it| it.component.clone());
        [sources, members, streams.chain(sinks).collect()]
    }

    /// The stream of this name, where it runs here.
    pub fn stream(&self, name: &str) -> Option<(Addr<StreamActor>, Arc<Component>)> {
        let running = self.streams.get(name)?;
        Some((running.addr.clone(), running.component.clone()))
    }
}
