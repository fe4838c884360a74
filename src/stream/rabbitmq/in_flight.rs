//! Events that this process has just published, and is not done with: the checkpoint of their source
//! has not moved yet, or the message they are a copy of is not acked yet.
//!
//! The broker hands out what it has at once, perhaps to this very process. An event that takes the
//! process down there would be in its queue twice afterwards, each with a count of attempts of its
//! own; and more often with each death. So a member waits with what is in flight here until it has
//! landed; but not long, as a broker that is short of memory confirms nothing until members make
//! room.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::event::{Event, EventId};

/// How long a flight is waited for.
const FLIGHT_MAX: Duration = Duration::from_secs(2);

/// The broker's URL and the exchange.
type Place = (String, String);

/// What is known, for as long as somebody in this process uses it.
static STREAMS: LazyLock<Mutex<HashMap<Place, Weak<InFlight>>>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is in flight to one exchange.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    air: Mutex<Air>,
    landed: Notify,
}

#[derive(Debug, Default)]
struct Air {
    /// And in how many flights.
    ids: HashMap<EventId, u32>,
    /// Since when there have been any.
    since: Option<Instant>,
}

/// A look at what is in flight.
pub(super) struct Sky<'a>(MutexGuard<'a, Air>);

impl Sky<'_> {
    /// Whether this event has to be waited for.
    pub fn holds(&self, id: &EventId) -> bool {
        self.0.since.is_some_and(|since| since.elapsed() < FLIGHT_MAX)
            && self.0.ids.contains_key(id)
    }
}

impl InFlight {
    /// What all of this process knows of `exchange` at `url`.
    pub fn of(url: &str, exchange: &str) -> Arc<Self> {
        let mut streams = lock(&STREAMS);
        streams.retain(|_, known| known.strong_count() > 0);
        let known = streams.entry((url.to_owned(), exchange.to_owned())).or_default();
        known.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Self::default());
            *known = Arc::downgrade(&new);
            new
        })
    }

    /// These take off; they land, well or not, when what comes back is dropped.
    pub fn take_off<'a>(self: &Arc<Self>, events: impl Iterator<Item = &'a Event>) -> Flight {
        let ids: Vec<EventId> = events.map(|event| event.id).collect();
        let mut air = lock(&self.air);
        for id in &ids {
            *air.ids.entry(*id).or_default() += 1;
        }
        if !ids.is_empty() {
            air.since.get_or_insert_with(Instant::now);
        }
        drop(air);
        Flight { ids, of: self.clone() }
    }

    /// What is in flight now.
    pub fn look(&self) -> Sky<'_> {
        Sky(lock(&self.air))
    }

    /// Returns when some have landed since this was called.
    pub fn landed(&self) -> Notified<'_> {
        self.landed.notified()
    }
}

/// Events in flight.
pub(super) struct Flight {
    ids: Vec<EventId>,
    of: Arc<InFlight>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut air = lock(&self.of.air);
        for id in &self.ids {
            if let Entry::Occupied(mut flights) = air.ids.entry(*id) {
                *flights.get_mut() -= 1;
                if *flights.get() == 0 {
                    flights.remove();
                }
            }
        }
        if air.ids.is_empty() {
            air.since = None;
        }
        drop(air);
        self.of.landed.notify_waiters();
    }
}
