//! The way out.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::{Instant, timeout_at};

use super::Error;
use super::batch::Batch;
use super::error::Tries;
use super::hand::{Pick, Suspect};
use super::shared::{Fetching, Shared};
use crate::stream::Reader;

/// Bytes in one batch, about.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// In an ordered group: with this many bytes, about, that wait for a message before them, nothing
/// more is fetched.
const WAITING_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;
/// The longest that one pull waits.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// The longest that one fetch waits: when it began tells how long what it brings is certainly
/// held.
const FETCH_MAX: Duration = Duration::from_secs(1);
/// The same in an ordered group, where a fetch goes on though nobody waits for it any more, and who
/// closes waits for its end.
const FETCH_MAX_IN_ORDER: Duration = Duration::from_millis(200);

/// A message that may take the process down is with the program alone, so that such a death has
/// one cause: who handles others holds this for reading.
static SUSPICION: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// The turn to have messages.
#[expect(dead_code, reason = "held for what they lock")]
pub(super) enum Turn {
    Shared(OwnedRwLockReadGuard<()>),
    Alone(OwnedRwLockWriteGuard<()>),
}

/// Pulls messages of a group. Made by [`Group::consumer`](super::Group::consumer).
///
/// What it has pulled is *leased*: no other consumer gets it before it is settled or the lease
/// runs out. The consumer renews its leases in a task of its own for as long as it, or a
/// [`Batch`] of it, is there, so a message may be worked on for longer than a lease. That task
/// needs its runtime to turn: work that blocks the thread belongs into
/// [`spawn_blocking`](tokio::task::spawn_blocking). If the process is stopped or cut off for longer
/// than a lease, others get the messages; settling one of these later does nothing, and says so
/// ([`Settled::lost`](super::Settled::lost)). RabbitMQ lets nobody hold a message for more than ten
/// minutes.
///
/// [`close`](Self::close) ends it in order. When it is dropped, and its batches are, what it had
/// not given out is handed back as well, in the background. What it had given out and nothing was
/// said about comes to others when the lease runs out, as after a crash: it counts as delivered,
/// so that a message that makes its consumers fail is found out.
pub struct Consumer {
    shared: Arc<Shared>,
    /// On the way to being alone. It keeps its place from pull to pull.
    turn: Option<BoxFuture<'static, OwnedRwLockWriteGuard<()>>>,
    /// An attempt is being charged.
    charging: Option<BoxFuture<'static, anyhow::Result<()>>>,
    /// In an ordered group: a fetch is under way.
    fetching: Option<(Arc<dyn Reader>, Fetching)>,
}

