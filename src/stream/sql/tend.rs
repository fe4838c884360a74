//! What is done beside the calls, in small steps: events that are done with are deleted, and what
//! dead processes held is freed. Every call on a stream sees to it that it happens; nothing runs
//! for a stream that nobody uses.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;

use super::state::Stream;
use super::{Database, Mode, Sql, Statement, args, cursor, first, lease, statement};
use crate::stream::Retain;

/// Chunks that one transaction deletes of a shard, at most.
const DELETE_MAX: i64 = 64;
/// How long a member that holds nothing and says nothing is still shown.
const FORGOTTEN_MS: i64 = 60_000;

const OWNERS: Statement = statement!(
    "SELECT owner FROM leases WHERE owner <> '' AND deadline > 0 UNION SELECT name FROM members"
);
const FORGET_MEMBER: Statement = statement!("DELETE FROM members WHERE name = $1");
const ARE_FORGOTTEN: Statement =
    statement!("SELECT CASE WHEN EXISTS (SELECT 1 FROM members WHERE seen < $1) THEN 1 ELSE 0 END");
const FORGET_MEMBERS: Statement = statement!("DELETE FROM members WHERE seen < $1");
/// For each shard: the lowest cursor of any group, a missing one counting as 0, and
/// nothing without a group; the first offset of any lease. In one statement, as events go from
/// beyond a cursor to a lease.
const NEEDED: Statement = statement!(
    "SELECT o.shard,
       (SELECT MIN(COALESCE(c.next, 0)) FROM groups g
          LEFT JOIN cursors c ON c.grp = g.id AND c.shard = o.shard WHERE g.stream = o.stream),
       (SELECT MIN(l.first) FROM groups g
          JOIN leases l ON l.grp = g.id AND l.shard = o.shard WHERE g.stream = o.stream)
     FROM offsets o WHERE o.stream = $1"
);
const OLDEST: Statement = statement!(
    "SELECT first, first + count, time FROM messages WHERE stream = $1 AND shard = $2
     ORDER BY first LIMIT $3"
);
const DELETE: Statement =
    statement!("DELETE FROM messages WHERE stream = $1 AND shard = $2 AND first <= $3");

impl<D: Database> Stream<D> {
    /// Tends the stream in the background, if it is time.
    pub fn tend(self: &Arc<Self>) {
        if !self.db.local().is_to_be_tended(&self.spec.name, D::TEND) {
            return;
        }
        let done = Done(self.clone());
        tokio::spawn(async move {
            let (tended, tidied) = (done.0.tend_now().await, &done.0.db.local().tidied);
            match tended.map_err(|error| format!("{error:#}")) {
                Ok(()) => _ = tidied.works(),
                Err(cause) => {
                    if let Some(line) = tidied.failed(&cause) {
                        let (stream, so_far) = (&done.0.spec.name, line.so_far());
                        tracing::warn!(%stream, "failed to tidy up: {cause}{so_far}");
                    }
                }
            }
        });
    }

    async fn tend_now(self: &Arc<Self>) -> Result<()> {
        self.db.free_dead().await?;
        forget_members(&self.db).await?;
        while delete_some(self).await? {}
        Ok(())
    }
}

/// Lets the stream be tended again, however the task ends.
struct Done<D: Database>(Arc<Stream<D>>);

impl<D: Database> Drop for Done<D> {
    fn drop(&mut self) {
        self.0.db.local().tended(&self.0.spec.name);
    }
}

/// The instance of a member: `INSTANCE/GROUP/NUMBER`.
pub(in crate::stream) fn instance_of(member: &str) -> &str {
    member.rsplitn(3, '/').nth(2).unwrap_or(member)
}

/// Members that hold something or are shown, by their instances.
pub(in crate::stream) async fn owners<D: Database>(
    db: &Arc<D>,
) -> Result<BTreeMap<String, Vec<String>>> {
    db.transact(Mode::Read, |tx| {
        Box::pin(async move {
            let mut instances: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for mut row in tx.rows(OWNERS, &[]).await? {
                let owner = row.text(0)?;
                instances.entry(instance_of(&owner).to_owned()).or_default().push(owner);
            }
            Ok(instances)
        })
    })
    .await
}

