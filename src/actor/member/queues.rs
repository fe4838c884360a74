//! What a member of an ordered group holds: a queue for each shard. The events of a queue leave it
//! from the front only, so what waits for one that was refused is what stands behind it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::hand::Suspect;
use crate::event::{Delivery, Fence, Ticket};
use crate::stream::suspicion;

/// One shard's.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Delivery>,
    /// So many from the front are with the target.
    out: usize,
    /// So many from the front have seen `deaths` of the target or of this member.
    seen: usize,
    deaths: u32,
    /// The front is to be delivered alone.
    suspect: Option<Case>,
}

/// What is known of a suspect.
#[derive(Debug)]
struct Case {
    refused: Option<String>,
    due: Instant,
}

impl Queue {
    fn is_suspect(&self, place: usize) -> bool {
        let deaths = if place < self.seen { self.deaths } else { 0 };
        self.events.get(place).is_some_and(|delivery| suspicion::is_suspect(delivery, deaths))
    }

    fn is_blocked(&self) -> bool {
        self.suspect.is_some() || self.is_suspect(0)
    }

    fn pop(&mut self) {
        self.events.pop_front();
        self.out = self.out.saturating_sub(1);
        self.seen = self.seen.saturating_sub(1);
        self.suspect = None;
        if self.seen == 0 {
            self.deaths = 0;
        }
    }

    fn died(&mut self) {
        let out = std::mem::take(&mut self.out);
        if out > 0 {
            (self.seen, self.deaths) = (out, self.deaths + 1);
        }
    }
}

/// What is to be done next.
pub enum Next {
    /// This one came to be a suspect, and nobody has told yet.
    Suspected(Delivery),
    /// This one is to be delivered alone.
    Alone(Suspect),
    /// These are to be delivered together.
    Batch(Vec<Delivery>),
    /// Nothing, before a suspect is due.
    Wait(Option<Instant>),
}

/// The queues of a member.
#[derive(Debug, Default)]
pub struct Queues {
    queues: BTreeMap<u32, Queue>,
    /// Of each shard, the last ownership that came to its end in the midst of a queue.
    over: BTreeMap<u32, i64>,
    /// The shard that the last batch began with.
    turn: u32,
    /// The last was a suspect: it is the turn of a batch.
    was_alone: bool,
}

fn epoch(delivery: &Delivery) -> Option<i64> {
    delivery.fence.as_ref().map(|fence| fence.epoch)
}

impl Queues {
    /// Adds what was fetched. Answers what is void: events that the member has, or had on the way,
    /// by right of an earlier ownership.
    pub fn push(&mut self, deliveries: Vec<Delivery>) -> Vec<Ticket> {
        let mut void = Vec::new();
        for delivery in deliveries {
            // What stood before it in the queue comes again, by right of the next ownership.
            // invariant: in-order
            let over = self.over.get(&delivery.ticket.shard).copied();
            if over.is_some() && epoch(&delivery) == over {
                void.push(delivery.ticket);
                continue;
            }
            let queue = self.queues.entry(delivery.ticket.shard).or_default();
            if queue.events.back().is_some_and(|last| epoch(last) != epoch(&delivery)) {
                let old = std::mem::take(queue);
                void.extend(old.events.iter().map(|delivery| delivery.ticket));
            }
            queue.events.push_back(delivery);
        }
        void
    }

    /// Events that wait for nothing but their turn.
    pub fn ready(&self) -> usize {
        let free = self.queues.values().filter(|queue| !queue.is_blocked());
        free.map(|queue| queue.events.len()).sum()
    }

    /// What is to be done next; of a batch, what is not with the target is again in its queue.
    pub fn next(&mut self, events_max: usize, bytes_max: usize) -> Next {
        let now = Instant::now();
        for queue in self.queues.values() {
            if let Some(front) = queue.events.front()
                && queue.suspect.is_none()
                && queue.is_suspect(0)
            {
                return Next::Suspected(front.clone());
            }
        }
        let alone = self.first_due();
        let is_due = alone.as_ref().is_some_and(|suspect| suspect.due <= now);
        if is_due && !self.was_alone {
            self.was_alone = true;
            return alone.map_or(Next::Wait(None), Next::Alone);
        }
        self.was_alone = false;
        let batch = self.gather(events_max, bytes_max);
        match alone {
            _ if !batch.is_empty() => Next::Batch(batch),
            Some(suspect) if is_due => Next::Alone(suspect),
            alone => Next::Wait(alone.map(|suspect| suspect.due)),
        }
    }

