//! One database and schema, as this process uses it: its connections and transactions.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex as StdMutex, Weak};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};
use futures_util::future::BoxFuture;
use sqlx::AssertSqlSafe;
use tokio::sync::{Mutex, Semaphore};

use super::listen::Ear;
use super::tx::Tx;
use super::{alive, schema};
use crate::client::postgres::{Server, Session, code, is_conflict, is_trouble, quote};
use crate::event::{hash, hash_parts};
use crate::stream::sql::local::Local;
use crate::stream::sql::{Database, Mode, Sql, lock};

/// Connections for what has to be durable: appends, above all.
const WRITERS: usize = 2;
/// Connections for all else.
const MEMBERS: usize = 3;
/// How often a transaction is tried that falls victim to another, or finds the tables gone.
const TRIES: u32 = 6;

/// Databases by URL and schema.
type Open = HashMap<(String, String), Weak<Db>>;

/// The databases that this process has open, so that all who use one share its connections.
static OPEN: LazyLock<Mutex<Open>> = LazyLock::new(Mutex::default);

/// One database and schema.
pub(super) struct Db {
    server: Server,
    schema: String,
    /// Where its processes tell each other what is new, as an identifier of SQL.
    channel: String,
    /// What this process knows its own words by.
    own: u64,
    writers: Lane,
    members: Lane,
    /// How often a connection or the tables were lost.
    lost: AtomicU64,
    local: Arc<Local>,
    /// The connection that listens.
    pub ear: Ear,
    /// Processes that seem dead, and since when.
    pub suspects: StdMutex<HashMap<String, Instant>>,
    /// Held while an instance of this process is added.
    pub holding: Mutex<()>,
}

/// Connections for one kind of work.
struct Lane {
    permits: Arc<Semaphore>,
    idle: StdMutex<Vec<(u64, Session)>>,
}

impl Lane {
    fn new(connections: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(connections)), idle: StdMutex::default() }
    }
}

/// An error that says already which database it was.
#[derive(Debug)]
struct Explained(Error);

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Explained {}

/// The connection was lost before anything was done on it.
#[derive(Debug)]
struct LostBefore;

impl fmt::Display for LostBefore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was lost")
    }
}

impl std::error::Error for LostBefore {}

