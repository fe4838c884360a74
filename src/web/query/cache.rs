//! Answers that Redis keeps for a while. It is a help, not a need: where it is away or slow, the
//! database is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_128;

use super::answer::Found;
use super::ask::Question;
use crate::client::redis::Redis;
use crate::client::said::Telling;
use crate::topology;

/// How long Redis may take.
const WAIT: Duration = Duration::from_millis(100);
/// How long after trouble it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Larger answers are not kept.
const BYTES_MAX: usize = 1024 * 1024;

/// The cache of one query.
pub struct Cache {
    /// How long an answer is kept.
    pub ttl: Duration,
    /// `aqueduct:query:NAME:`
    prefix: String,
    link: Arc<Link>,
    redis: watch::Receiver<Option<Redis>>,
}

/// What is shared with the task that connects.
struct Link {
    query: Arc<str>,
    /// It did not work, and was not said to work since.
    out: AtomicBool,
    said: Telling,
    lost: tokio::sync::Notify,
}

impl Cache {
    /// One for the query of this name. It is connected in the background.
    pub fn new(query: &Arc<str>, cache: &topology::Cache) -> Self {
        let (sender, redis) = watch::channel(None);
        let link = Arc::new(Link {
            query: query.clone(),
            out: AtomicBool::new(false),
            said: Telling::default(),
            lost: tokio::sync::Notify::new(),
        });
        tokio::spawn(connect(cache.url.clone(), sender, link.clone()));
        Self { ttl: cache.ttl, prefix: format!("aqueduct:query:{query}:"), link, redis }
    }

    /// The answer to a question, if it is there.
    pub async fn get(&self, question: &Question) -> Option<Found> {
        let key = self.key(question);
        match self.ask(&key, redis::cmd("GET").arg(&key)).await? {
            Value::BulkString(entry) => decode(&entry, question),
            _ => None,
        }
    }

    /// Keeps an answer.
    pub async fn put(&self, question: &Question, found: &Found) {
        let entry = encode(question, found);
        if entry.len() > BYTES_MAX {
            return;
        }
        let (key, ttl_ms) = (self.key(question), self.ttl.as_millis().max(1) as u64);
        let mut cmd = redis::cmd("SET");
        self.ask(&key, cmd.arg(&key).arg(entry).arg("PX").arg(ttl_ms)).await;
    }

    fn key(&self, question: &Question) -> String {
        format!("{}{:032x}", self.prefix, xxh3_128(question.text.as_bytes()))
    }

    async fn ask(&self, key: &str, cmd: &Cmd) -> Option<Value> {
        let redis = self.redis.borrow().clone()?;
        let trouble = match tokio::time::timeout(WAIT, redis.ask(key, cmd)).await {
            Ok(Ok(answer)) => {
                self.link.works();
                return Some(answer);
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("it took longer than {} ms", WAIT.as_millis()),
        };
        self.link.away(&trouble);
        self.link.lost.notify_one();
        None
    }
}

impl Link {
    fn works(&self) {
        // Nothing is locked as long as it works.
        if self.out.load(Ordering::Relaxed)
            && let Some(works) = self.said.works()
        {
            self.out.store(false, Ordering::Relaxed);
            tracing::info!(query = %self.query, "the cache works again {works}");
        }
    }

    fn away(&self, why: &str) {
        self.out.store(true, Ordering::Relaxed);
        if let Some(line) = self.said.failed("") {
            let so_far = line.so_far();
            tracing::warn!(
                query = %self.query,
                "the cache does not work, and the database is asked each time: {why}{so_far}"
            );
        }
    }
}

/// Keeps a connection, as long as there is a cache to use it.
async fn connect(url: String, redis: watch::Sender<Option<Redis>>, link: Arc<Link>) {
    let urls = [url];
    loop {
        match Redis::open(&urls).await {
            Ok(open) => {
                redis.send_replace(Some(open));
                tokio::select! {
                    () = link.lost.notified() => {}
                    () = redis.closed() => return,
                }
                redis.send_replace(None);
            }
            Err(error) => link.away(&format!("{error:#}")),
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = redis.closed() => return,
        }
    }
}

/// When it was found, the question, and what was found: a line each.
fn encode(question: &Question, found: &Found) -> String {
    format!("{}\n{}\n{}", found.at_us, question.text, found.content)
}

/// What was found, if this is the answer to that question.
fn decode(entry: &[u8], question: &Question) -> Option<Found> {
    let (at_us, rest) = std::str::from_utf8(entry).ok()?.split_once('\n')?;
    let content = rest.strip_prefix(question.text.as_str())?.strip_prefix('\n')?;
    Some(Found { content: content.to_owned(), at_us: at_us.parse().ok()? })
}
