//! What a consumer, its batches and the task that renews its leases share.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::Error;
use super::error::Tries;
use super::hand::{Hand, Pick};
use super::place::Declared;
use crate::event::{Delivery, Ticket};
use crate::spec::Site;
use crate::stream::{Backend, GroupSpec, Reader, ReaderSpec, StreamSpec};

/// How long a backend may fail before it is opened anew: what is held is lost with that, and a
/// connection that broke is mended sooner.
const GRACE: Duration = Duration::from_secs(2);
/// The longest wait until leases are renewed again where that failed.
const RENEW_AGAIN: Duration = Duration::from_millis(500);

/// One consumer.
pub(super) struct Shared {
    pub group: GroupSpec,
    stream: StreamSpec,
    site: Site,
    member: String,
    line: tokio::sync::Mutex<Line>,
    hand: Mutex<Hand>,
    /// In an ordered group: held by who fetches, to the end of that, also where nobody waits for it
    /// any more, and by who hands shards back.
    fetching: Arc<tokio::sync::Mutex<()>>,
    pulls: Mutex<Pulls>,
    /// Something was let go of that is to be delivered again, or settled that others wait for.
    pub returned: Notify,
    closed: AtomicBool,
    runtime: Handle,
}

/// A fetch that is under way; what it finds is put into the hand.
pub(super) type Fetching = JoinHandle<Result<()>>;

/// Held by who fetches in an ordered group, or hands shards back.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Whether the program pulls.
struct Pulls {
    now: bool,
    last: Instant,
}

/// A pull that is under way.
pub(super) struct Pulling(Arc<Shared>);

impl Drop for Pulling {
    fn drop(&mut self) {
        *self.0.pulls() = Pulls { now: false, last: Instant::now() };
    }
}

/// Messages that somebody is about to settle.
pub(super) struct Settling {
    shared: Arc<Shared>,
    pub picks: Vec<Pick>,
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.shared.hand().set_settling(&self.picks, false);
    }
}

/// The way to the backend.
#[derive(Default)]
struct Line {
    open: Option<(Arc<dyn Backend>, Arc<dyn Reader>)>,
    failing_since: Option<Instant>,
}