impl Db {
    /// The schema at `url`. Nothing is asked of the server yet.
    pub async fn open(url: &str, schema: &str) -> Result<Arc<Self>> {
        let mut open = OPEN.lock().await;
        open.retain(|_, db| db.strong_count() > 0);
        let key = (url.to_owned(), schema.to_owned());
        if let Some(db) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(db);
        }
        let db = Arc::new(Self::new(Server::new(url, "stream")?, url, schema));
        open.insert(key, Arc::downgrade(&db));
        Ok(db)
    }

    fn new(server: Server, url: &str, schema: &str) -> Self {
        let channel = format!("aqueduct_{:016x}", hash(schema.as_bytes()));
        let local = Arc::new(Local::beside(&format!("{url} {schema}")));
        let own = fastrand::u64(..);
        Self {
            ear: Ear::new(server.clone(), channel.clone(), own, local.clone()),
            channel: quote(&channel),
            server,
            schema: schema.to_owned(),
            own,
            writers: Lane::new(WRITERS),
            members: Lane::new(MEMBERS),
            lost: AtomicU64::new(1),
            local,
            suspects: StdMutex::default(),
            holding: Mutex::default(),
        }
    }

    /// The lock that says that an instance lives, in all its schema.
    pub fn lock_of(&self, instance: &str) -> i64 {
        hash_parts(&[b"aqueduct instance", self.schema.as_bytes(), instance.as_bytes()]) as i64
    }

    fn generation(&self) -> u64 {
        self.lost.load(Ordering::Acquire) + self.ear.lost()
    }

    /// A connection was lost, or the tables: the database may be another one from now on.
    fn lost(&self, generation: u64) {
        if self.generation() == generation {
            self.lost.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A new connection to a schema that has its tables.
    async fn connect(&self) -> Result<Session> {
        let mut session = self.server.connect().await.map_err(Explained)?;
        // A commit waits for the disk, also where the server is set up not to; a process that
        // hangs does not keep others from its rows for long.
        let settings = format!(
            "SET search_path TO {}; SET idle_in_transaction_session_timeout = '10s'; SET jit = off;
             SELECT set_config('synchronous_commit', 'on', false)
               WHERE current_setting('synchronous_commit') = 'off'",
            quote(&self.schema)
        );
        sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut *session).await?;
        schema::prepare(&mut session, &self.schema).await?;
        Ok(session)
    }

    fn put_back(&self, lane: &Lane, generation: u64, session: Session) {
        if generation == self.generation() {
            lock(&lane.idle).push((generation, session));
        }
    }

    /// A transaction that has begun.
    async fn begin(&self, lane: &Lane, mode: Mode) -> Result<Tx> {
        let generation = self.generation();
        self.local.clear(generation);
        let idle = {
            let mut idle = lock(&lane.idle);
            idle.retain(|(of, _)| *of == generation);
            idle.pop()
        };
        let Some((_, mut session)) = idle else {
            return Tx::begin(self.connect().await?, generation, mode).await;
        };
        let pid = session.pid();
        let begin = async {
            session.refresh(&self.server).await.map_err(|_| LostBefore)?;
            Tx::begin(session, generation, mode).await
        };
        match self.server.watch(pid, begin).await {
            Ok(Err(error)) if sqlx_error(&error).is_some_and(is_trouble) => Err(LostBefore.into()),
            Ok(begun) => begun,
            Err(_) => Err(LostBefore.into()),
        }
    }

    async fn once<T, W>(&self, lane: &Lane, mode: Mode, work: &W) -> Result<T>
    where
        W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>>,
    {
        let mut tx = self.begin(lane, mode).await?;
        let (pid, generation) = (tx.pid(), tx.generation());
        let transaction = async {
            let error = match work(&mut tx).await {
                Ok(value) => match tx.commit(&self.channel, self.own).await {
                    Ok((session, outbox)) => return Ok((value, session, outbox)),
                    Err(error) => return Err((error, None)),
                },
                Err(error) => error,
            };
            // What the server is to blame for may be over on another connection.
            let usable = sqlx_error(&error).is_none_or(|it| !is_trouble(it) || is_conflict(it));
            let session = if usable { tx.roll_back().await.ok() } else { None };
            Err((error, session))
        };
        match self.server.watch(pid, transaction).await {
            Ok(Ok((value, session, outbox))) => {
                self.local.deliver(generation, outbox);
                self.put_back(lane, generation, session);
                Ok(value)
            }
            Ok(Err((error, Some(session)))) => {
                self.put_back(lane, generation, session);
                Err(error)
            }
            Ok(Err((error, None))) => {
                self.lost(generation);
                Err(error)
            }
            Err(error) => {
                self.lost(generation);
                Err(error)
            }
        }
    }

    async fn run<T, W>(&self, mode: Mode, work: W) -> Result<T>
    where
        W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>>,
    {
        let lane = if mode == Mode::Durable { &self.writers } else { &self.members };
        let mut tries = 1;
        loop {
            let error = match self.once(lane, mode, &work).await {
                Ok(value) => return Ok(value),
                Err(error) if tries == TRIES => return Err(error),
                Err(error) => error,
            };
            tries += 1;
            match sqlx_error(&error) {
                // Two that wait for each other are not to meet again.
                Some(error) if is_conflict(error) => {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(1..30))).await;
                }
                // Somebody dropped the tables, or the schema with them.
                Some(error) if matches!(code(error), Some("42P01" | "3F000")) => {
                    self.lost(self.generation());
                }
                None if error.is::<LostBefore>() => self.lost(self.generation()),
                _ => return Err(error),
            }
        }
    }

    /// Says which database it was, and what may help.
    pub fn explain(&self, error: Error) -> Error {
        if error.is::<Explained>() {
            return error;
        }
        let Some(cause) = sqlx_error(&error) else {
            return error.context(format!(
                "PostgreSQL at {}, database `{}`",
                self.server.address(),
                self.server.database()
            ));
        };
        let (explained, said) = (self.server.explain(cause), error.to_string());
        // What the model or the schema says of it comes first.
        if said == cause.to_string() { explained } else { explained.context(said) }
    }
}

fn sqlx_error(error: &Error) -> Option<&sqlx::Error> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

impl Database for Db {
    // Those who have something say so; this is for words that were lost with a connection, and
    // for leases that run out.
    const LOOK: Duration = Duration::from_secs(1);
    const TEND: Duration = Duration::from_secs(1);
    const CACHE_IS_SURE: bool = false;

    fn local(&self) -> &Local {
        &self.local
    }

    async fn transact<T, W>(self: &Arc<Self>, mode: Mode, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>> + Send + Sync + 'static,
    {
        let lane = if mode == Mode::Durable { &self.writers } else { &self.members };
        let permit = lane.permits.clone().acquire_owned().await?;
        let db = self.clone();
        // In a task of its own: a caller that goes away leaves no connection half used.
        let task = tokio::spawn(async move {
            let _permit = permit;
            db.run(mode, work).await
        });
        task.await
            .unwrap_or_else(|error| Err(anyhow!(error).context("a transaction was cut off")))
            .map_err(|error| self.explain(error))
    }

    async fn hold(self: &Arc<Self>, instance: &str) -> Result<()> {
        alive::hold(self, instance).await
    }

    async fn free_dead(self: &Arc<Self>) -> Result<()> {
        alive::free_dead(self).await
    }
}
