//! The sink actor: joins what members deliver into one write of its plug-in. A kind that can do
//! several writes at once is opened several times, and each of these takes from the one inbox.

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, ResponseFuture, Supervised};
use anyhow::{Result, anyhow};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio_util::sync::CancellationToken;

use super::inbox::{Inbox, Job, SharedInbox};
use super::message::{Alone, Deliver, Down};
use super::traced::Writes;
use super::{Current, Shared, given_up, keeper};
use crate::event::{Delivery, Refusal, Stored};
use crate::fault;
use crate::sink::{Sink, SinkSpec};
use crate::telemetry::board::Component;
use crate::telemetry::metrics::ComponentLabels;

/// Events in one write, at most; a single delivery may be larger.
const WRITE_EVENTS_MAX: usize = 4000;

/// How long a sink may be idle before it is asked whether it could store something.
const IDLE_MAX: Duration = Duration::from_secs(1);

type DeliverJob = Job<Deliver, Stored>;

/// Runs one sink.
pub struct SinkActor {
    spec: Current<SinkSpec>,
    shared: Shared,
    component: Arc<Component>,
    inbox: SharedInbox<Deliver, Stored>,
}

impl SinkActor {
    /// An actor for `spec` that has opened nothing yet.
    pub fn new(spec: Current<SinkSpec>, shared: Shared, component: Arc<Component>) -> Self {
        Self { spec, shared, component, inbox: Rc::new(Inbox::default()) }
    }
}

impl Actor for SinkActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let work =
            work(self.spec.get(), self.shared.clone(), self.component.clone(), self.inbox.clone());
        keeper::live(ctx, &self.component, work);
    }
}

impl Supervised for SinkActor {}

impl Handler<Deliver> for SinkActor {
    type Result = ResponseFuture<Result<Stored, Down>>;

    fn handle(&mut self, deliver: Deliver, _: &mut Self::Context) -> Self::Result {
        Box::pin(self.inbox.put(deliver))
    }
}

async fn work(
    spec: SinkSpec,
    shared: Shared,
    component: Arc<Component>,
    inbox: SharedInbox<Deliver, Stored>,
) -> Result<()> {
    let renewal = component.renewal();
    let writers = (spec.kind.writers)(&spec.values).max(1);
    let opening = (0..writers).map(|_| (spec.kind.open)(spec.clone(), shared.site.clone()));
    let opened = tokio::select! {
        opened = try_join_all(opening) => opened,
        () = renewal.cancelled() => return Ok(()),
    };
    let sinks = opened.inspect_err(|error| inbox.refuse_all(&format!("{error:#}").into()))?;
    component.up();
    let labels = ComponentLabels { component: component.to_string() };
    let metrics = &shared.board.metrics;
    let sizes = metrics.batch_events.get_or_create_owned(&labels);
    let seconds = metrics.write_seconds.get_or_create_owned(&labels);
    let failures = metrics.write_failures.get_or_create_owned(&labels);
    let writes = Writes::new(&shared.board.traces, &spec);
    let work = Work { shared, component, renewal, inbox, sizes, seconds, failures, writes };
    let ends = sinks.into_iter().map(|sink| AssertUnwindSafe(work.write(sink)).catch_unwind());
    // A writer that panics does so alone: the others' jobs are answered before it is passed on.
    let ended =
        try_join_all(ends.map(|end| async { end.await.map_err(End::Panic)?.map_err(End::Error) }));
    match ended.await {
        Ok(_) => Ok(()),
        Err(End::Error(error)) => Err(error),
        Err(End::Panic(panic)) => resume_unwind(panic),
    }
}

/// How a writer ends before its time. The others end with it.
enum End {
    Error(anyhow::Error),
    Panic(Box<dyn Any + Send>),
}

/// What the writers of one life share.
struct Work {
    shared: Shared,
    component: Arc<Component>,
    renewal: CancellationToken,
    inbox: SharedInbox<Deliver, Stored>,
    sizes: Histogram,
    seconds: Histogram,
    failures: Counter,
    writes: Writes,
}