impl Shared {
    /// Opens the stream and a member's hand on it.
    pub async fn open(declared: Declared, name: &str) -> Result<Arc<Self>, Error> {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let Declared { stream, site, group } = declared;
        let group = group.ok_or_else(|| Error::Invalid("no group was declared".to_owned()))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Self {
            // Two consumers of one name would take each other's messages.
            member: format!("{}/{}/{name}-{number}", site.instance, group.name),
            hand: Mutex::new(Hand::new(group.ordered)),
            group,
            stream,
            site,
            line: tokio::sync::Mutex::default(),
            fetching: Arc::default(),
            pulls: Mutex::new(Pulls { now: false, last: Instant::now() }),
            returned: Notify::new(),
            closed: AtomicBool::new(false),
            runtime: Handle::current(),
        });
        let opened = shared.reader().await;
        opened.map_err(|error| Error::away(shared.what("open a consumer"), error))?;
        tokio::spawn(keep(Arc::downgrade(&shared), shared.group.lease));
        Ok(shared)
    }

    /// `doing` of group and stream, for errors.
    pub fn what(&self, doing: &str) -> String {
        format!("{doing} of group {} on stream {}", self.group.name, self.stream.name)
    }

    /// Tries that end with the lease: after that another consumer has what they are about.
    pub fn tries(&self, doing: &str) -> Tries {
        Tries::until(Instant::now() + self.group.lease, self.what(doing))
    }

    /// The hand. What it guards is whole between any two statements.
    pub fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pulls(&self) -> MutexGuard<'_, Pulls> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The program pulls, until what this answers is dropped.
    pub fn pulling(self: &Arc<Self>) -> Pulling {
        self.pulls().now = true;
        Pulling(self.clone())
    }

    /// Somebody is about to settle these, until what this answers is dropped: that they are gone then
    /// does not mean that they are lost.
    pub fn settling(self: &Arc<Self>, picks: &[Pick]) -> Settling {
        self.hand().set_settling(picks, true);
        Settling { shared: self.clone(), picks: picks.to_vec() }
    }

    /// Whether the program has nothing of an ordered group, and has not asked for anything in a
    /// lease: then it is not to keep others from its shards.
    fn rests(&self) -> bool {
        let Pulls { now, last } = *self.pulls();
        let idle = self.group.ordered && !now && last.elapsed() >= self.group.lease;
        idle && !self.hand().is_out()
    }

    /// The backend's side of the hand, opened where it is not.
    async fn reader(&self) -> Result<Arc<dyn Reader>> {
        let mut line = self.line.lock().await;
        if let Some((_, reader)) = &line.open {
            return Ok(reader.clone());
        }
        ensure!(!self.is_closed(), "the consumer was closed");
        let backend = (self.stream.kind.open)(self.stream.clone(), self.site.clone()).await?;
        let spec = ReaderSpec { group: self.group.clone(), member: self.member.clone() };
        let reader = backend.reader(spec).await?;
        *line = Line { open: Some((backend, reader.clone())), failing_since: None };
        Ok(reader)
    }

    /// The same, tried for as long as there is time.
    pub async fn reader_in(&self, tries: &mut Tries) -> Result<Arc<dyn Reader>, Error> {
        loop {
            match self.reader().await {
                Ok(reader) => return Ok(reader),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// Notes what became of a call, and waits before the next try where it failed. `None`: call
    /// again.
    pub async fn answer<T>(
        &self,
        reader: &Arc<dyn Reader>,
        answer: Result<T>,
        tries: &mut Tries,
    ) -> Result<Option<T>, Error> {
        self.note(reader, answer.is_ok()).await;
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => tries.again(error).await.map(|()| None),
        }
    }

    /// Notes whether a call worked. A reader that goes on failing is let go of, with all it holds.
    async fn note(&self, reader: &Arc<dyn Reader>, worked: bool) {
        let mut line = self.line.lock().await;
        if !line.open.as_ref().is_some_and(|(_, open)| Arc::ptr_eq(open, reader)) {
            return;
        }
        if worked {
            line.failing_since = None;
            return;
        }
        let since = *line.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= GRACE || self.hand().is_empty() {
            *line = Line::default();
            self.hand().lose_all();
        }
    }

    /// Makes sure that these still are this consumer's, where that has been open for `age`.
    pub async fn look(
        &self,
        reader: &Arc<dyn Reader>,
        picks: &[Pick],
        age: Duration,
    ) -> Result<()> {
        let old = self.hand().older(picks, age);
        if old.is_empty() {
            return Ok(());
        }
        // What else there is of an ordered group's shard tells whether that is this consumer's.
        let old = self.hand().beside(&old);
        let since = Instant::now();
        let lost = reader.renew(&tickets(&old)).await?;
        let mut hand = self.hand();
        // What somebody began to settle meanwhile may be gone by that.
        let free: HashSet<Pick> = hand.all().into_iter().collect();
        let asked: HashSet<&Pick> = picks.iter().collect();
        let old: Vec<Pick> =
            old.into_iter().filter(|pick| asked.contains(pick) || free.contains(pick)).collect();
        hand.renewed(&old, since, &lost);
        Ok(())
    }

    /// Makes sure that what is to be given out next still is this consumer's.
    pub async fn make_sure(&self, tries: &mut Tries) -> Result<(), Error> {
        loop {
            let age = self.group.lease / 2;
            let stale = self.hand().stale(age);
            if stale.is_empty() {
                return Ok(());
            }
            let reader = self.reader_in(tries).await?;
            let looked = self.look(&reader, &stale, age).await;
            if self.answer(&reader, looked, tries).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Fetches in an ordered group, to its end whatever becomes of who asked for it: a fetch that
    /// is given up hands the shards back that it found something in, and with them what this
    /// consumer has of these.
    pub fn fetch(
        self: &Arc<Self>,
        reader: &Arc<dyn Reader>,
        most: usize,
        bytes: usize,
        wait: Duration,
    ) -> Fetching {
        let (shared, fetching) = (Arc::downgrade(self), self.fetching.clone());
        let reader = reader.clone();
        self.runtime.spawn(async move {
            let turn = fetching.clone().lock_owned().await;
            match shared.upgrade().filter(|shared| !shared.is_closed()) {
                Some(shared) => shared.hand_back_void(&reader, &turn).await?,
                // It would claim again what was given up.
                None => return Ok(()),
            }
            let since = Instant::now();
            let fetched = reader.fetch(most, bytes, wait).await?;
            if let Some(shared) = shared.upgrade() {
                shared.take_in(&reader, fetched, since).await;
                // Who closes may have given up waiting for this.
                return match shared.is_closed() {
                    true => shared.leave(&reader).await,
                    false => Ok(()),
                };
            }
            let tickets: Vec<Ticket> = fetched.iter().map(|it| it.ticket).collect();
            reader.release(&tickets).await?;
            // What was known of the rest is handed back by who waits for the turn, before it leaves.
            drop(turn);
            let _last = fetching.lock().await;
            reader.leave().await
        })
    }

    async fn take_in(&self, reader: &Arc<dyn Reader>, fetched: Vec<Delivery>, since: Instant) {
        let line = self.line.lock().await;
        let open = line.open.as_ref();
        match open.is_some_and(|(_, open)| Arc::ptr_eq(open, reader)) {
            true => self.hand().take_in(fetched, since),
            false => self.hand().turn_away(fetched),
        }
    }

    /// Hands back what was held of shards that were lost, or that the program handed back where
    /// that was cut off.
    async fn hand_back_void(&self, reader: &Arc<dyn Reader>, _turn: &Turn) -> Result<()> {
        let cut_off = self.hand().cut_off();
        self.refund(reader, &cut_off).await?;
        let void = {
            let mut hand = self.hand();
            hand.lose(&cut_off);
            hand.void()
        };
        if !void.is_empty() {
            reader.release(&void).await?;
            self.hand().handed_back(&void);
        }
        Ok(())
    }

    /// Waits until no fetch is under way, and keeps others from beginning, for as long as there is
    /// time.
    pub async fn turn(&self, tries: &Tries) -> Result<Turn, Error> {
        let turn = timeout_at(tries.end(), self.fetching.clone().lock_owned()).await;
        turn.map_err(|_| tries.over(anyhow!("a fetch that is under way has not ended")))
    }

    /// Hands these back, and with them in an ordered group the shards that they are of. What is cut
    /// off is to be handed back at the next fetch or renewal.
    pub async fn give_up(&self, reader: &Arc<dyn Reader>, picks: &[Pick]) -> Result<()> {
        self.hand().close(picks);
        self.refund(reader, picks).await?;
        let void = self.hand().void();
        let mut all = tickets(picks);
        all.extend(&void);
        reader.release(&all).await?;
        self.hand().handed_back(&void);
        Ok(())
    }

    /// Renews all leases once.
    async fn renew(&self) -> Result<()> {
        if self.rests() {
            return Ok(());
        }
        let has_void = self.hand().has_void();
        // Where a fetch is under way the next one does it.
        if has_void && let Ok(turn) = self.fetching.clone().try_lock_owned() {
            let reader = self.reader().await?;
            self.hand_back_void(&reader, &turn).await?;
        }
        let picks = self.hand().all();
        if picks.is_empty() {
            return Ok(());
        }
        let reader = self.reader().await?;
        let since = Instant::now();
        let renewed = reader.renew(&tickets(&picks)).await;
        self.note(&reader, renewed.is_ok()).await;
        let lost = renewed?;
        // What was settled meanwhile, or is being settled, is no longer this consumer's either.
        let mut hand = self.hand();
        let all: HashSet<Pick> = hand.all().into_iter().collect();
        let picks: Vec<Pick> = picks.into_iter().filter(|pick| all.contains(pick)).collect();
        let lost = hand.renewed(&picks, since, &lost);
        drop(hand);
        if lost > 0 {
            tracing::warn!(
                group = %self.group.name,
                events = lost,
                "another consumer took over messages that were held longer than their lease"
            );
        }
        Ok(())
    }

    /// Charges an attempt, to its end whatever becomes of who asked for it.
    pub async fn charge(self: &Arc<Self>, pick: Pick) -> Result<()> {
        let shared = self.clone();
        let task = self.runtime.spawn(async move {
            let reader = shared.reader().await?;
            let charged = reader.charge(pick.ticket).await;
            shared.note(&reader, charged.is_ok()).await;
            shared.hand().charged(&pick, charged?);
            Ok(())
        });
        task.await.map_err(|error| anyhow!(error))?
    }

    /// Hands back everything, and ends.
    pub async fn close(&self) -> Result<(), Error> {
        self.closed.store(true, Ordering::Release);
        let mut tries = self.tries("hand back the messages");
        // One that ends later hands back everything itself.
        let _last = self.turn(&tries).await?;
        loop {
            let open = self.line.lock().await.open.as_ref().map(|(_, reader)| reader.clone());
            // Without a line it holds nothing.
            let Some(reader) = open else { break };
            let left = self.leave(&reader).await;
            if self.answer(&reader, left, &mut tries).await?.is_some() {
                break;
            }
        }
        self.hand().clear();
        *self.line.lock().await = Line::default();
        Ok(())
    }

    /// Hands back all that nobody is about to settle, and gives up all shards.
    async fn leave(&self, reader: &Arc<dyn Reader>) -> Result<()> {
        let all = self.hand().all();
        self.hand_back(reader, &all).await?;
        reader.leave().await
    }

    /// Hands these back as if they had not been delivered.
    async fn hand_back(&self, reader: &Arc<dyn Reader>, picks: &[Pick]) -> Result<()> {
        self.refund(reader, picks).await?;
        reader.release(&tickets(picks)).await
    }

    /// Gives the attempts back that these were charged.
    async fn refund(&self, reader: &Arc<dyn Reader>, picks: &[Pick]) -> Result<()> {
        for pick in picks {
            let charged = self.hand().find(pick).is_some_and(|held| held.charged);
            if charged {
                reader.refund(pick.ticket).await?;
                self.hand().refunded(pick);
            }
        }
        Ok(())
    }
}

impl Drop for Shared {
    /// Hands back what the program never had, or has spoken about, and gives up all shards. What it
    /// was given without another word counts as delivered: it may be what ends the program again
    /// and again.
    fn drop(&mut self) {
        let Some((backend, reader)) = self.line.get_mut().open.take() else { return };
        let (known, fetching) = (self.hand().known(), self.fetching.clone());
        self.runtime.spawn(async move {
            let _last = fetching.lock().await;
            for done in [reader.release(&known).await, reader.leave().await] {
                if let Err(error) = done {
                    tracing::debug!("could not hand back what a consumer held: {error:#}");
                }
            }
            drop((reader, backend));
        });
    }
}

/// What backends know these by.
pub(super) fn tickets(picks: &[Pick]) -> Vec<Ticket> {
    picks.iter().map(|pick| pick.ticket).collect()
}

/// Keeps a consumer's leases as long as it, or a batch of it, is there.
async fn keep(shared: Weak<Shared>, lease: Duration) {
    let mut pause = lease / 3;
    loop {
        sleep(pause).await;
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_closed() {
            return;
        }
        pause = match shared.renew().await {
            Ok(()) => lease / 3,
            Err(error) => {
                tracing::warn!(group = %shared.group.name, "leases cannot be renewed: {error:#}");
                (lease / 10).min(RENEW_AGAIN)
            }
        };
    }
}
