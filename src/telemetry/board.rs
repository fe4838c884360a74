//! The board: every actor of the process with its state, restarts and last error. Actors write
//! their own line; the status page, the health checks and the supervisor read all of them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::spec::Room;
use crate::telemetry::metrics::{ComponentLabels, Metrics};
use crate::telemetry::outages::Outages;
use crate::telemetry::taps::Taps;
use crate::telemetry::traces::Traces;

/// What an actor is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not ready yet, for the first time.
    Starting,
    /// Working, or able to.
    Up,
    /// It ended, and will start anew: why it ended.
    Down(Arc<str>),
    /// It was asked to stop, and has.
    Done,
}

/// One actor's line on the board, and the two signals that end it.
#[derive(Debug)]
pub struct Component {
    /// What it is.
    pub room: Room,
    /// The name of its table: `NAME` in `[sink.NAME]`.
    pub name: Arc<str>,
    /// Its number among the actors of that table, from 1.
    pub number: u64,
    kind: Mutex<&'static str>,
    state: watch::Sender<State>,
    restarts: AtomicU64,
    last_error: Mutex<Option<LastError>>,
    exit: Mutex<Option<anyhow::Result<()>>>,
    progress: AtomicBool,
    spent: AtomicBool,
    changed: Arc<Notify>,
    was_up: AtomicBool,
    renewal: Mutex<CancellationToken>,
    outages: Arc<Outages>,
    /// Asks it to drain and stop.
    pub stop: CancellationToken,
    /// Ends it where it stands: it did not stop in time.
    pub abort: CancellationToken,
    /// It has stopped for good.
    pub done: CancellationToken,
}

/// The last thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When, in microseconds since 1970 UTC.
    pub time_us: i64,
    /// What, as one line.
    pub cause: Arc<str>,
}

impl Component {
    fn new(
        room: Room,
        name: &Arc<str>,
        number: u64,
        kind: &'static str,
        changed: Arc<Notify>,
        outages: &Arc<Outages>,
    ) -> Self {
        Self {
            changed,
            room,
            name: name.clone(),
            number,
            kind: Mutex::new(kind),
            state: watch::Sender::new(State::Starting),
            restarts: AtomicU64::new(0),
            last_error: Mutex::new(None),
            exit: Mutex::new(None),
            progress: AtomicBool::new(false),
            spent: AtomicBool::new(false),
            was_up: AtomicBool::new(false),
            renewal: Mutex::default(),
            outages: outages.clone(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            done: CancellationToken::new(),
        }
    }

    /// The kind of its plug-in.
    pub fn kind(&self) -> &'static str {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the actor to begin a new life, with a new spec, as soon as what it is at is done:
    /// mailbox and addresses stay valid, and it is no restart after a failure.
    pub fn renew(&self, kind: &'static str) {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner) = kind;
        self.renewal().cancel();
    }

    /// Cancelled once a new life is wanted. Each life has its own.
    pub fn renewal(&self) -> CancellationToken {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a new life is wanted; that wish is fulfilled now.
    pub fn take_renewal(&self) -> bool {
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = renewal.is_cancelled();
        if wanted {
            *renewal = CancellationToken::new();
        }
        wanted
    }

    /// It is to work somewhere else: that it worked tells nothing of there.
    pub fn moved(&self) {
        self.was_up.store(false, Ordering::Relaxed);
    }

    /// Whether it ever worked where it is.
    pub fn was_up(&self) -> bool {
        self.was_up.load(Ordering::Relaxed)
    }

    /// The actor is ready to work.
    pub fn up(&self) {
        self.was_up.store(true, Ordering::Relaxed);
        self.set(State::Up);
    }

    fn set(&self, state: State) {
        self.state.send_replace(state);
        self.changed.notify_one();
    }

    /// The actor did what it is for, so the next failure is a new one.
    pub fn progressed(&self) {
        self.progress.store(true, Ordering::Relaxed);
    }

    /// How the actor's work ended. Its keeper takes it from here.
    pub fn exit(&self, outcome: anyhow::Result<()>) {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    /// Takes what [`Component::exit`] left.
    pub fn take_exit(&self) -> Option<anyhow::Result<()>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether there was progress since this was last asked.
    pub fn take_progress(&self) -> bool {
        self.progress.swap(false, Ordering::Relaxed)
    }

    /// The actor ended and will start anew. The log says so, unless it has.
    pub fn down(&self, cause: &str) {
        self.outages.failed(self, cause);
        let cause: Arc<str> = cause.into();
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.note(&cause);
        self.set(State::Down(cause));
    }

    /// Something went wrong that did not end the actor.
    pub fn note(&self, cause: &Arc<str>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(LastError { time_us: crate::event::now_us(), cause: cause.clone() });
    }

    /// The actor has stopped as it was asked to.
    pub fn finish(&self) {
        self.set(State::Done);
        self.done.cancel();
    }

    /// Its table in the topology, with the name: `group.writer`, also of its second member.
    pub fn table(&self) -> String {
        format!("{}.{}", self.room.noun(), self.name)
    }

    /// What it is at.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Its state as it changes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// How often it was started anew.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// The last thing that went wrong, if anything did.
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A source: whether it has nothing more to give.
    pub fn set_spent(&self, spent: bool) {
        self.spent.store(spent, Ordering::Release);
    }

    /// A source: whether it has nothing more to give.
    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Acquire)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table())?;
        if matches!(self.room, Room::Group | Room::Source) && self.number > 1 {
            write!(f, "/{}", self.number)?;
        }
        Ok(())
    }
}

