//! The source actor: asks its plug-in for batches and appends them, a few ahead of the answers,
//! each together with the step of the checkpoint it makes. When the stream's checkpoint turns
//! out to be another one, it seeks there: so the two cannot disagree for longer than a second.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Supervised};
use anyhow::Result;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::message::{Append, Bury, Down, Slots};
use super::stream::StreamActor;
use super::traced::{Sends, never_sent};
use super::{Shared, keeper};
use crate::event::{Event, now_us};
use crate::fault;
use crate::source::{Batch, Dead, Move, Outcome, Position, Pull, Slot, Source, SourceSpec};
use crate::stream::{self, Appended, StreamSpec};
use crate::telemetry::board::{Component, State};
use crate::telemetry::logs;
use crate::telemetry::metrics::SourceLabels;
use crate::telemetry::traces::span::Span;
use crate::topology::needs_http;

/// Batches under way to the stream.
const UNDER_WAY_MAX: usize = 4;
/// How long a stop waits for the stream's answers: it may be full, and stay so.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// How often an idle source looks whether the stream still has its checkpoint.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// Runs one instance of a source.
pub struct SourceActor {
    life: Rc<Life>,
}

/// What all lives of the actor share.
struct Life {
    spec: SourceSpec,
    stream: Addr<StreamActor>,
    stream_component: Arc<Component>,
    stream_spec: StreamSpec,
    sends: Sends,
    shared: Shared,
    component: Arc<Component>,
    origin: Arc<str>,
    published: Counter,
    failures: Counter,
    seconds: Histogram,
    named: Option<Counter>,
}

impl SourceActor {
    /// An actor for instance `component.number` of `spec`, which has opened nothing yet.
    pub fn new(
        spec: SourceSpec,
        stream: (Addr<StreamActor>, Arc<Component>),
        stream_spec: StreamSpec,
        shared: Shared,
        component: Arc<Component>,
    ) -> Self {
        let metrics = &shared.board.metrics;
        let labels = SourceLabels { source: spec.name.to_string(), stream: spec.to.clone() };
        let published = metrics.published.get_or_create_owned(&labels);
        let failures = metrics.publish_failures.get_or_create_owned(&labels);
        let seconds = metrics.publish_seconds.get_or_create_owned(&labels);
        let doc = "Events a source made durable, under a name of the user's";
        let named = spec.counter.as_ref().map(|name| metrics.named(name, doc));
        let origin = spec.origin.as_str().into();
        let asked = needs_http(spec.kind, &spec.values).is_some();
        let sends = Sends::of_source(&shared.board.traces, &stream_spec, &spec.name, asked);
        let (stream, stream_component) = stream;
        let life = Life {
            spec,
            stream,
            stream_component,
            stream_spec,
            sends,
            shared,
            component,
            origin,
            published,
            failures,
            seconds,
            named,
        };
        Self { life: Rc::new(life) }
    }
}

impl Actor for SourceActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let life = self.life.clone();
        keeper::live(ctx, &self.life.component, async move { life.work().await });
    }
}

impl Supervised for SourceActor {}

/// An append on its way: how many events, which steps, who follows it, and the answer to be.
struct Sent {
    events: u64,
    moves: Vec<Move>,
    spans: Vec<Span>,
    since: Instant,
    answer: LocalBoxFuture<'static, Result<Appended, Down>>,
}

/// Appends whose answers are awaited, in order.
type UnderWay = VecDeque<Sent>;

/// How a run of appends ended.
enum Ended {
    /// The stream's checkpoint is to be read again.
    Seek,
    /// A stop was asked for, and nothing is under way.
    Stopped,
}

impl Life {
    async fn work(&self) -> Result<()> {
        let (spec, site) = (&self.spec, &self.shared.site);
        let mut source = (spec.kind.open)(spec, site, self.component.number)?;
        loop {
            let Some(stored) = self.stored().await else {
                return Ok(()); // a stop was asked for
            };
            source.seek(&stored).await?;
            self.component.up();
            match self.publish(source.as_mut(), stored).await? {
                Ended::Seek => {}
                Ended::Stopped => return Ok(()),
            }
        }
    }

