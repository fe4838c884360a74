//! What is done beside the calls: entries that are done with are dropped, and consumers of
//! processes that are gone. Every call on a stream sees to it that it happens; nothing runs for a
//! stream that nobody uses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use redis::Value;

use super::state::{FREE, SCRIPTS, Stream, lock};
use crate::stream::Retain;

/// How often a stream is trimmed, at most.
const TRIM: Duration = Duration::from_millis(500);
/// How often its consumers are looked at, at most.
const CONSUMERS: Duration = Duration::from_secs(5);
/// Entries that one command drops, at most.
const DROP_MAX: i64 = 20_000;
/// How long a consumer that holds nothing is kept, at least; and at least this many leases.
const IDLE: (Duration, u32) = (Duration::from_secs(5), 2);

impl Stream {
    /// Tends the stream in the background, if it is time.
    pub fn tend(self: &Arc<Self>) {
        let due = |last: Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
        let mut tended = lock(&self.known.tended);
        if tended.busy || !due(tended.trimmed, TRIM) {
            return;
        }
        let consumers = due(tended.consumers, CONSUMERS);
        if consumers {
            tended.consumers = Some(Instant::now());
        }
        tended.busy = true;
        drop(tended);
        let done = Done(self.clone());
        tokio::spawn(async move {
            if let Err(error) = done.0.tend_now(consumers).await {
                // Whoever uses the stream meets the same error, and says so.
                tracing::debug!(stream = %done.0.spec.name, "failed to tidy up: {error:#}");
            }
        });
    }

    async fn tend_now(&self, consumers: bool) -> Result<()> {
        for shard in 0..self.shards.len() {
            while self.trim(shard).await? >= DROP_MAX {}
            if consumers {
                self.remove_consumers(shard).await?;
            }
        }
        Ok(())
    }

    /// Drops what is done with; answers how many.
    async fn trim(&self, shard: usize) -> Result<i64> {
        let key = &self.shards[shard].stream;
        let answer = self
            .redis
            .run(&SCRIPTS.trim, &[key], |cmd| {
                match self.spec.retain {
                    Retain::Age(age) => cmd.arg(age.as_millis() as u64),
                    Retain::Acked | Retain::Forever => cmd.arg(""),
                };
                let most = if self.spec.retain == Retain::Forever { 0 } else { DROP_MAX };
                cmd.arg(most);
                for group in &self.spec.groups {
                    cmd.arg(&*group.name);
                }
            })
            .await?;
        Ok(if let Value::Int(dropped) = answer { dropped } else { 0 })
    }

    async fn remove_consumers(&self, shard: usize) -> Result<()> {
        for group in &self.spec.groups {
            let idle = IDLE.0.max(group.lease * IDLE.1);
            let answer = self
                .redis
                .run(&SCRIPTS.consumers, &[&self.shards[shard].stream], |cmd| {
                    cmd.arg(&*group.name).arg(idle.as_millis() as u64).arg(FREE);
                })
                .await;
            self.of_group(answer).await?;
        }
        Ok(())
    }
}

/// Lets the stream be tended again, however the task ends.
struct Done(Arc<Stream>);

impl Drop for Done {
    fn drop(&mut self) {
        let mut tended = lock(&self.0.known.tended);
        (tended.busy, tended.trimmed) = (false, Some(Instant::now()));
    }
}