/// All actors of the process, and what they count.
#[derive(Debug, Default)]
pub struct Board {
    /// What they count.
    pub metrics: Metrics,
    /// Where the spans of what they do go.
    pub traces: Traces,
    /// Events on their way, for who looks.
    pub taps: Taps,
    /// Told, for the one who shows it, whenever an actor's state changes.
    pub changed: Arc<Notify>,
    outages: Arc<Outages>,
    components: RwLock<Vec<Arc<Component>>>,
}

impl Board {
    /// A new line.
    pub fn add(
        &self,
        room: Room,
        name: &Arc<str>,
        number: u64,
        kind: &'static str,
    ) -> Arc<Component> {
        let changed = self.changed.clone();
        let component = Component::new(room, name, number, kind, changed, &self.outages);
        let component = Arc::new(component);
        self.components.write().unwrap_or_else(PoisonError::into_inner).push(component.clone());
        component
    }

    /// Wipes the line of what has stopped for good, and what it said of itself.
    pub fn remove(&self, gone: &Arc<Component>) {
        let mut components = self.components.write().unwrap_or_else(PoisonError::into_inner);
        components.retain(|component| !Arc::ptr_eq(component, gone));
        if components.iter().all(|component| component.table() != gone.table()) {
            self.outages.gone(&gone.table());
        }
        self.metrics.up.remove(&ComponentLabels { component: gone.to_string() });
    }

    /// Every line.
    pub fn all(&self) -> Vec<Arc<Component>> {
        self.components.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Members of a group held events for longer than their lease, and others have them now.
    pub fn taken_over(&self, group: &Arc<str>, events: usize) {
        self.outages.taken_over(group, events);
    }

    /// Tells the log what works again. To be called every now and then.
    pub fn look(&self) {
        self.outages.look(&self.all());
    }

    /// What does not work, and why, as `/healthz` says it.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut troubles: Vec<Trouble> = self
            .all()
            .iter()
            .filter_map(|component| match component.state() {
                State::Down(cause) => Some(Trouble { name: component.table(), cause }),
                State::Starting => {
                    Some(Trouble { name: component.table(), cause: "is starting".into() })
                }
                State::Up | State::Done => None,
            })
            .collect();
        troubles.dedup_by(|a, b| a.name == b.name);
        troubles
    }
}

/// One thing that does not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// `sink.db`
    pub name: String,
    /// Why, as one line without a secret.
    pub cause: Arc<str>,
}