    /// What the stream holds for this source, as soon as it can tell.
    async fn stored(&self) -> Option<Vec<Slot>> {
        let mut state = self.stream_component.watch();
        loop {
            tokio::select! {
                up = state.wait_for(|state| *state == State::Up) => { up.ok()?; }
                () = self.component.stop.cancelled() => return None,
            }
            let answer = self.stream.send(Slots { origin: self.origin.clone() }).await;
            if let Ok(Ok(mut stored)) = answer {
                stored.sort_by(|a, b| a.0.cmp(&b.0));
                return Some(stored);
            }
            tokio::time::sleep(Duration::from_millis(20)).await; // its keeper takes longer
        }
    }

    /// Publishes until a stop or until the stream disagrees. `stored` is what it holds now.
    async fn publish(&self, source: &mut dyn Source, stored: Vec<Slot>) -> Result<Ended> {
        let mut stored = stored;
        let mut under_way = UnderWay::new();
        let mut idle = false;
        loop {
            let stopping = self.component.stop.is_cancelled();
            if stopping && under_way.is_empty() {
                return Ok(Ended::Stopped);
            }
            if !stopping && !idle && under_way.len() < UNDER_WAY_MAX {
                match source.next().await? {
                    Pull::Batch(batch) => {
                        self.component.set_spent(false);
                        self.send(batch, source.waits(), &mut stored, &mut under_way).await?;
                    }
                    Pull::Idle => idle = true,
                    Pull::Spent => {
                        idle = true;
                        self.component.set_spent(under_way.is_empty());
                    }
                }
                // Answers that are here already are taken before the next batch.
                while let Some(answer) =
                    under_way.front_mut().and_then(|sent| (&mut sent.answer).now_or_never())
                {
                    if !self.accepted(source, under_way.pop_front(), answer) {
                        return self.settle(source, under_way).await;
                    }
                }
                continue;
            }
            if let Some(front) = under_way.front_mut() {
                let answer = tokio::select! {
                    answer = &mut front.answer => answer,
                    // What is not accepted by then is no loss: the checkpoint tells.
                    () = stopped_for(&self.component, STOP_WAIT) => return Ok(Ended::Stopped),
                };
                if !self.accepted(source, under_way.pop_front(), answer) {
                    return self.settle(source, under_way).await;
                }
                idle = idle && !under_way.is_empty(); // asks again whether it is spent
                continue;
            }
            tokio::select! {
                () = source.wait() => idle = false,
                () = tokio::time::sleep(COMPARE_EVERY) => {
                    match self.stored().await {
                        Some(now) if went_back(&stored, &now) => return Ok(Ended::Seek),
                        Some(now) => (stored, idle) = (now, false),
                        None => {}
                    }
                }
                () = self.component.stop.cancelled() => {}
            }
        }
    }

    /// Sends a batch on its way and steps `stored` ahead with it.
    async fn send(
        &self,
        mut batch: Batch,
        wait: bool,
        stored: &mut Vec<Slot>,
        under_way: &mut UnderWay,
    ) -> Result<()> {
        fault::point("source.next", batch.events.iter());
        if !batch.dead.is_empty() {
            self.bury(std::mem::take(&mut batch.dead)).await?;
        }
        if let Some(pointer) = &self.spec.key {
            for event in &mut batch.events {
                event.key = key_of(event, pointer);
            }
        }
        for step in &batch.moves {
            set_slot(stored, &step.slot, step.to.clone());
        }
        let events = batch.events.len() as u64;
        let spans = self.sends.begin(&mut batch.events);
        let moves = batch.moves;
        let append = stream::Append {
            origin: self.origin.clone(),
            moves: moves.clone(),
            events: batch.events,
        };
        let answer = self.stream.send(Append { append, wait });
        let answer = async move { answer.await.unwrap_or(Err(Down::Died)) }.boxed_local();
        under_way.push_back(Sent { events, moves, spans, since: Instant::now(), answer });
        Ok(())
    }

