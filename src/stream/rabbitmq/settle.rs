//! The first moments of a quorum queue.
//!
//! A broker says that a quorum queue is declared before it has written down which log on its disk
//! is the queue's: that it does seconds later (`names.dets` in versions up to 4, written back after
//! 3.5 s). Killed before, it comes back with the queue and a new, empty log, and what it had
//! confirmed is gone. So nothing is published until the queues have been there for long enough, on
//! one connection; then an exchange that nobody publishes to says so for all time to come.

use std::time::Duration;

use anyhow::Result;
use lapin::types::ShortString;
use tokio::time::{Instant, sleep_until};

use super::declare;
use super::link::Link;
use super::names::{Names, short};
use crate::event::hash;

/// How long a broker may take to write down what it has declared.
const SETTLED: Duration = Duration::from_secs(4);

/// What an opened stream knows of its queues' age.
pub(super) struct Settling {
    /// They were there at this time.
    pub since: Instant,
    /// At least one of them was made then.
    pub made: bool,
}

impl Settling {
    /// Returns when the queues of `names` are there to stay. `link` is the connection that has
    /// declared them.
    pub async fn end(&self, link: &Link, names: &Names) -> Result<()> {
        let mark = mark(names)?;
        let marked = declare::has_exchange(link, &mark).await?;
        if marked && !self.made {
            return Ok(());
        }
        sleep_until(self.since + SETTLED).await;
        declare::mark(link, &mark).await
    }
}

/// An exchange for this set of queues.
pub(super) fn mark(names: &Names) -> Result<ShortString> {
    let groups = names.groups.iter().flat_map(|group| group.queues.iter().chain([&group.suspects]));
    let queues = groups.chain(&names.dead).map(|queue| queue.as_str());
    let all = queues.collect::<Vec<_>>().join("\n");
    short(&format!("{}.settled.{:016x}", names.exchange, hash(all.as_bytes())))
}
