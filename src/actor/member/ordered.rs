//! The deliveries of a member of an ordered group: each shard's events in order, a batch at a
//! time. What is refused is delivered alone, and its shard waits for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::deliver::Outcome;
use super::hand::Suspect;
use super::queues::Next;
use super::{DELIVERY_BYTES_MAX, Member};
use crate::actor::message::Alone;
use crate::event::{Delivery, Fence, Stored, Ticket};

/// How long a member rests that a sink has turned away: it may be before the stream knows.
const TURNED_AWAY: Duration = Duration::from_millis(200);

impl Member {
    /// Delivers what is next, again and again.
    pub(super) async fn deliver_in_order(&self) -> Result<()> {
        while !self.stopping() {
            match self.hand.next_in_order(self.group.batch, DELIVERY_BYTES_MAX) {
                Next::Suspected(mut delivery) => {
                    let cause =
                        "it was handed out before, and nothing is known of what became of it";
                    self.journeys.failed(&mut delivery, "suspected", cause);
                    self.hand.suspect(Suspect { delivery, refused: None, due: Instant::now() });
                }
                Next::Alone(suspect) => self.probe(suspect).await?,
                Next::Batch(batch) => self.deliver_batch(Arc::new(batch)).await?,
                Next::Wait(due) => tokio::select! {
                    () = self.hand.arrived() => {}
                    () = self.component.stop.cancelled() => {}
                    () = async {
                        match due {
                            Some(due) => tokio::time::sleep_until(due.into()).await,
                            None => std::future::pending().await,
                        }
                    } => {}
                },
            }
        }
        Ok(())
    }

    async fn deliver_batch(&self, batch: Arc<Vec<Delivery>>) -> Result<()> {
        if !self.target_up().await {
            self.hand.back();
            return Ok(());
        }
        self.hand.set_delivering(true);
        let outcome = self.send(batch.clone(), Alone::No).await;
        self.hand.set_delivering(false);
        match outcome {
            Outcome::Stored(stored) => {
                self.hand.back();
                self.settle_in_order(&batch, stored).await?;
            }
            Outcome::Died => {
                self.journeys.retried(&batch, "the target died with it");
                self.hand.front_died();
            }
            Outcome::Away(cause) => {
                self.journeys.retried(&batch, &cause);
                self.hand.back();
            }
        }
        Ok(())
    }

    /// Acknowledges what is stored: of each shard, what stands before its first refused event.
    async fn settle_in_order(&self, batch: &[Delivery], answer: Stored) -> Result<()> {
        let fenced: HashSet<usize> = answer.fenced.iter().copied().collect();
        let mut refusals = answer.refusals;
        refusals.sort_by_key(|refusal| refusal.index);
        let mut refusals = refusals.into_iter().peekable();
        let (mut waiting, mut stored, mut suspects) = (HashSet::new(), Vec::new(), Vec::new());
        for (index, delivery) in batch.iter().enumerate() {
            let refused = refusals.next_if(|refusal| refusal.index == index);
            if fenced.contains(&index) || waiting.contains(&delivery.ticket.shard) {
                continue;
            }
            match refused {
                None => stored.push(delivery.clone()),
                Some(refusal) => {
                    waiting.insert(delivery.ticket.shard);
                    suspects.push((delivery.clone(), refusal.reason));
                }
            }
        }
        // invariant: no-event-lost, in-order
        if !stored.is_empty() {
            self.stored(&stored).await?;
            let tickets: Vec<Ticket> = stored.iter().map(|delivery| delivery.ticket).collect();
            self.hand.done(&tickets);
        }
        self.counts.refused.inc_by(suspects.len() as u64);
        for (mut delivery, reason) in suspects {
            self.journeys.failed(&mut delivery, "refused", &reason);
            self.hand.suspect(Suspect { delivery, refused: Some(reason), due: Instant::now() });
        }
        let mut fences: Vec<&Arc<Fence>> =
            answer.fenced.iter().filter_map(|at| batch.get(*at)?.fence.as_ref()).collect();
        fences.sort_unstable();
        fences.dedup();
        self.turned_away(&fences).await
    }

    /// These shards have newer owners, as the target says. Where the stream does not say so too,
    /// the member gives them up, so that the next owner is a newer one.
    pub(super) async fn turned_away(&self, fences: &[&Arc<Fence>]) -> Result<()> {
        for fence in fences {
            let void = self.hand.fenced(fence);
            if !void.is_empty() {
                self.shared.board.taken_over(&self.group.name, void.len());
                self.journeys.lost(&void, "taken over");
                self.reader.release(&void).await?;
                tokio::time::sleep(TURNED_AWAY).await;
            }
        }
        Ok(())
    }

    /// Whether a suspect is still this member's; if not, its shard is another's.
    pub(super) async fn still_owns(&self, ticket: Ticket) -> Result<bool> {
        if !self.group.ordered || self.reader.renew(&[ticket]).await?.is_empty() {
            return Ok(true);
        }
        self.let_go(&[ticket]).await?;
        Ok(false)
    }

    /// These are not this member's any more, and with them in an ordered group all of their shards.
    pub(super) async fn let_go(&self, lost: &[Ticket]) -> Result<()> {
        let void = self.hand.lose(lost);
        self.shared.board.taken_over(&self.group.name, void.len());
        self.journeys.lost(&void, "taken over");
        // Nobody need have followed: an event can be gone from a shard that is still this member's.
        // What stood behind it comes again, in order, to whoever owns the shard next.
        if self.group.ordered && !void.is_empty() {
            self.reader.release(&void).await?;
        }
        Ok(())
    }
}