    /// What is no event is a dead letter before the checkpoint moves past it.
    async fn bury(&self, dead: Vec<Dead>) -> Result<()> {
        let (start_us, mut letters) = (now_us(), dead.clone());
        match self.stream.send(Bury { dead }).await {
            Ok(Ok(())) => {
                for letter in &mut letters {
                    never_sent(&self.shared.board.traces, &self.stream_spec, letter, start_us);
                    let (trace_id, span_id) = logs::ids(letter.event.trace.as_deref());
                    let (event, reason) = (letter.event.id, &letter.reason);
                    tracing::warn!(
                        source = %self.spec.name,
                        %event,
                        trace_id,
                        span_id,
                        "a dead letter: {reason}"
                    );
                }
                Ok(())
            }
            Ok(Err(Down::Failed(cause))) => anyhow::bail!("cannot keep a dead letter: {cause}"),
            Ok(Err(Down::Died)) | Err(_) => anyhow::bail!("cannot keep a dead letter"),
        }
    }

    /// Takes the answer to what was sent. `false`: the checkpoint has to be read again.
    fn accepted(
        &self,
        source: &mut dyn Source,
        sent: Option<Sent>,
        answer: Result<Appended, Down>,
    ) -> bool {
        let mut sent = sent;
        if let Some(sent) = &mut sent {
            // Before whoever asked for it hears of it: a span does not outlast its parent.
            self.sends.end(std::mem::take(&mut sent.spans), sent.events, &answer);
            source.answered(&sent.moves, outcome(&answer));
        }
        if !matches!(answer, Ok(Appended::Durable)) {
            self.failures.inc();
        }
        match (answer, sent) {
            (Ok(Appended::Durable), Some(sent)) => {
                self.component.progressed();
                self.seconds.observe(sent.since.elapsed().as_secs_f64());
                self.published.inc_by(sent.events);
                if let Some(named) = &self.named {
                    named.inc_by(sent.events);
                }
                true
            }
            (Ok(Appended::Rewound), _) => {
                tracing::info!(
                    source = %self.spec.name,
                    stream = %self.spec.to,
                    "the stream holds another checkpoint: going there"
                );
                false
            }
            // The source would not wait, so it has nothing to go back for.
            (Ok(Appended::Full(_)), _) => true,
            _ => false,
        }
    }

    /// Waits for what is still under way: it fails the same way, or it was stored after all.
    async fn settle(&self, source: &mut dyn Source, under_way: UnderWay) -> Result<Ended> {
        for mut sent in under_way {
            let answer = (&mut sent.answer).await;
            self.accepted(source, Some(sent), answer);
        }
        match self.component.stop.is_cancelled() {
            true => Ok(Ended::Stopped),
            false => Ok(Ended::Seek),
        }
    }
}

fn outcome(answer: &Result<Appended, Down>) -> Outcome {
    match answer {
        Ok(Appended::Durable) => Outcome::Durable,
        Ok(Appended::Full(backlog)) => Outcome::Full(*backlog),
        Ok(Appended::Rewound) | Err(_) => Outcome::Lost,
    }
}

/// Whether what a stream holds now is behind what it held before: it was put back, or emptied.
/// That others went ahead is nothing unusual.
fn went_back(before: &[Slot], now: &[Slot]) -> bool {
    before.iter().any(|(name, position)| {
        match now.binary_search_by(|(slot, _)| slot.as_str().cmp(name)) {
            Ok(place) => now[place].1.order < position.order,
            Err(_) => true,
        }
    })
}

/// Returns some time after a stop was asked for.
async fn stopped_for(component: &Component, time: Duration) {
    component.stop.cancelled().await;
    tokio::time::sleep(time).await;
}

/// Sets, or forgets, a slot in a sorted list of them.
fn set_slot(slots: &mut Vec<Slot>, name: &str, to: Option<Position>) {
    match (slots.binary_search_by(|(slot, _)| slot.as_str().cmp(name)), to) {
        (Ok(place), Some(to)) => slots[place].1 = to,
        (Ok(place), None) => {
            slots.remove(place);
        }
        (Err(place), Some(to)) => slots.insert(place, (name.to_owned(), to)),
        (Err(_), None) => {}
    }
}

/// The key a JSON pointer finds in a body: a string as it is, anything else as its JSON.
fn key_of(event: &Event, pointer: &str) -> Option<Box<str>> {
    let body: serde_json::Value = serde_json::from_slice(&event.body).ok()?;
    match body.pointer(pointer)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.as_str().into()),
        other => Some(other.to_string().into()),
    }
}