    fn first_due(&self) -> Option<Suspect> {
        let suspects = self.queues.values().filter_map(|queue| {
            let (case, front) = (queue.suspect.as_ref()?, queue.events.front()?);
            let (delivery, refused) = (front.clone(), case.refused.clone());
            Some(Suspect { delivery, refused, due: case.due })
        });
        suspects.min_by_key(|suspect| suspect.due)
    }

    /// The next events of each shard, beginning with another each time.
    fn gather(&mut self, events_max: usize, bytes_max: usize) -> Vec<Delivery> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let turn = self.turn;
        let order: Vec<u32> = (self.queues.range(turn + 1..).map(|(shard, _)| *shard))
            .chain(self.queues.range(..=turn).map(|(shard, _)| *shard))
            .collect();
        for shard in order {
            let Some(queue) = self.queues.get_mut(&shard) else { continue };
            if queue.suspect.is_some() {
                continue;
            }
            // What has seen a death goes again without anything else of its shard.
            let most = if queue.seen > 0 { queue.seen } else { queue.events.len() };
            for place in 0..most {
                let Some(delivery) = queue.events.get(place) else { break };
                let full = batch.len() >= events_max
                    || (!batch.is_empty() && bytes + delivery.event.size() > bytes_max);
                if full || queue.is_suspect(place) {
                    break;
                }
                if batch.is_empty() {
                    self.turn = shard;
                }
                bytes += delivery.event.size();
                batch.push(delivery.clone());
                queue.out = place + 1;
            }
        }
        batch
    }

    /// Nothing is with the target any more, and it has not died.
    pub fn back(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.out = 0);
    }

    /// The target, or this member, died with what was with it.
    pub fn died(&mut self) {
        self.queues.values_mut().for_each(Queue::died);
    }

    /// These, from the front of their queues, are done with.
    pub fn done(&mut self, tickets: &[Ticket]) {
        let mut left: HashSet<Ticket> = tickets.iter().copied().collect();
        for queue in self.queues.values_mut() {
            while queue.events.front().is_some_and(|front| left.remove(&front.ticket)) {
                queue.pop();
            }
        }
        self.queues.retain(|_, queue| !queue.events.is_empty());
    }

    /// Puts the front of a queue under suspicion, or changes what is known of it.
    pub fn suspect(&mut self, suspect: Suspect) {
        let Suspect { delivery, refused, due } = suspect;
        if let Some(queue) = self.queues.get_mut(&delivery.ticket.shard)
            && let Some(front) = queue.events.front_mut()
            && front.ticket == delivery.ticket
        {
            *front = delivery;
            queue.suspect = Some(Case { refused, due });
        }
    }

    /// Everything held.
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.queues.values().flat_map(|queue| queue.events.iter().map(|delivery| delivery.ticket))
    }

    /// Who lost one event of a shard lost the shard. Answers all that this makes void.
    pub fn lose(&mut self, lost: &HashSet<Ticket>) -> Vec<Ticket> {
        self.drop_if(|queue| queue.events.iter().any(|it| lost.contains(&it.ticket)))
    }

    /// The shard has a newer owner. Answers what this makes void.
    pub fn fenced(&mut self, fence: &Arc<Fence>) -> Vec<Ticket> {
        self.drop_if(|queue| {
            queue.events.front().is_some_and(|front| front.fence.as_ref() == Some(fence))
        })
    }

    fn drop_if(&mut self, gone: impl Fn(&Queue) -> bool) -> Vec<Ticket> {
        let (mut void, over) = (Vec::new(), &mut self.over);
        self.queues.retain(|shard, queue| {
            let gone = gone(queue);
            if gone {
                void.extend(queue.events.iter().map(|delivery| delivery.ticket));
                over.extend(queue.events.back().and_then(epoch).map(|epoch| (*shard, epoch)));
            }
            !gone
        });
        void
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        self.queues.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventId};

    fn delivery(shard: u32, offset: u64, epoch: i64) -> Delivery {
        let id = EventId::hashed(&[&offset.to_le_bytes()]);
        let fence = Fence { group: "s/g/1".into(), shard, epoch };
        Delivery {
            event: Event::new(id, Default::default(), "input".into(), 0),
            stream: "s".into(),
            ticket: Ticket { shard, hold: epoch as u64, offset },
            deliveries: 1,
            attempts: 0,
            fence: Some(Arc::new(fence)),
        }
    }

    fn batch(queues: &mut Queues, most: usize) -> Vec<(u32, u64)> {
        match queues.next(most, usize::MAX) {
            Next::Batch(batch) => {
                batch.iter().map(|it| (it.ticket.shard, it.ticket.offset)).collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn what_was_on_the_way_when_its_queue_was_lost_is_not_delivered() {
        let mut queues = Queues::default();
        queues.push((0..3).map(|at| delivery(0, at, 1)).collect());
        let lost = queues.lose(&[delivery(0, 1, 1).ticket].into());
        assert_eq!(lost, [0, 1, 2].map(|at| delivery(0, at, 1).ticket));
        let late = vec![delivery(0, 3, 1), delivery(1, 0, 1)];
        assert_eq!(queues.push(late), [delivery(0, 3, 1).ticket]);
        assert_eq!(batch(&mut queues, 9), [(1, 0)]);
        assert_eq!(queues.push(vec![delivery(0, 0, 2)]), []);
        assert_eq!(batch(&mut queues, 9), [(0, 0), (1, 0)]);
    }

    #[test]
    fn what_is_behind_a_refused_event_waits_and_other_shards_go_on() {
        let mut queues = Queues::default();
        queues.push((0..4).map(|at| delivery(0, at, 1)).collect());
        queues.push((0..2).map(|at| delivery(1, at, 1)).collect());
        assert_eq!(batch(&mut queues, 9), [(1, 0), (1, 1), (0, 0), (0, 1), (0, 2), (0, 3)]);
        queues.done(&[delivery(0, 0, 1).ticket]);
        let late = Instant::now() + std::time::Duration::from_secs(60);
        let refused = Some("no".to_owned());
        queues.suspect(Suspect { delivery: delivery(0, 1, 1), refused, due: late });
        queues.back();
        assert_eq!(batch(&mut queues, 9), [(1, 0), (1, 1)]);
        queues.done(&[delivery(1, 0, 1).ticket, delivery(1, 1, 1).ticket]);
        assert!(matches!(queues.next(9, 9), Next::Wait(Some(due)) if due == late));
        queues.done(&[delivery(0, 1, 1).ticket]);
        assert_eq!(batch(&mut queues, 9), [(0, 2), (0, 3)]);
    }

    #[test]
    fn what_saw_a_death_goes_again_alone_with_itself_and_then_one_by_one() {
        let mut queues = Queues::default();
        queues.push((0..2).map(|at| delivery(0, at, 1)).collect());
        assert_eq!(batch(&mut queues, 9), [(0, 0), (0, 1)]);
        queues.push(vec![delivery(0, 2, 1)]);
        queues.died();
        assert_eq!(batch(&mut queues, 9), [(0, 0), (0, 1)]);
        queues.died();
        assert!(matches!(queues.next(9, 9), Next::Suspected(it) if it.ticket.offset == 0));
    }

    #[test]
    fn a_new_ownership_makes_the_old_one_void() {
        let mut queues = Queues::default();
        queues.push(vec![delivery(0, 5, 1), delivery(1, 5, 1)]);
        assert_eq!(queues.push(vec![delivery(0, 5, 2)]), [delivery(0, 5, 1).ticket]);
        let lost = [delivery(0, 5, 1).ticket].into();
        assert!(queues.lose(&lost).is_empty(), "what is lost is not held any more");
        let fence = delivery(1, 5, 1).fence.unwrap();
        assert_eq!(queues.fenced(&fence), [delivery(1, 5, 1).ticket]);
    }
}
