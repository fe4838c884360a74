//! The connection that hears what other processes have appended or handed back, and that holds a
//! lock for each instance of this process.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use sqlx::Executor;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::client::postgres::Server;
use crate::client::said::Said;
use crate::stream::sql::local::Local;
use crate::stream::sql::lock;

/// How long the server may take for an answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How often the connection is tried, and a lock asked for that another process has.
const TRIED: Duration = Duration::from_secs(2);
/// How soon it is connected anew.
const AGAIN: Duration = Duration::from_millis(200);
/// The server is to notice soon that this process is gone.
const INTRODUCTION: &str = "
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";

/// Asks for the lock of an instance.
struct Claim {
    key: i64,
    answer: oneshot::Sender<Result<bool>>,
}

/// The connection that listens, as others know it. Without it, it ends.
pub(super) struct Ear {
    shared: Arc<Shared>,
    claims: mpsc::Sender<Claim>,
    /// What is to run, until somebody needs it.
    task: Mutex<Option<Task>>,
}

#[derive(Default)]
struct Shared {
    /// The instances that this process marks as alive, with their locks.
    instances: Mutex<HashMap<String, i64>>,
    /// How often the connection was lost.
    lost: AtomicU64,
}

/// The connection that listens.
struct Task {
    server: Server,
    channel: String,
    own: u64,
    local: Arc<Local>,
    shared: Arc<Shared>,
    claims: mpsc::Receiver<Claim>,
}

impl Ear {
    /// It connects once a member needs it: who only writes has nothing to hear.
    pub fn new(server: Server, channel: String, own: u64, local: Arc<Local>) -> Self {
        let (sender, claims) = mpsc::channel(16);
        let shared = Arc::<Shared>::default();
        let task = Task { server, channel, own, local, shared: shared.clone(), claims };
        Self { shared, claims: sender, task: Mutex::new(Some(task)) }
    }

    /// How often the connection was lost: the database may be another one since.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Acquire)
    }

    /// Whether an instance is this process's own.
    pub fn holds(&self, instance: &str) -> bool {
        lock(&self.shared.instances).contains_key(instance)
    }

    /// Takes a lock; `false` where another process has it.
    pub async fn claim(&self, key: i64) -> Result<bool> {
        if let Some(task) = lock(&self.task).take() {
            tokio::spawn(task.run());
        }
        let (answer, answered) = oneshot::channel();
        let sent = self.claims.send(Claim { key, answer }).await;
        sent.ok().context("nobody listens any more")?;
        answered.await.context("nobody listens any more")?
    }

    /// An instance, whose lock was taken, is this process's own from now on: its lock is taken
    /// again whenever it was lost.
    pub fn hold(&self, instance: &str, key: i64) {
        lock(&self.shared.instances).insert(instance.to_owned(), key);
    }
}

impl Task {
    async fn run(mut self) {
        let mut said = Said::default();
        loop {
            let Err(error) = self.live(&mut said).await else { return };
            let cause = format!("{error:#}");
            if let Some(line) = said.failed(&cause, Instant::now()) {
                let so_far = line.so_far();
                tracing::warn!(
                    "the connection that listens for new events was lost: {cause}{so_far}"
                );
            }
            let refuse = |claim: Claim| claim.answer.send(Err(anyhow!("{error:#}")));
            while let Ok(claim) = self.claims.try_recv() {
                // Who asked may have gone away.
                let _ = refuse(claim);
            }
            if self.claims.is_closed() {
                return;
            }
            sleep(AGAIN).await;
        }
    }

    /// One connection, until it is lost, or, which is no error, until nobody needs it any more.
    async fn live(&mut self, said: &mut Said) -> Result<()> {
        let pool = self.pool();
        let mut listener = answered(PgListener::connect_with(&pool)).await?;
        listener.eager_reconnect(false);
        answered(listener.listen(&self.channel)).await?;
        _ = said.works(Instant::now()); // what needs it says so
        let ended = self.listen(&mut listener).await;
        if ended.is_err() {
            self.shared.lost.fetch_add(1, Ordering::AcqRel);
        } else {
            // A process that starts as this one ends is not to wait for the server to notice.
            let _ = answered(listener.execute("SELECT pg_advisory_unlock_all()")).await;
        }
        // What was said meanwhile is lost.
        self.local.wake_all();
        ended
    }

    fn pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(ANSWER)
            .after_connect(|conn, _| {
                Box::pin(async move { conn.execute(INTRODUCTION).await.map(drop) })
            })
            .connect_lazy_with(self.server.options().clone())
    }

    async fn listen(&mut self, listener: &mut PgListener) -> Result<()> {
        let mut locked = HashSet::new();
        let mut tried = interval(TRIED);
        tried.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.local.wake_all();
        loop {
            tokio::select! {
                heard = listener.try_recv() => match heard? {
                    Some(word) => self.hear(word.payload()),
                    None => bail!("the server has closed it"),
                },
                claim = self.claims.recv() => {
                    let Some(Claim { key, answer }) = claim else { return Ok(()) };
                    let asked = try_lock(listener, key, &mut locked).await;
                    let lost = asked.as_ref().err().map(|error| anyhow!("{error:#}"));
                    // Who asked may have gone away.
                    let _ = answer.send(asked);
                    lost.map_or(Ok(()), Err)?;
                }
                _ = tried.tick() => {
                    answered(listener.execute("SELECT 1")).await?;
                    let ours: Vec<i64> = lock(&self.shared.instances).values().copied().collect();
                    for key in ours {
                        try_lock(listener, key, &mut locked).await?;
                    }
                }
            }
        }
    }

    /// Wakes who waits for what another process says there is.
    fn hear(&self, payload: &str) {
        let mut words = payload.split(' ');
        let (from, stream, group) = (words.next(), words.next(), words.next());
        if from != Some(&format!("{:016x}", self.own)) {
            let group = group.filter(|group| !group.is_empty());
            self.local.wake(stream.unwrap_or_default(), group);
        }
    }
}

/// Takes a lock for as long as the connection lasts, unless it is `locked` already; `false` where
/// another process has it.
async fn try_lock(listener: &mut PgListener, key: i64, locked: &mut HashSet<i64>) -> Result<bool> {
    if locked.contains(&key) {
        return Ok(true);
    }
    let ask = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(key);
    let taken = answered(ask.fetch_one(&mut *listener)).await?;
    if taken {
        locked.insert(key);
    }
    Ok(taken)
}

async fn answered<T>(work: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    Ok(timeout(ANSWER, work).await.context("no answer within 2 s")??)
}
