//! The member actor: one hand of a consumer group. It fetches, delivers and acknowledges; reads
//! its next batch while the sink writes the last; renews what it holds; and finds the one event
//! of a batch that cannot be stored without failing the others.
//!
//! An event is a *suspect* once the sink refused it among others, or once the backend has handed
//! it out more often than an honest crash explains. A suspect is delivered alone, and the attempt
//! is charged before: after `attempts` of these it is a dead letter. It is never guilty for
//! sharing a batch, nor for a sink that is away.
//!
//! In an ordered group a member delivers each shard's events in order ([`ordered`], [`queues`]).

mod deliver;
mod hand;
mod ordered;
mod queues;
mod suspects;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::{Actor, Addr, Context, Supervised};
use anyhow::{Context as _, Result};

use self::hand::Hand;
use super::sink::SinkActor;
use super::stream::StreamActor;
use super::traced::{Journeys, Sends};
use super::{Shared, keeper};
use crate::event::Delivery;
use crate::event::trace::Place;
use crate::stream::{GroupSpec, Reader, ReaderSpec, StreamSpec};
use crate::telemetry::board::Component;
use crate::telemetry::metrics::{Ages, ComponentLabels, Exemplar, GroupLabels};

/// How long one fetch waits for events, and so how soon a stop is noticed.
const FETCH_WAIT: Duration = Duration::from_millis(200);
/// Bytes in one delivery, about.
const DELIVERY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Batches in a member's hand: one with the sink, one read ahead.
const BATCHES_MAX: usize = 2;

/// Where a group delivers.
#[derive(Clone)]
pub enum Target {
    /// A sink.
    Sink(Addr<SinkActor>, Arc<Component>),
    /// Another stream.
    Stream(Addr<StreamActor>, Arc<Component>, Arc<Sends>),
}

impl Target {
    fn component(&self) -> &Arc<Component> {
        match self {
            Self::Sink(_, component) | Self::Stream(_, component, _) => component,
        }
    }
}

/// Runs one member of a group.
pub struct MemberActor {
    group: GroupSpec,
    stream: StreamSpec,
    target: Target,
    shared: Shared,
    component: Arc<Component>,
    /// What was fetched and is not settled. It outlives a life: the next one goes on with it.
    hand: Rc<Hand>,
    journeys: Rc<Journeys>,
}

impl MemberActor {
    /// A member that has read nothing yet.
    pub fn new(
        group: GroupSpec,
        stream: StreamSpec,
        target: Target,
        shared: Shared,
        component: Arc<Component>,
    ) -> Self {
        let member = member_name(&shared, &group, &component);
        let journeys = Rc::new(Journeys::new(&shared.board.traces, &group, &stream, member));
        Self { group, stream, target, shared, component, hand: Rc::default(), journeys }
    }
}

impl Actor for MemberActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let life = work(
            self.group.clone(),
            self.stream.clone(),
            self.target.clone(),
            self.shared.clone(),
            self.component.clone(),
            self.hand.clone(),
            self.journeys.clone(),
        );
        keeper::live(ctx, &self.component, life);
    }
}

impl Supervised for MemberActor {}

/// One life of a member.
struct Member {
    group: GroupSpec,
    reader: Arc<dyn Reader>,
    target: Target,
    shared: Shared,
    component: Arc<Component>,
    hand: Rc<Hand>,
    journeys: Rc<Journeys>,
    counts: Counts,
}

/// What a member counts.
struct Counts {
    delivered: prometheus_client::metrics::counter::Counter,
    stored: prometheus_client::metrics::counter::Counter,
    refused: prometheus_client::metrics::counter::Counter,
    dead: prometheus_client::metrics::counter::Counter,
    seconds: Ages,
    named: Option<prometheus_client::metrics::counter::Counter>,
    sizes: prometheus_client::metrics::histogram::Histogram,
}

impl Counts {
    fn new(shared: &Shared, group: &GroupSpec, component: &Component) -> Self {
        let metrics = &shared.board.metrics;
        let labels = GroupLabels { stream: group.from.clone(), group: group.name.to_string() };
        let sizes = ComponentLabels { component: component.to_string() };
        Self {
            delivered: metrics.delivered.get_or_create_owned(&labels),
            stored: metrics.stored.get_or_create_owned(&labels),
            refused: metrics.refused.get_or_create_owned(&labels),
            dead: metrics.dead.get_or_create_owned(&labels),
            seconds: metrics.storage_seconds.get_or_create_owned(&labels),
            named: group.counter.as_ref().map(|name| {
                metrics.named(name, "Events a group stored, under a name of the user's")
            }),
            sizes: metrics.batch_events.get_or_create_owned(&sizes),
        }
    }
}

