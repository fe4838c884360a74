//! The one task that makes the state, once a second while somebody looks and at once when an actor
//! fails or comes back. It is written once; all who look get the same bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use futures_util::future::{FutureExt, LocalBoxFuture, join, pending};
use futures_util::stream::{Stream, unfold};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::state::{Builder, Seen, State};
use crate::actor::message::Inspect;
use crate::actor::supervisor::Supervisor;
use crate::telemetry::board::Trouble;
use crate::topology::edition::Edition;

/// How often the counters are read, and the state is made while somebody looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long a state waits for what the streams say.
const STREAMS_WAIT: Duration = Duration::from_millis(300);
/// The least time between two states.
const APART: Duration = Duration::from_millis(100);
/// How long a state is good for who asks once.
const FRESH: Duration = Duration::from_millis(1500);
/// How long somebody who asked once counts as looking.
const LOOKING: Duration = Duration::from_secs(3);
/// How long who asks waits for a state.
const STATE_WAIT: Duration = Duration::from_secs(5);
/// Viewers at once.
const VIEWERS_MAX: usize = 64;

/// A state, written down.
pub struct Frame {
    made: Instant,
    shape: u64,
    /// JSON.
    pub state: Bytes,
    /// The same as an event.
    whole: Bytes,
    /// What changes all the time, as an event.
    tick: Bytes,
}

impl Frame {
    fn new(state: &State) -> serde_json::Result<Self> {
        let json = serde_json::to_string(state)?;
        let tick = serde_json::to_string(&state.tick())?;
        Ok(Self {
            made: Instant::now(),
            shape: state.shape,
            whole: format!("event: state\ndata: {json}\n\n").into(),
            tick: format!("event: tick\ndata: {tick}\n\n").into(),
            state: json.into(),
        })
    }
}

/// Who looks, and what they are shown.
pub struct Live {
    frames: watch::Sender<Option<Arc<Frame>>>,
    viewers: AtomicUsize,
    asked: Notify,
    /// Ends what viewers are sent.
    pub stop: CancellationToken,
}

impl Live {
    /// Starts the task. It ends with `stop`.
    pub fn start(
        builder: Builder,
        editions: watch::Receiver<Arc<Edition>>,
        asker: Asker,
    ) -> Arc<Self> {
        let live = Arc::new(Self {
            frames: watch::Sender::new(None),
            viewers: AtomicUsize::new(0),
            asked: Notify::new(),
            stop: CancellationToken::new(),
        });
        let stop = live.stop.clone();
        let task = Task { live: live.clone(), builder, editions, asker }.run();
        actix_rt::spawn(async move { stop.run_until_cancelled(task).await });
        live
    }

    /// The state, not much older than a second. `None`: the process is stopping.
    pub async fn state(&self) -> Option<Arc<Frame>> {
        let mut frames = self.frames.subscribe();
        let fresh = |frame: &Option<Arc<Frame>>| {
            frame.as_ref().is_some_and(|frame| frame.made.elapsed() < FRESH)
        };
        self.asked.notify_one();
        let waiting = tokio::time::timeout(STATE_WAIT, frames.wait_for(fresh));
        waiting.await.ok()?.ok()?.clone()
    }

    /// Events for one more viewer: a state, then what changes. A viewer that is slow gets fewer.
    /// `None`: there are too many.
    pub fn events(
        self: &Arc<Self>,
    ) -> Option<impl Stream<Item = Result<Bytes, std::convert::Infallible>> + use<>> {
        let viewer = Viewer::new(self)?;
        self.asked.notify_one();
        let frames = self.frames.subscribe();
        Some(unfold((frames, 0, viewer), |(mut frames, shape, viewer)| async move {
            let fresh = |frame: &Option<Arc<Frame>>| {
                frame.as_ref().is_some_and(|frame| frame.made.elapsed() < FRESH)
            };
            let frame = if shape == 0 {
                let first = viewer.0.stop.run_until_cancelled(frames.wait_for(fresh)).await?;
                first.ok()?.clone()?
            } else {
                viewer.0.stop.run_until_cancelled(frames.changed()).await?.ok()?;
                frames.borrow_and_update().clone()?
            };
            let event = match frame.shape == shape {
                true => frame.tick.clone(),
                false => frame.whole.clone(),
            };
            frames.mark_unchanged();
            Some((Ok(event), (frames, frame.shape, viewer)))
        }))
    }
}