impl Consumer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, turn: None, charging: None, fetching: None }
    }

    /// The next messages, at most `most` and about 4 MiB, as soon as there is one; an empty batch
    /// where none came within `wait`.
    ///
    /// A message that may be what made consumers fail (it was delivered twice and nobody said what
    /// became of it, or its handling failed) comes in a batch of its own. One that may have taken a
    /// process down comes only while this process holds no other messages: settle a batch before
    /// waiting long for the next.
    ///
    /// While the backend is away it tries again until `wait` has passed, and errs with
    /// [`Error::Away`] then; the next pull goes on trying. It is cancel safe: where its future is
    /// dropped nothing is lost, and the next pull has what this one would have had.
    ///
    /// In an [ordered](super::Group::ordered) group it gives the next messages of the shards of which
    /// everything that was given before is settled. While more than about 8 MiB wait for that, it
    /// fetches nothing, of other shards neither. Who does not pull for a lease and has nothing to
    /// settle leaves its shards to others.
    pub async fn pull(&mut self, most: usize, wait: Duration) -> Result<Batch, Error> {
        let _pulling = self.shared.pulling();
        let end = Instant::now() + wait.min(WAIT_MAX);
        let mut tries = Tries::until(end, self.shared.what("pull messages"));
        let mut looked = false;
        loop {
            self.shared.make_sure(&mut tries).await?;
            let suspect = self.shared.hand().next_suspect();
            match suspect.filter(|suspect| suspect.due <= Instant::now()) {
                Some(suspect) => match self.alone(suspect, end, &mut tries).await? {
                    Some(batch) => return Ok(batch),
                    None => continue,
                },
                None => self.turn = None,
            }
            if self.shared.hand().has_fresh() {
                match self.together(most, end, &mut tries).await? {
                    Some(batch) => return Ok(batch),
                    None => continue,
                }
            }
            if looked && Instant::now() >= end {
                return Ok(Batch::empty(&self.shared));
            }
            let due = suspect.map_or(end, |suspect| suspect.due.min(end));
            looked |= match self.shared.group.ordered {
                true => self.fetch_in_order(most, due, &mut tries).await?,
                false => self.fetch(most, due, &mut tries).await?,
            };
        }
    }

    /// Fetches until `end`, or until something else is to be delivered: then it answers `false`.
    async fn fetch(&mut self, most: usize, end: Instant, tries: &mut Tries) -> Result<bool, Error> {
        let shared = &self.shared;
        let reader = shared.reader_in(tries).await?;
        let since = Instant::now();
        let wait = end.saturating_duration_since(since);
        let wait = wait.min(FETCH_MAX).min(shared.group.lease / 4);
        tokio::select! {
            fetched = reader.fetch(most.max(1), BATCH_BYTES_MAX, wait) => {
                // Nothing may come between the two: dropped there, it would be lost.
                let fetched = fetched.map(|fetched| shared.hand().take_in(fetched, since));
                Ok(shared.answer(&reader, fetched, tries).await?.is_some())
            }
            () = shared.returned.notified() => Ok(false),
        }
    }

    /// The same in an ordered group, where a fetch that was begun goes on from pull to pull.
    async fn fetch_in_order(
        &mut self,
        most: usize,
        end: Instant,
        tries: &mut Tries,
    ) -> Result<bool, Error> {
        let shared = &self.shared;
        if self.fetching.is_none() && shared.hand().waiting_bytes() >= WAITING_BYTES_MAX {
            // None of it may be given out: what it waits for comes first.
            return Ok(timeout_at(end, shared.returned.notified()).await.is_err());
        }
        if self.fetching.is_none() {
            let reader = shared.reader_in(tries).await?;
            let wait = end.saturating_duration_since(Instant::now());
            let wait = wait.min(FETCH_MAX_IN_ORDER).min(shared.group.lease / 4);
            let fetch = shared.fetch(&reader, most.max(1), BATCH_BYTES_MAX, wait);
            self.fetching = Some((reader, fetch));
        }
        let Some((reader, fetch)) = &mut self.fetching else { return Ok(false) };
        let fetched = tokio::select! {
            fetched = fetch => fetched.map_err(anyhow::Error::new).flatten(),
            () = shared.returned.notified() => return Ok(false),
        };
        let reader = reader.clone();
        self.fetching = None;
        Ok(shared.answer(&reader, fetched, tries).await?.is_some())
    }

    /// A batch of what nothing speaks against; an empty one where its turn did not come. `None`: it
    /// is gone.
    async fn together(
        &mut self,
        most: usize,
        end: Instant,
        tries: &mut Tries,
    ) -> Result<Option<Batch>, Error> {
        let turn = timeout_at(end, SUSPICION.clone().read_owned()).await;
        let Ok(turn) = turn else { return Ok(Some(Batch::empty(&self.shared))) };
        // It may have waited long.
        self.shared.make_sure(tries).await?;
        let given = self.shared.hand().give(most.max(1), BATCH_BYTES_MAX);
        let is_some = !given.is_empty();
        Ok(is_some.then(|| Batch::new(&self.shared, given, Turn::Shared(turn))))
    }

    /// A batch of one suspect; an empty one where its turn did not come. `None`: it is gone.
    async fn alone(
        &mut self,
        suspect: Suspect,
        end: Instant,
        tries: &mut Tries,
    ) -> Result<Option<Batch>, Error> {
        let pick = suspect.pick;
        let Some(held) = self.shared.hand().find(&pick) else { return Ok(None) };
        let spent = held.delivery.attempts >= self.shared.group.attempts;
        if spent && !held.charged && self.charging.is_none() {
            self.give_up(pick, tries).await?;
            return Ok(None);
        }
        let turn = if suspect.refused {
            // A place in the queue for being alone would be before this one.
            self.turn = None;
            timeout_at(end, SUSPICION.clone().read_owned()).await.map(Turn::Shared)
        } else {
            let turn = self.turn.get_or_insert_with(|| Box::pin(SUSPICION.clone().write_owned()));
            let turn = timeout_at(end, turn).await;
            turn.map(|turn| {
                self.turn = None;
                Turn::Alone(turn)
            })
        };
        let Ok(turn) = turn else { return Ok(Some(Batch::empty(&self.shared))) };
        self.charge(pick, tries).await?;
        let mut hand = self.shared.hand();
        let charged = hand.find(&pick).is_some_and(|held| held.charged);
        let given = if charged { hand.given(pick) } else { None };
        drop(hand);
        Ok(given.map(|given| Batch::new(&self.shared, vec![given], turn)))
    }

    /// Sees to it that the next delivery of a message is charged, and once.
    async fn charge(&mut self, pick: Pick, tries: &mut Tries) -> Result<(), Error> {
        loop {
            if self.charging.is_none() {
                let held = self.shared.hand().find(&pick);
                if held.is_none_or(|held| held.charged) {
                    return Ok(());
                }
                let shared = self.shared.clone();
                self.charging = Some(Box::pin(async move { shared.charge(pick).await }));
            }
            if let Some(charging) = &mut self.charging {
                let charged = charging.await;
                self.charging = None;
                if let Err(error) = charged {
                    tries.again(error).await?;
                }
            }
        }
    }

    /// It was delivered alone as often as it may be.
    async fn give_up(&mut self, pick: Pick, tries: &mut Tries) -> Result<(), Error> {
        let shared = &self.shared;
        let Some(held) = shared.hand().find(&pick) else { return Ok(()) };
        let times = held.delivery.attempts;
        let _settling = shared.settling(&[pick]);
        let reason = format!("its delivery alone ended without an outcome, {times} times");
        loop {
            let reader = shared.reader_in(tries).await?;
            let buried = reader.bury(&held.delivery, &reason).await;
            if shared.answer(&reader, buried, tries).await?.is_some() {
                break;
            }
        }
        shared.hand().settled(&[pick]);
        tracing::warn!(
            group = %shared.group.name,
            event = %held.delivery.event.id,
            "a dead letter: {reason}"
        );
        Ok(())
    }

    /// Hands back everything that is not settled, what batches still hold included, so that others
    /// have it at once and it does not count as delivered. Settling a message of such a batch later
    /// does nothing, and says so.
    pub async fn close(mut self) -> Result<(), Error> {
        self.turn = None;
        if let Some(charging) = self.charging.take() {
            // Whatever came of it is in the hand.
            let _ = charging.await;
        }
        self.shared.close().await
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shared.what("Consumer"))
    }
}
