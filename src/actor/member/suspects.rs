//! Suspects: delivered alone, each attempt charged before, until they are stored or given up.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::Member;
use super::deliver::Outcome;
use super::hand::Suspect;
use crate::actor::message::Alone;
use crate::event::now_us;
use crate::stream::suspicion;
use crate::telemetry::board::State;
use crate::telemetry::logs;

impl Member {
    /// Delivers suspects as they fall due, beside the batches.
    pub async fn probe_suspects(&self) -> Result<()> {
        while !self.stopping() {
            let Some(suspect) = self.hand.next_suspect() else {
                tokio::select! {
                    () = self.hand.suspected() => {}
                    () = self.component.stop.cancelled() => {}
                }
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(suspect.due.into()) => {}
                () = self.component.stop.cancelled() => continue,
            }
            self.probe(suspect).await?;
        }
        Ok(())
    }

    pub(super) async fn probe(&self, suspect: Suspect) -> Result<()> {
        if suspect.delivery.attempts >= self.group.attempts {
            return self.give_up(suspect).await;
        }
        if !self.target_up().await {
            return Ok(());
        }
        // One that was refused is known to do no worse. One that a death put here may take the
        // process down: then no other event may be under way, or it would be blamed as well.
        let exclusive = suspect.refused.is_none();
        let _suspicion = match exclusive {
            true => Some(self.shared.suspicion.write().await),
            false => None,
        };
        if self.target.component().state() != State::Up {
            return Ok(());
        }
        let ticket = suspect.delivery.ticket;
        let Some(attempts) = self.reader.charge(ticket).await? else {
            if self.group.ordered {
                return self.let_go(&[ticket]).await;
            }
            self.journeys.lost(&[ticket], "taken over");
            self.hand.clear_suspect(ticket);
            return Ok(());
        };
        let mut suspect = suspect;
        suspect.delivery.attempts = attempts;
        self.hand.update_suspect(suspect.clone());
        let alone = if exclusive { Alone::Exclusive } else { Alone::Yes };
        match self.send(Arc::new(vec![suspect.delivery.clone()]), alone).await {
            Outcome::Stored(stored) if !stored.fenced.is_empty() => {
                self.turned_away(suspect.delivery.fence.as_ref().as_slice()).await?;
            }
            Outcome::Stored(stored) => match stored.refusals.into_iter().next() {
                None => {
                    self.stored(&[suspect.delivery]).await?;
                    self.hand.clear_suspect(ticket);
                }
                Some(refusal) => {
                    self.counts.refused.inc();
                    self.journeys.failed(&mut suspect.delivery, "refused", &refusal.reason);
                    self.postpone(suspect, Some(refusal.reason));
                }
            },
            Outcome::Died => {
                let cause = "its sink died with it, alone";
                self.journeys.failed(&mut suspect.delivery, "died", cause);
                self.postpone(suspect, None);
            }
            Outcome::Away(cause) => {
                self.journeys.retried(std::slice::from_ref(&suspect.delivery), &cause);
                self.reader.refund(ticket).await?;
                suspect.delivery.attempts = attempts.saturating_sub(1);
                self.hand.update_suspect(suspect);
            }
        }
        Ok(())
    }

    fn postpone(&self, mut suspect: Suspect, refused: Option<String>) {
        suspect.due = Instant::now() + suspicion::wait_after(suspect.delivery.attempts);
        if suspect.delivery.attempts >= self.group.attempts {
            suspect.due = Instant::now();
        }
        suspect.refused = refused;
        self.hand.update_suspect(suspect);
    }

    async fn give_up(&self, suspect: Suspect) -> Result<()> {
        let reason = suspect.refused.unwrap_or_else(|| {
            let times = suspect.delivery.attempts;
            format!("its delivery alone took its sink or process down, {times} times")
        });
        if !self.still_owns(suspect.delivery.ticket).await? {
            return Ok(());
        }
        let event = &suspect.delivery.event;
        let start_us = now_us();
        // It is acked by that: a renewal must not take it for lost.
        self.hand.begin_ack();
        let buried = self.reader.bury(&suspect.delivery, &reason).await;
        self.hand.end_ack();
        buried?;
        self.journeys.buried(&suspect.delivery, &reason, start_us);
        self.counts.dead.inc();
        let target = self.target.component();
        let (trace_id, span_id) = logs::ids(event.trace.as_deref());
        tracing::warn!(
            group = %self.group.name,
            to = %target,
            event = %event.id,
            trace_id,
            span_id,
            "a dead letter: {reason}"
        );
        self.hand.clear_suspect(suspect.delivery.ticket);
        Ok(())
    }
}
