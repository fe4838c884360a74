//! How attempts are counted.
//!
//! A charge has to be durable before the event is delivered alone, and the broker cannot change a
//! message. So a charge is a copy of the event, with one attempt more, in the group's queue of
//! suspects: nobody consumes that queue; who made the copy takes it out at once, and acks what it
//! was made from. A crash
//! - before the copy is confirmed leaves the event as it was (and perhaps a copy, never delivered:
//!   the same event twice, which the sink keeps once),
//! - before it is taken out leaves an *unspent* attempt: whoever finds the copy delivers it for
//!   that attempt,
//! - after it leaves a copy that was delivered before: its attempt counts.
//!
//! A classic queue writes acks down late: when its broker is killed, older copies may come back
//! beside the newest, with fewer attempts.
//!
//! Members look for such copies once a second. Who finds a copy that another is about to take out
//! has it from then on, and the other finds out that the event is no longer its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lapin::options::BasicGetOptions;

use super::hand::{Held, Place, Word};
use super::link::answer;
use super::message::{Counts, Decoder, Message, Read};
use super::reader::Shared;
use crate::event::Ticket;

/// Suspects that are taken in at a time, at most.
const ADOPT_MAX: usize = 50;
/// How often a copy is looked for that another member may have taken in hand for a moment.
const FIND_TRIES: u32 = 10;
/// How long between two looks.
const FIND_PAUSE: Duration = Duration::from_millis(20);
/// How long a charge may take: meanwhile no lease ends.
const CHARGE_MAX: Duration = Duration::from_secs(30);

impl Shared {
    /// Takes in suspects that nobody holds.
    pub async fn adopt(&self) -> Result<()> {
        let _one = self.suspecting.lock().await;
        for _ in 0..ADOPT_MAX {
            let Some((place, read)) = self.get().await? else { break };
            self.take_in(place, read);
        }
        Ok(())
    }

    /// Takes one message out of the queue of suspects.
    async fn get(&self) -> Result<Option<(Place, Read)>> {
        let lane = self.hand.suspects();
        let queue = &self.names.suspects;
        let got =
            self.hand.lanes[lane].channel.basic_get(queue.clone(), BasicGetOptions::default());
        let Some(message) = answer(&format!("look into queue `{queue}`"), got).await? else {
            return Ok(None);
        };
        let place = Place { lane, tag: message.delivery.delivery_tag };
        self.hand.lock().arrived(place);
        let mut decoder = Decoder::new(self.broker.spec.name.clone());
        Ok(Some((place, decoder.read(message.delivery))))
    }

    fn take_in(&self, place: Place, read: Read) {
        let shard = read.counts.shard.min(self.broker.names.shards - 1);
        self.hand.lock().buffer.push_back(Held::new(read, place, shard));
    }

    /// Replaces a held event by a copy with this many attempts; `unspent`: the last of them is
    /// charged for the delivery that comes now. Whether it is still this member's.
    pub async fn restate(
        self: Arc<Self>,
        ticket: Ticket,
        attempts: u32,
        unspent: bool,
    ) -> Result<bool> {
        let _one = self.suspecting.lock().await;
        let held = {
            let mut inner = self.hand.lock();
            inner.renew(&ticket, Instant::now() + CHARGE_MAX);
            inner.held.get(&ticket).cloned()
        };
        let Some(held) = held else { return Ok(false) };
        let token = fastrand::u64(1..);
        let counts = Counts { attempts, token, unspent, ..held.counts() };
        let copy = Message::copy(&held.event, &counts, self.names.suspects.clone())?;
        let _flight = self.take_off(std::slice::from_ref(&held));
        self.broker.publish(&[copy]).await?;
        let found = self.find(token).await?;
        let (still, words) = {
            let mut inner = self.hand.lock();
            let still = inner.held.contains_key(&ticket);
            // Of the event and its copy, the copy is the event now; but if the event was handed
            // back meanwhile, as it was, the copy is one too many.
            let gone = if still { Some(held.place) } else { found };
            let gone: Vec<Place> = gone.into_iter().collect();
            let words = self.hand.answer(&mut inner, &gone, Word::Ack);
            match (found, inner.held.get_mut(&ticket)) {
                (Some(place), Some(mine)) => {
                    (mine.place, mine.attempts, mine.unspent) = (place, attempts, false);
                    inner.shorten(&ticket, Instant::now() + self.lease);
                }
                // Another has the copy.
                _ => drop(inner.held.remove(&ticket)),
            }
            (still && found.is_some(), words)
        };
        // The delivery that comes may take this process down. The word has to be heard before: what
        // is on its way then may be lost, and both would be there afterwards.
        words.out().await?;
        self.heard().await?;
        Ok(still)
    }

    /// Takes a copy out of the queue of suspects.
    async fn find(&self, token: u64) -> Result<Option<Place>> {
        for _ in 0..FIND_TRIES {
            while let Some((place, read)) = self.get().await? {
                if read.counts.token == token {
                    return Ok(Some(place));
                }
                self.take_in(place, read);
            }
            tokio::time::sleep(FIND_PAUSE).await;
        }
        Ok(None)
    }
}