impl Work {
    /// Writes what waits, until a stop or a new life is wanted.
    async fn write(&self, mut sink: Box<dyn Sink>) -> Result<()> {
        let Self { shared, component, renewal, inbox, sizes, seconds, failures, writes } = self;
        loop {
            tokio::select! {
                biased;
                () = renewal.cancelled() => return Ok(()),
                () = inbox.filled() => {}
                () = component.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(IDLE_MAX) => {
                    sink.check().await?;
                    continue;
                }
            }
            // Whoever delivers exclusively holds the suspicion for writing, so its job is taken
            // past those that wait for it here.
            let (_unsuspected, jobs) = tokio::select! {
                biased;
                job = inbox.take_first(|deliver| deliver.alone == Alone::Exclusive) => {
                    (None, vec![job])
                }
                // Another writer may have taken them meanwhile: the suspicion is not held for it.
                held = shared.suspicion.read() => (Some(held), inbox.take_waiting(fits)),
            };
            if jobs.is_empty() {
                continue;
            }
            let hand = InHand(jobs);
            let batch: Vec<&Delivery> =
                hand.0.iter().flat_map(|job| job.message.batch.iter()).collect();
            sizes.observe(batch.len() as f64);
            fault::point("sink.store", batch.iter().map(|delivery| &delivery.event));
            let (since, start_us) = (Instant::now(), writes.begin());
            let stored = tokio::select! {
                stored = store(sink.as_mut(), &batch) => stored,
                () = given_up(renewal) => Err(anyhow!("the write took too long for an edit")),
            };
            match stored {
                Ok(stored) => {
                    component.progressed();
                    seconds.observe(since.elapsed().as_secs_f64());
                    writes.end(&batch, start_us, Ok(&stored.refusals));
                    drop(batch);
                    answer(hand.take(), stored);
                }
                Err(error) => {
                    let cause: Arc<str> = format!("{error:#}").into();
                    failures.inc();
                    writes.end(&batch, start_us, Err(&cause));
                    drop(batch);
                    hand.refuse(&cause);
                    return if renewal.is_cancelled() { Ok(()) } else { Err(error) };
                }
            }
        }
    }
}

/// The jobs that a writer is at. Where it ends because another one did, they are no worse than
/// before; where it panics, nobody answers, and so they are told that it died of them.
struct InHand(Vec<DeliverJob>);

impl InHand {
    fn take(mut self) -> Vec<DeliverJob> {
        std::mem::take(&mut self.0)
    }

    fn refuse(self, cause: &Arc<str>) {
        for job in self.take() {
            job.answer(Err(Down::Failed(cause.clone())));
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for job in self.0.drain(..) {
            job.answer(Err(Down::Failed("the sink starts anew".into())));
        }
    }
}

/// One write: all of its deliveries are of ordered groups, or none is.
async fn store(sink: &mut dyn Sink, batch: &[&Delivery]) -> Result<Stored> {
    match batch.first().is_some_and(|delivery| delivery.fence.is_some()) {
        true => sink.store_ordered(batch).await,
        false => Ok(sink.store(batch).await?.into()),
    }
}

fn is_ordered(deliver: &Deliver) -> bool {
    deliver.batch.first().is_some_and(|delivery| delivery.fence.is_some())
}

/// Deliveries share a write as long as it is not too large and none wants it alone.
fn fits(taken: &[DeliverJob], next: &Deliver) -> bool {
    let events: usize = taken.iter().map(|job| job.message.batch.len()).sum();
    next.alone == Alone::No
        && taken.iter().all(|job| is_ordered(&job.message) == is_ordered(next))
        && taken.iter().all(|job| job.message.alone == Alone::No)
        && events + next.batch.len() <= WRITE_EVENTS_MAX
}

/// Gives each job its own refusals, numbered within its own batch.
fn answer(jobs: Vec<DeliverJob>, stored: Stored) {
    let mut refusals = stored.refusals.into_iter().peekable();
    let mut fenced = stored.fenced.into_iter().peekable();
    let mut first = 0;
    for job in jobs {
        let end = first + job.message.batch.len();
        let mut own = Stored::default();
        while let Some(refusal) = refusals.next_if(|refusal| refusal.index < end) {
            own.refusals.push(Refusal { index: refusal.index - first, reason: refusal.reason });
        }
        while let Some(index) = fenced.next_if(|index| *index < end) {
            own.fenced.push(index - first);
        }
        first = end;
        job.answer(Ok(own));
    }
}
