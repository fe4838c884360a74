//! Batches on their way to the target.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::hand::{Held, Suspect};
use super::{Member, Target};
use crate::actor::message::{Alone, Append, Deliver, Down};
use crate::event::{Delivery, Event, Refusal, Stored};
use crate::fault;
use crate::stream::{self, Appended, suspicion};
use crate::telemetry::board::State;

/// What came of a delivery.
pub enum Outcome {
    /// Stored, but for some.
    Stored(Stored),
    /// The target could not work, and not because of the events: why.
    Away(Arc<str>),
    /// The target died with the events in hand.
    Died,
}

impl Member {
    /// Delivers batch after batch.
    pub async fn deliver(&self) -> Result<()> {
        if self.group.ordered {
            return self.deliver_in_order().await;
        }
        while !self.stopping() {
            match self.hand.front() {
                Some(held) => self.deliver_held(held).await?,
                None => tokio::select! {
                    () = self.hand.arrived() => {}
                    () = self.component.stop.cancelled() => {}
                },
            }
        }
        Ok(())
    }

    /// Delivers one batch as far as it goes: what is stored or suspected leaves it.
    async fn deliver_held(&self, held: Held) -> Result<()> {
        let suspected = |delivery: &Delivery| suspicion::is_suspect(delivery, held.deaths);
        if held.deliveries.iter().any(suspected) {
            let (suspects, rest): (Vec<_>, Vec<_>) =
                held.deliveries.iter().cloned().partition(suspected);
            for mut delivery in suspects {
                let cause = "it was handed out before, and nothing is known of what became of it";
                self.journeys.failed(&mut delivery, "suspected", cause);
                self.hand.suspect(Suspect { delivery, refused: None, due: Instant::now() });
            }
            self.hand.replace_front(rest);
            return Ok(());
        }
        if held.deliveries.is_empty() {
            self.hand.replace_front(Vec::new());
            return Ok(());
        }
        if !self.target_up().await {
            return Ok(());
        }
        self.hand.set_delivering(true);
        let outcome = self.send(held.deliveries.clone(), Alone::No).await;
        self.hand.set_delivering(false);
        match outcome {
            Outcome::Stored(stored) => self.settle(&held, stored.refusals).await?,
            Outcome::Died => {
                self.journeys.retried(&held.deliveries, "the target died with it");
                self.hand.front_died();
            }
            Outcome::Away(cause) => self.journeys.retried(&held.deliveries, &cause),
        }
        Ok(())
    }

    /// Acknowledges what is stored and puts what was refused under suspicion.
    async fn settle(&self, held: &Held, refusals: Vec<Refusal>) -> Result<()> {
        if refusals.is_empty() {
            self.stored(&held.deliveries).await?;
            self.hand.replace_front(Vec::new());
            return Ok(());
        }
        self.counts.refused.inc_by(refusals.len() as u64);
        let mut refused = vec![None; held.deliveries.len()];
        for refusal in refusals {
            if let Some(place) = refused.get_mut(refusal.index) {
                *place = Some(refusal.reason);
            }
        }
        let mut stored = Vec::with_capacity(held.deliveries.len());
        let mut suspects = Vec::new();
        for (delivery, refused) in held.deliveries.iter().zip(refused) {
            match refused {
                None => stored.push(delivery.clone()),
                Some(reason) => suspects.push((delivery.clone(), reason)),
            }
        }
        self.stored(&stored).await?;
        for (mut delivery, reason) in suspects {
            self.journeys.failed(&mut delivery, "refused", &reason);
            self.hand.suspect(Suspect { delivery, refused: Some(reason), due: Instant::now() });
        }
        self.hand.replace_front(Vec::new());
        Ok(())
    }

    /// Waits until the target works. `false`: this member is to stop first.
    pub async fn target_up(&self) -> bool {
        let mut state = self.target.component().watch();
        tokio::select! {
            up = state.wait_for(|state| *state == State::Up) => up.is_ok(),
            () = self.component.stop.cancelled() => false,
        }
    }

    /// Hands events to the target and waits for the answer; also while a stop is wanted, since a
    /// write that is under way ends soon, and only until the target goes down.
    /// Where that takes too long for an edit, it is as if the target had gone down.
    pub async fn send(&self, batch: Arc<Vec<Delivery>>, alone: Alone) -> Outcome {
        tokio::select! {
            outcome = self.send_on(batch, alone) => outcome,
            () = self.component.abort.cancelled() => Outcome::Away("an edit would not wait".into()),
        }
    }

    async fn send_on(&self, batch: Arc<Vec<Delivery>>, alone: Alone) -> Outcome {
        fault::point("member.deliver", batch.iter().map(|delivery| &delivery.event));
        self.counts.delivered.inc_by(batch.len() as u64);
        let answer = match &self.target {
            Target::Sink(sink, _) => {
                sink.send(Deliver { batch, alone }).await.unwrap_or(Err(Down::Died))
            }
            Target::Stream(stream, _, sends) => {
                // A replayed dead letter was for this group of this stream, not for one of the next.
                // The shard was one of the stream that it comes from.
                let pass_on =
                    |it: &Delivery| Event { only_group: None, shard: None, ..it.event.clone() };
                let mut events: Vec<Event> = batch.iter().map(pass_on).collect();
                let spans = sends.begin(&mut events);
                let append = stream::Append { origin: "".into(), moves: Vec::new(), events };
                let answer = stream.send(Append { append, wait: true }).await;
                let answer = answer.unwrap_or(Err(Down::Died));
                sends.end(spans, batch.len() as u64, &answer);
                match answer {
                    Ok(Appended::Durable) => Ok(Stored::default()),
                    Ok(Appended::Full(_) | Appended::Rewound) => Err(Down::Failed("full".into())),
                    Err(down) => Err(down),
                }
            }
        };
        match answer {
            Ok(stored) => Outcome::Stored(stored),
            Err(Down::Failed(cause)) => Outcome::Away(cause),
            Err(Down::Died) => Outcome::Died,
        }
    }
}