/// One who looks, until it is dropped.
struct Viewer(Arc<Live>);

impl Viewer {
    fn new(live: &Arc<Live>) -> Option<Self> {
        let viewer = Self(live.clone());
        (live.viewers.fetch_add(1, Ordering::Relaxed) < VIEWERS_MAX).then_some(viewer)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks the streams and the databases of queries how they are.
pub struct Asker {
    /// Who asks the streams.
    pub supervisor: Addr<Supervisor>,
    /// What asks the databases.
    pub queries: Box<dyn Fn() -> LocalBoxFuture<'static, Vec<Trouble>>>,
}

impl Asker {
    fn ask(&self) -> LocalBoxFuture<'static, Seen> {
        let snapshot = self.supervisor.send(Inspect);
        let queries = (self.queries)();
        async move {
            let (snapshot, queries) = join(snapshot, queries).await;
            Seen { streams: snapshot.map(|it| it.streams).unwrap_or_default(), queries }
        }
        .boxed_local()
    }
}

struct Task {
    live: Arc<Live>,
    builder: Builder,
    editions: watch::Receiver<Arc<Edition>>,
    asker: Asker,
}

impl Task {
    async fn run(mut self) {
        let board = self.builder.board();
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Seen::default();
        let mut asking = None;
        let (mut due, mut published, mut looked) = (None, None::<Instant>, None::<Instant>);
        loop {
            let at = due.unwrap_or_else(|| Instant::now() + EVERY);
            tokio::select! {
                _ = every.tick() => {
                    self.builder.sample();
                    if self.is_looked_at(looked) {
                        asking.get_or_insert_with(|| self.asker.ask());
                        due = Some(Instant::now() + STREAMS_WAIT);
                    }
                }
                said = answer(&mut asking) => {
                    asking = None;
                    seen = said;
                    due = due.and(Some(Instant::now()));
                }
                () = board.changed.notified() => {
                    let next = published.map_or_else(Instant::now, |it| it + APART);
                    due = Some(due.map_or(next, |due: Instant| due.min(next)));
                }
                Ok(()) = self.editions.changed() => {
                    let edition = self.editions.borrow_and_update().clone();
                    self.builder.turn(edition);
                    due = Some(Instant::now());
                }
                () = self.live.asked.notified() => {
                    looked = Some(Instant::now());
                    if published.is_none_or(|at| at.elapsed() >= FRESH) {
                        asking.get_or_insert_with(|| self.asker.ask());
                        due = Some(Instant::now() + STREAMS_WAIT);
                    }
                }
                () = tokio::time::sleep_until(at), if due.is_some() => {
                    due = None;
                    if self.is_looked_at(looked) {
                        published = Some(Instant::now());
                        self.publish(&seen);
                    }
                }
            }
        }
    }

    fn is_looked_at(&self, looked: Option<Instant>) -> bool {
        self.live.viewers.load(Ordering::Relaxed) > 0
            || looked.is_some_and(|at| at.elapsed() < LOOKING)
    }

    fn publish(&self, seen: &Seen) {
        match Frame::new(&self.builder.state(seen)) {
            Ok(frame) => _ = self.live.frames.send_replace(Some(Arc::new(frame))),
            Err(error) => tracing::error!("the state cannot be written: {error}"),
        }
    }
}

/// The answer, where something was asked.
async fn answer(asking: &mut Option<LocalBoxFuture<'static, Seen>>) -> Seen {
    match asking {
        Some(asked) => asked.await,
        None => pending().await,
    }
}
