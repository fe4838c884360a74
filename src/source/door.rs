//! How a request comes in to a source that is reached over HTTP, and how its answer goes back.
//!
//! The web server knocks at the [`Door`] in a source's spec; the source, through its [`Host`],
//! lets in what waits there as one batch, and answers once the stream has told what became of it.
//! While the source is not at work nobody waits: whoever knocks is turned away at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::event::Event;

/// What a request asks of a source.
#[derive(Debug)]
pub enum Ask {
    /// To take these events, all of them or none.
    Take(Vec<Event>),
    /// To send its whole range anew.
    Run {
        /// The run's name, which is part of its ids.
        name: Arc<str>,
        /// What its events carry of a trace.
        trace: Option<Box<str>>,
    },
}

/// Why a request was turned away. What it asked for may still have happened, unless the stream is
/// full: asked again under the same `Idempotency-Key` it happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// The slowest group is this many events behind, past `max_backlog`.
    Full(u64),
    /// The stream cannot be reached, or the process is stopping.
    Closed,
}

/// Somebody who was let in. Dropped, it is turned away as [`Away::Closed`].
#[derive(Debug)]
pub struct Guest {
    /// What is asked.
    pub ask: Ask,
    reply: oneshot::Sender<Result<(), Away>>,
}

impl Guest {
    /// What is asked, and the way to answer it.
    pub fn split(self) -> (Ask, Reply) {
        (self.ask, Reply(self.reply))
    }
}

/// The way back to who asked. Dropped, it says [`Away::Closed`].
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<(), Away>>);

impl Reply {
    /// Answers. Who asked may be gone: then nobody hears it.
    pub fn send(self, answer: Result<(), Away>) {
        let _ = self.0.send(answer);
    }
}

/// The door of a source: one way in for each of its instances.
#[derive(Debug)]
pub struct Door {
    ways: Vec<Way>,
}

#[derive(Debug, Default)]
struct Way {
    hall: Mutex<Hall>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Hall {
    open: bool,
    waiting: VecDeque<Guest>,
}

impl Way {
    fn hall(&self) -> MutexGuard<'_, Hall> {
        self.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Door {
    /// A closed door with a way in for each of `instances`.
    pub fn new(instances: u64) -> Arc<Self> {
        Arc::new(Self { ways: (0..instances).map(|_| Way::default()).collect() })
    }

    /// How many instances there are, numbered from 1.
    pub fn instances(&self) -> u64 {
        self.ways.len() as u64
    }

    /// Asks instance number `instance`, and returns when it is done and durable.
    pub async fn knock(&self, instance: u64, ask: Ask) -> Result<(), Away> {
        let way = self.way(instance).ok_or(Away::Closed)?;
        let (reply, answer) = oneshot::channel();
        {
            let mut hall = way.hall();
            if !hall.open {
                return Err(Away::Closed);
            }
            hall.waiting.push_back(Guest { ask, reply });
        }
        way.arrived.notify_one();
        answer.await.unwrap_or(Err(Away::Closed))
    }

    /// The source's side of the way to instance number `instance`, closed for now.
    pub fn host(self: &Arc<Self>, instance: u64) -> Host {
        Host { door: self.clone(), instance }
    }

    fn way(&self, instance: u64) -> Option<&Way> {
        self.ways.get(usize::try_from(instance).ok()?.checked_sub(1)?)
    }
}

/// A source's side of its door. Dropped, the door is closed.
#[derive(Debug)]
pub struct Host {
    door: Arc<Door>,
    instance: u64,
}

impl Host {
    /// Lets people in from now on.
    pub fn open(&self) {
        if let Some(way) = self.door.way(self.instance) {
            way.hall().open = true;
        }
    }

    /// Turns away who waits, and whoever comes before it is opened again.
    pub fn close(&self) {
        if let Some(way) = self.door.way(self.instance) {
            let mut hall = way.hall();
            hall.open = false;
            let waiting = std::mem::take(&mut hall.waiting);
            drop(hall);
            drop(waiting);
        }
    }

    /// Who waits longest, if anybody does.
    pub fn next(&self) -> Option<Guest> {
        self.door.way(self.instance)?.hall().waiting.pop_front()
    }

    /// Returns when somebody waits.
    pub async fn arrived(&self) {
        let Some(way) = self.door.way(self.instance) else { return std::future::pending().await };
        loop {
            let arrived = way.arrived.notified();
            if !way.hall().waiting.is_empty() {
                return;
            }
            arrived.await;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn run(name: &str) -> Ask {
        Ask::Run { name: name.into(), trace: None }
    }

    #[tokio::test]
    async fn a_closed_door_turns_away_at_once_and_who_is_inside_is_answered() {
        let door = Door::new(1);
        assert_eq!(door.knock(1, Ask::Take(Vec::new())).await, Err(Away::Closed));
        let host = door.host(1);
        assert_eq!(door.knock(1, Ask::Take(Vec::new())).await, Err(Away::Closed));
        host.open();
        assert_eq!(door.knock(2, Ask::Take(Vec::new())).await, Err(Away::Closed));

        let mut first = Box::pin(door.knock(1, Ask::Take(Vec::new())));
        let mut second = Box::pin(door.knock(1, run("a")));
        let mut third = Box::pin(door.knock(1, run("b")));
        for waiting in [&mut first, &mut second, &mut third] {
            assert_eq!(waiting.now_or_never(), None);
        }
        host.arrived().await;
        host.next().unwrap().split().1.send(Ok(()));
        assert_eq!(first.await, Ok(()));
        let (ask, reply) = host.next().unwrap().split();
        assert!(matches!(ask, Ask::Run { name, .. } if &*name == "a"));
        drop(host);
        assert_eq!(third.await, Err(Away::Closed));
        assert_eq!(second.as_mut().now_or_never(), None, "it was let in before");
        reply.send(Err(Away::Full(7)));
        assert_eq!(second.await, Err(Away::Full(7)));
    }
}
