//! The supervisor: has the crew run what the topology asks for, also after an edit of it, and stops
//! it, first stage first. Everything in between is the keepers' work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, ArbiterHandle, AsyncContext, Context, Handler, ResponseFuture};
use futures_util::future::join_all;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::crew::Crew;
use super::message::{Applied, Drain, Exited, Inspect, Reload, Status};
use super::reload;
use super::stream::StreamActor;
use crate::spec::Room;
use crate::stream::StreamStatus;
use crate::telemetry::board::{Component, LastError, State, Trouble};
use crate::telemetry::metrics::{ComponentLabels, GroupLabels, Metrics};
use crate::topology::edition::Edition;
use crate::topology::{Faults, Topology};

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

/// The one actor above all others.
pub struct Supervisor {
    /// What runs. Whoever serves it looks here.
    editions: Arc<watch::Sender<Arc<Edition>>>,
    part: Part,
    shared: Shared,
    arbiters: Vec<ArbiterHandle>,
    /// There from the start on.
    crew: Option<Arc<Mutex<Crew>>>,
    /// One edit at a time, and a stop after it.
    turn: Arc<tokio::sync::Mutex<()>>,
    stopping: CancellationToken,
}

impl Supervisor {
    /// A supervisor that spreads the actors of the first edition over `arbiters`.
    pub fn new(
        editions: Arc<watch::Sender<Arc<Edition>>>,
        part: Part,
        shared: Shared,
        arbiters: Vec<ArbiterHandle>,
    ) -> Self {
        let (turn, stopping) = (Arc::default(), CancellationToken::new());
        Self { editions, part, shared, arbiters, crew: None, turn, stopping }
    }

    fn edition(&self) -> Arc<Edition> {
        self.editions.borrow().clone()
    }

    fn stream(&self, name: &str) -> Option<(Addr<StreamActor>, Arc<Component>)> {
        lock(self.crew.as_ref()?).stream(name)
    }
}

fn lock(crew: &Mutex<Crew>) -> MutexGuard<'_, Crew> {
    crew.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (part, arbiters) = (self.part.clone(), self.arbiters.clone());
        let exits = ctx.address().recipient();
        let mut crew = Crew::new(part, self.shared.clone(), arbiters, exits);
        crew.fill(&self.edition().topology);
        self.crew = Some(Arc::new(Mutex::new(crew)));
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
        let edition = self.edition();
        let names = edition.topology.streams.iter().map(|spec| &*spec.name);
        let asked: Vec<_> = names
            .filter_map(|name| {
                let (actor, component) = self.stream(name)?;
                // One that waits to start anew reads its messages only then.
                let down = matches!(component.state(), State::Down(_));
                Some((name.to_owned(), (!down).then(|| actor.send(Status))))
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
            tell(&board.metrics, &edition.topology, &streams);
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

/// Tells how far behind the groups are. What cannot be known now is not told: an old figure would be
/// taken for a new one, and writers scaled by it.
fn tell(metrics: &Metrics, topology: &Topology, streams: &[StreamStatus]) {
    let set = |gauge: &Family<GroupLabels, Gauge>, labels: &GroupLabels, figure: Option<u64>| {
        match figure {
            Some(figure) => {
                gauge.get_or_create_owned(labels).set(figure.min(i64::MAX as u64) as i64);
            }
            None => {
                gauge.remove(labels);
            }
        }
    };
    for stream in streams {
        let told = stream.groups.iter().map(|it| (&*it.name, it.lag, it.pending));
        let declared = topology.groups.iter().filter(|it| it.from == stream.stream);
        let silent = declared.filter(|it| stream.groups.iter().all(|told| *told.name != *it.name));
        for (group, lag, pending) in told.chain(silent.map(|it| (&*it.name, None, None))) {
            let labels = GroupLabels { stream: stream.stream.clone(), group: group.to_owned() };
            set(&metrics.lag, &labels, lag);
            set(&metrics.pending, &labels, pending);
        }
    }
}

/// Wipes what was said of the groups of streams that are gone.
fn forget(metrics: &Metrics, before: &Topology, now: &Topology) {
    let gone = before.groups.iter().filter(|group| now.stream(&group.from).is_none());
    for group in gone {
        let labels = GroupLabels { stream: group.from.clone(), group: group.name.to_string() };
        metrics.lag.remove(&labels);
        metrics.pending.remove(&labels);
    }
}

fn component_status(component: &Component) -> ComponentStatus {
    ComponentStatus {
        name: component.to_string(),
        kind: component.kind(),
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

impl Handler<Reload> for Supervisor {
    type Result = ResponseFuture<Result<Applied, Faults>>;

    fn handle(&mut self, edit: Reload, _: &mut Self::Context) -> Self::Result {
        let (crew, turn, editions) = (self.crew.clone(), self.turn.clone(), self.editions.clone());
        let stopping = self.stopping.clone();
        let board = self.shared.board.clone();
        Box::pin(async move {
            let metrics = &board.metrics;
            let _turn = turn.lock().await;
            let running = editions.borrow().clone();
            let file = edit.topology.file.display().to_string();
            let stops = || Faults::whole(&file, "not applied: the process is stopping".to_owned());
            let crew = crew.filter(|_| !stopping.is_cancelled()).ok_or_else(stops)?;
            let reload = reload::Reload { crew, old: running.topology.clone(), stopping };
            let changes = reload.apply(&edit.topology).await?;
            forget(metrics, &running.topology, &edit.topology);
            let edition = Arc::new(running.next(Arc::new(edit.topology)));
            editions.send_replace(edition.clone());
            Ok(Applied { edition, changes })
        })
    }
}

impl Handler<Drain> for Supervisor {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.stopping.cancel();
        let (crew, turn) = (self.crew.clone(), self.turn.clone());
        let deadline = Instant::now() + self.edition().topology.runtime.drain;
        Box::pin(async move {
            let _turn = turn.lock().await; // an edit under way begins nothing any more
            let mut drained = Drained::default();
            let stages = crew.map(|crew| lock(&crew).stages()).unwrap_or_default();
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