/// Frees what these members held: they are gone.
pub(in crate::stream) async fn free(tx: &mut dyn Sql, owners: &[String]) -> Result<()> {
    for owner in owners {
        tx.run(FORGET_MEMBER, args![&**owner]).await?;
    }
    for owner in owners {
        lease::free(tx, owner).await?;
    }
    Ok(())
}

/// Forgets members that were not seen for long and hold nothing.
async fn forget_members<D: Database>(db: &Arc<D>) -> Result<()> {
    if db
        .transact(Mode::Read, |tx| {
            Box::pin(async move {
                let before = tx.now_ms() - FORGOTTEN_MS;
                let row = first(tx, ARE_FORGOTTEN, args![before]).await?;
                row.map_or(Ok(false), |row| Ok(row.int(0)? != 0))
            })
        })
        .await?
    {
        db.transact(Mode::Loose, |tx| {
            Box::pin(async move {
                let before = tx.now_ms() - FORGOTTEN_MS;
                tx.run(FORGET_MEMBERS, args![before]).await
            })
        })
        .await?;
    }
    Ok(())
}

/// Deletes chunks that are done with, as many as a short transaction may; `true` where there may
/// be more.
async fn delete_some<D: Database>(stream: &Arc<Stream<D>>) -> Result<bool> {
    let retain = stream.spec.retain;
    if retain == Retain::Forever
        || !stream
            .transact(Mode::Read, move |tx, ids| {
                Box::pin(async move { Ok(!deletable(tx, ids.stream, retain).await?.is_empty()) })
            })
            .await?
    {
        return Ok(false);
    }
    stream
        .transact(Mode::Loose, move |tx, ids| {
            Box::pin(async move {
                cursor::lock_stream(tx, ids.stream).await?;
                // Looked at anew: a group may have been created since, or its cursor moved back.
                let found = deletable(tx, ids.stream, retain).await?;
                for (shard, last) in &found {
                    tx.run(DELETE, args![ids.stream, *shard, *last]).await?;
                }
                Ok(!found.is_empty())
            })
        })
        .await
}

/// For each shard with something to delete, the first offset of the last chunk that may go.
async fn deletable(tx: &mut dyn Sql, stream: i64, retain: Retain) -> Result<Vec<(u32, i64)>> {
    let since = match retain {
        Retain::Forever => return Ok(Vec::new()),
        Retain::Acked => None,
        Retain::Age(age) => {
            Some(tx.time_us() - i64::try_from(age.as_micros()).unwrap_or(i64::MAX / 2))
        }
    };
    let mut found = Vec::new();
    for shard in tx.rows(NEEDED, args![stream]).await? {
        // invariant: no-event-lost
        let needed = shard.opt_int(1)?.map(|cursor| {
            let leased = shard.opt_int(2).ok().flatten();
            leased.map_or(cursor, |leased| leased.min(cursor))
        });
        // Without a group there is nobody who could have acked, but time passes all the same.
        let Some(needed) = needed.or(since.map(|_| i64::MAX)) else { continue };
        let shard = shard.small(0)?;
        let mut last = None;
        for row in tx.rows(OLDEST, args![stream, shard, DELETE_MAX]).await? {
            // Always from the front, so that what is left has no gap.
            if row.int(1)? > needed
                || since.is_some_and(|since| row.int(2).is_ok_and(|time| time >= since))
            {
                break;
            }
            last = Some(row.int(0)?);
        }
        found.extend(last.map(|last| (shard, last)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_names_its_instance() {
        assert_eq!(instance_of("host-1-ab/writer/3"), "host-1-ab");
        assert_eq!(instance_of("odd/host/writer/3"), "odd/host");
        assert_eq!(instance_of("alone"), "alone");
    }
}