async fn work(
    group: GroupSpec,
    stream: StreamSpec,
    target: Target,
    shared: Shared,
    component: Arc<Component>,
    hand: Rc<Hand>,
    journeys: Rc<Journeys>,
) -> Result<()> {
    let context = || format!("group {} on stream {}", group.name, group.from);
    let backend = (stream.kind.open)(stream, shared.site.clone()).await.with_context(context)?;
    let name = member_name(&shared, &group, &component);
    let spec = ReaderSpec { group: group.clone(), member: name };
    let reader = backend.reader(spec).await.with_context(context)?;
    let counts = Counts::new(&shared, &group, &component);
    let member = Member { group, reader, target, shared, component, hand, journeys, counts };
    member.hand.resume();
    member.renew_once().await?;
    member.component.up();
    let work =
        async { tokio::try_join!(member.fetch(), member.deliver(), member.probe_suspects()) };
    tokio::select! {
        ended = work => { ended?; }
        failed = member.renew() => failed?,
    }
    let tickets = member.hand.tickets();
    member.reader.release(&tickets).await?;
    member.reader.leave().await?;
    member.journeys.lost(&tickets, "handed back");
    member.hand.clear();
    Ok(())
}

fn member_name(shared: &Shared, group: &GroupSpec, component: &Component) -> String {
    format!("{}/{}/{}", shared.site.instance, group.name, component.number)
}

/// The trace of an event that is followed.
fn exemplar(trace: &str) -> Option<Exemplar> {
    let place = Place::parse(trace).filter(|place| place.sampled)?;
    Some(Exemplar { trace_id: format!("{:032x}", place.trace_id) })
}

impl Member {
    fn stopping(&self) -> bool {
        self.component.stop.is_cancelled()
    }

    /// Reads ahead, as far as there is room in the hand.
    async fn fetch(&self) -> Result<()> {
        while !self.stopping() {
            let room = match self.group.ordered {
                true => self.hand.has_room_in_order(self.group.batch),
                false => self.hand.has_room(BATCHES_MAX, self.group.batch),
            };
            if !room {
                tokio::select! {
                    () = self.hand.room() => {}
                    () = self.component.stop.cancelled() => {}
                }
                continue;
            }
            let fetched = self.reader.fetch(self.group.batch, DELIVERY_BYTES_MAX, FETCH_WAIT);
            let mut batch = fetched.await?;
            if !batch.is_empty() {
                self.journeys.begin(&mut batch);
                self.counts.sizes.observe(batch.len() as f64);
                self.shared.board.taps.fetched(&self.group.from, &batch);
                match self.group.ordered {
                    true => {
                        let void = self.hand.push_in_order(batch);
                        self.journeys.lost(&void, "taken over");
                    }
                    false => self.hand.push(batch),
                }
            }
        }
        Ok(())
    }

    /// Keeps the leases of everything in the hand.
    async fn renew(&self) -> Result<()> {
        loop {
            tokio::time::sleep(self.group.lease / 3).await;
            self.renew_once().await?;
        }
    }

    async fn renew_once(&self) -> Result<()> {
        let tickets = self.hand.tickets();
        if tickets.is_empty() {
            return Ok(());
        }
        let acks = self.hand.acks();
        let lost = self.reader.renew(&tickets).await?;
        // What was acknowledged meanwhile is no longer this member's either; so is what an
        // acknowledgement under way is about. The next renewal tells them from real losses.
        let acked = acks != self.hand.acks() || self.hand.acking();
        if !lost.is_empty() && !acked {
            self.let_go(&lost).await?;
        }
        Ok(())
    }

    /// Acknowledges events that are stored.
    async fn stored(&self, deliveries: &[Delivery]) -> Result<()> {
        let tickets: Vec<_> = deliveries.iter().map(|delivery| delivery.ticket).collect();
        self.hand.begin_ack();
        let acked = self.reader.ack(&tickets).await;
        self.hand.end_ack();
        acked?;
        self.component.progressed();
        self.journeys.stored(deliveries);
        let target = || self.target.component().to_string();
        self.shared.board.taps.stored(&self.group.name, target, deliveries);
        self.counts.stored.inc_by(deliveries.len() as u64);
        if let Some(named) = &self.counts.named {
            named.inc_by(deliveries.len() as u64);
        }
        let now_us = crate::event::now_us();
        let traced = self.shared.board.traces.on();
        for Delivery { event, .. } in deliveries {
            let age_us = now_us.saturating_sub(event.time_us).max(0);
            let exemplar = event.trace.as_deref().filter(|_| traced).and_then(exemplar);
            let at = exemplar.is_some().then(SystemTime::now);
            self.counts.seconds.observe(age_us as f64 / 1e6, exemplar, at);
        }
        Ok(())
    }
}
