//! The sink actor: joins what members deliver into one write of its plug-in.

use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Context, Handler, ResponseFuture, Supervised};
use anyhow::Result;

use super::inbox::{Inbox, Job, SharedInbox};
use super::message::{Alone, Deliver, Down};
use super::{Shared, keeper};
use crate::event::{Delivery, Refusal};
use crate::fault;
use crate::sink::SinkSpec;
use crate::telemetry::board::Component;
use crate::telemetry::metrics::ComponentLabels;

/// Events in one write, at most; a single delivery may be larger.
const WRITE_EVENTS_MAX: usize = 4000;

type DeliverJob = Job<Deliver, Vec<Refusal>>;

/// Runs one sink.
pub struct SinkActor {
    spec: SinkSpec,
    shared: Shared,
    component: Arc<Component>,
    inbox: SharedInbox<Deliver, Vec<Refusal>>,
}

impl SinkActor {
    /// An actor for `spec` that has opened nothing yet.
    pub fn new(spec: SinkSpec, shared: Shared, component: Arc<Component>) -> Self {
        Self { spec, shared, component, inbox: Rc::new(Inbox::default()) }
    }
}

impl Actor for SinkActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let work = work(
            self.spec.clone(),
            self.shared.clone(),
            self.component.clone(),
            self.inbox.clone(),
        );
        keeper::live(ctx, &self.component, work);
    }
}

impl Supervised for SinkActor {}

impl Handler<Deliver> for SinkActor {
    type Result = ResponseFuture<Result<Vec<Refusal>, Down>>;

    fn handle(&mut self, deliver: Deliver, _: &mut Self::Context) -> Self::Result {
        Box::pin(self.inbox.put(deliver))
    }
}

async fn work(
    spec: SinkSpec,
    shared: Shared,
    component: Arc<Component>,
    inbox: SharedInbox<Deliver, Vec<Refusal>>,
) -> Result<()> {
    let opened = (spec.kind.open)(spec.clone(), shared.site.clone()).await;
    let mut sink = opened.inspect_err(|error| inbox.refuse_all(&format!("{error:#}").into()))?;
    component.up();
    let sizes = shared
        .board
        .metrics
        .batch_events
        .get_or_create_owned(&ComponentLabels { component: component.to_string() });
    loop {
        tokio::select! {
            biased;
            () = inbox.filled() => {}
            () = component.stop.cancelled() => return Ok(()),
        }
        // Whoever delivers exclusively holds the suspicion for writing, so its job is taken past
        // those that wait for it here.
        let (_unsuspected, jobs) = tokio::select! {
            biased;
            job = inbox.take_first(|deliver| deliver.alone == Alone::Exclusive) => {
                (None, vec![job])
            }
            held = shared.suspicion.read() => (Some(held), inbox.take(fits).await),
        };
        let batch: Vec<&Delivery> = jobs.iter().flat_map(|job| job.message.batch.iter()).collect();
        sizes.observe(batch.len() as f64);
        fault::point("sink.store", batch.iter().map(|delivery| &delivery.event));
        match sink.store(&batch).await {
            Ok(refusals) => {
                component.progressed();
                answer(jobs, refusals);
            }
            Err(error) => {
                let cause: Arc<str> = format!("{error:#}").into();
                for job in jobs {
                    job.answer(Err(Down::Failed(cause.clone())));
                }
                return Err(error);
            }
        }
    }
}

/// Deliveries share a write as long as it is not too large and none wants it alone.
fn fits(taken: &[DeliverJob], next: &Deliver) -> bool {
    let events: usize = taken.iter().map(|job| job.message.batch.len()).sum();
    next.alone == Alone::No
        && taken.iter().all(|job| job.message.alone == Alone::No)
        && events + next.batch.len() <= WRITE_EVENTS_MAX
}

/// Gives each job its own refusals, numbered within its own batch.
fn answer(jobs: Vec<DeliverJob>, refusals: Vec<Refusal>) {
    let mut refusals = refusals.into_iter().peekable();
    let mut first = 0;
    for job in jobs {
        let end = first + job.message.batch.len();
        let mut own = Vec::new();
        while let Some(refusal) = refusals.next_if(|refusal| refusal.index < end) {
            own.push(Refusal { index: refusal.index - first, reason: refusal.reason });
        }
        first = end;
        job.answer(Ok(own));
    }
}
