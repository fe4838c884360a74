//! Owners: in an ordered group, each shard is one member's at a time.
//!
//! Each owner has an epoch, which only ever rises; it is what a sink tells owners apart by. Who
//! claims a shard frees what is leased of it, so that whatever the owner before holds means
//! nothing from then on ([`lease`](super::lease) knows it by a token that is gone): it can neither
//! acknowledge it nor anything else. A fetch locks the rows of its shards, so that nobody claims
//! one while its events are being leased. Rows are locked in the order of group and shard.
//!
//! Invariants: a shard has one row, so one owner at most; a row's epoch rises with each claim and
//! never falls (where the number of shards changes, all get the highest); while a shard has an owner, the leases of it that are not free are that
//! owner's, and every event before them is done with or free.

use std::collections::HashMap;

use anyhow::Result;

use super::{Arg, Row, Sql, Statement, args, first, statement};

/// Leaves rows alone that are there: in PostgreSQL a conflict with a row waits for whoever is just
/// changing it.
const ADD: Statement = statement!(
    "INSERT INTO owners (grp, shard, member, epoch, until)
     SELECT c.grp, c.shard, '', (SELECT COALESCE(MAX(epoch), 0) FROM owners WHERE grp = $1), 0
     FROM cursors c WHERE c.grp = $1 AND NOT EXISTS
       (SELECT 1 FROM owners w WHERE w.grp = c.grp AND w.shard = c.shard)
     ORDER BY c.shard ON CONFLICT DO NOTHING"
);
/// Where the member is still the owner, it remains so, however late it is: nobody was it since.
const KEEP: Statement = statement!(
    sqlite "UPDATE owners SET until = $1 WHERE grp = $2 AND member = $3 RETURNING shard, epoch",
    postgres "WITH mine AS (SELECT shard FROM owners WHERE grp = $2 AND member = $3
       ORDER BY shard FOR UPDATE)
     UPDATE owners w SET until = $1 FROM mine
     WHERE w.grp = $2 AND w.member = $3 AND w.shard = mine.shard RETURNING w.shard, w.epoch"
);
const LOCK: Statement =
    statement!("SELECT shard FROM owners WHERE grp = $1 ORDER BY shard", lock "FOR UPDATE");
const LOCK_MEMBER: Statement = statement!(
    "SELECT shard FROM owners WHERE member = $1 ORDER BY grp, shard",
    lock "FOR UPDATE"
);
const LOCK_INSTANCE: Statement = statement!(
    "SELECT shard FROM owners WHERE substr(member, 1, length($1) + 1) = $1 || '/'
     ORDER BY grp, shard",
    lock "FOR UPDATE"
);
const LOCK_STREAM: Statement = statement!(
    "SELECT shard FROM owners WHERE grp IN (SELECT id FROM groups WHERE stream = $1)
     ORDER BY grp, shard",
    lock "FOR UPDATE"
);
const LIVING: Statement = statement!(
    "SELECT name FROM members WHERE grp = $1 AND ordered = 1 AND seen > $2 ORDER BY name"
);
const FREE: Statement =
    statement!("SELECT shard FROM owners WHERE grp = $1 AND until <= $2 ORDER BY shard");
/// No row: somebody else is just claiming it.
const LOCK_FREE: Statement = statement!(
    "SELECT epoch FROM owners WHERE grp = $1 AND shard = $2 AND until <= $3",
    lock "FOR UPDATE SKIP LOCKED"
);
const CLAIM: Statement = statement!(
    "UPDATE owners SET member = $1, epoch = $2, until = $3 WHERE grp = $4 AND shard = $5"
);
const FREE_LEASES: Statement = statement!(
    "UPDATE leases SET deadline = 0, owner = '', token = $1
     WHERE grp = $2 AND shard = $3 AND deadline > 0"
);
const IS_LEASED: Statement =
    statement!("SELECT 1 FROM leases WHERE grp = $1 AND shard = $2 AND deadline > 0 LIMIT 1");
/// Of each shard, the events that are held, and whether some are free.
const LEASED: Statement = statement!(
    "SELECT shard,
       CAST(SUM(CASE WHEN deadline > 0 THEN last - first + 1 ELSE 0 END) AS BIGINT),
       MAX(CASE WHEN deadline = 0 THEN 1 ELSE 0 END)
     FROM leases WHERE grp = $1 GROUP BY shard"
);
const GIVE_UP: Statement = statement!(
    "UPDATE owners SET member = '', until = 0 WHERE grp = $1 AND shard = $2 AND member = $3"
);
const GIVE_UP_ALL: Statement =
    statement!("UPDATE owners SET member = '', until = 0 WHERE grp = $1 AND member = $2");
const TAKE_AWAY: Statement =
    statement!("UPDATE owners SET member = '', until = 0 WHERE grp = $1 AND shard = $2");
const TAKE_ALL_AWAY: Statement =
    statement!("UPDATE owners SET member = '', until = 0 WHERE grp = $1");
const FORGET: Statement = statement!("DELETE FROM members WHERE grp = $1 AND name = $2");
const GIVE_UP_EVERYWHERE: Statement =
    statement!("UPDATE owners SET member = '', until = 0 WHERE member = $1");
const GIVE_UP_INSTANCE: Statement = statement!(
    "UPDATE owners SET member = '', until = 0
     WHERE substr(member, 1, length($1) + 1) = $1 || '/'"
);

/// Who asks, for which group.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    /// The group.
    pub group: i64,
    /// The member's name.
    pub member: &'a str,
    /// How long it may be silent.
    pub lease_ms: i64,
}

/// A shard that the member owns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owned {
    /// The shard.
    pub shard: u32,
    /// The owner's epoch.
    pub epoch: i64,
    /// Events of it that the member holds.
    pub held: u64,
    /// There may be some that an owner before held.
    pub left: bool,
}

/// Keeps what the member owns, claims what is free as far as that is its share, and gives up
/// what is beyond it, once it holds nothing of that. Answers the shards to read from, and whether
/// it has given up some. The member has to be known as living.
pub(super) async fn balance(tx: &mut dyn Sql, asker: Asker<'_>) -> Result<(Vec<Owned>, bool)> {
    let Asker { group, member, lease_ms } = asker;
    let now = tx.now_ms();
    let mut owned = keep(tx, asker).await?;
    // Nobody but their owner frees leases of these shards, whose rows are locked by now.
    let mut leased: HashMap<u32, (u64, bool)> = HashMap::new();
    for row in tx.rows(LEASED, args![group]).await? {
        leased.insert(row.small(0)?, (row.uint(1)?, row.int(2)? != 0));
    }
    for one in &mut owned {
        (one.held, one.left) = leased.get(&one.shard).copied().unwrap_or_default();
    }
    let mut living = Vec::new();
    for mut row in tx.rows(LIVING, args![group, now - lease_ms]).await? {
        living.push(row.text(0)?);
    }
    tx.run(ADD, args![group]).await?;
    let share = share(count(tx, group).await?, &living, member);
    let mut gave_up = false;
    while owned.len() > share
        && let Some(Owned { shard, held, .. }) = owned.pop()
    {
        if held == 0 {
            tx.run(GIVE_UP, args![group, shard, member]).await?;
            gave_up = true;
        }
    }
    if owned.len() < share {
        for row in tx.rows(FREE, args![group, now]).await? {
            if owned.len() >= share {
                break;
            }
            let shard = row.small(0)?;
            if let Some(epoch) = claim(tx, asker, shard).await? {
                owned.push(Owned { shard, epoch, held: 0, left: true });
            }
        }
    }
    Ok((owned, gave_up))
}

/// Keeps what the member owns for another lease.
pub(super) async fn keep(tx: &mut dyn Sql, asker: Asker<'_>) -> Result<Vec<Owned>> {
    let until = tx.now_ms() + asker.lease_ms;
    let rows = tx.rows(KEEP, args![until, asker.group, asker.member]).await?;
    let own =
        |row: &Row| Ok(Owned { shard: row.small(0)?, epoch: row.int(1)?, held: 0, left: true });
    let owned = rows.iter().map(own);
    let mut owned = owned.collect::<Result<Vec<_>>>()?;
    owned.sort_unstable_by_key(|owned| owned.shard);
    Ok(owned)
}

async fn count(tx: &mut dyn Sql, group: i64) -> Result<usize> {
    const COUNT: Statement = statement!("SELECT COUNT(*) FROM owners WHERE grp = $1");
    first(tx, COUNT, args![group]).await?.map_or(Ok(0), |row| Ok(row.uint(0)? as usize))
}

/// Makes a free shard the member's. `None`: somebody else was first.
async fn claim(tx: &mut dyn Sql, asker: Asker<'_>, shard: u32) -> Result<Option<i64>> {
    let Asker { group, member, lease_ms } = asker;
    let now = tx.now_ms();
    let Some(row) = first(tx, LOCK_FREE, args![group, shard, now]).await? else { return Ok(None) };
    // Above what it ever was, also where the database is an older copy of itself.
    // invariant: no-store-by-a-fenced-owner
    let epoch = (row.int(0)? + 1).max(tx.time_us());
    tx.run(CLAIM, args![member, epoch, now + lease_ms, group, shard]).await?;
    // Again, as who held them may just have cut one in two and acked the half that is known here.
    // invariant: one-owner, in-order
    while first(tx, IS_LEASED, args![group, shard]).await?.is_some() {
        tx.run(FREE_LEASES, args![fastrand::u64(..), group, shard]).await?;
    }
    Ok(Some(epoch))
}

/// The member fetches no more: what it owns is free, and it counts no more.
pub(super) async fn leave(tx: &mut dyn Sql, group: i64, member: &str) -> Result<()> {
    tx.run(FORGET, args![group, member]).await?;
    give_up_all(tx, group, member).await
}

/// Keeps all shards of a group with whom they are until the transaction ends.
pub(super) async fn lock(tx: &mut dyn Sql, group: i64) -> Result<()> {
    in_order(tx, LOCK, args![group]).await
}

/// The same for all groups of a stream.
pub(super) async fn lock_stream(tx: &mut dyn Sql, stream: i64) -> Result<()> {
    in_order(tx, LOCK_STREAM, args![stream]).await
}

/// Locks rows before a statement that would lock them in the order in which it comes upon them.
async fn in_order(tx: &mut dyn Sql, lock: Statement, args: &[Arg<'_>]) -> Result<()> {
    if tx.is_shared() {
        tx.rows(lock, args).await?;
    }
    Ok(())
}

/// Takes a shard from whoever owns it: the next owner has a greater epoch.
pub(super) async fn take_away(tx: &mut dyn Sql, group: i64, shard: u32) -> Result<()> {
    tx.run(TAKE_AWAY, args![group, shard]).await?;
    Ok(())
}

/// The same for all shards of a group, whose rows are locked.
pub(super) async fn take_all_away(tx: &mut dyn Sql, group: i64) -> Result<()> {
    tx.run(TAKE_ALL_AWAY, args![group]).await?;
    Ok(())
}

/// How many shards are a member's: all have the same number, or one more, the first by name.
fn share(shards: usize, living: &[String], member: &str) -> usize {
    let Some(place) = living.iter().position(|name| name == member) else { return 0 };
    shards / living.len() + usize::from(place < shards % living.len())
}

/// Gives up shards of a member.
pub(super) async fn give_up(tx: &mut dyn Sql, group: i64, member: &str, shard: u32) -> Result<()> {
    tx.run(GIVE_UP, args![group, shard, member]).await?;
    Ok(())
}

/// Gives up all shards of a member in a group.
pub(super) async fn give_up_all(tx: &mut dyn Sql, group: i64, member: &str) -> Result<()> {
    in_order(tx, LOCK_MEMBER, args![member]).await?;
    tx.run(GIVE_UP_ALL, args![group, member]).await?;
    Ok(())
}

/// Gives up all shards of a member that is gone.
pub(super) async fn free(tx: &mut dyn Sql, member: &str) -> Result<()> {
    in_order(tx, LOCK_MEMBER, args![member]).await?;
    tx.run(GIVE_UP_EVERYWHERE, args![member]).await?;
    Ok(())
}

/// Gives up all shards of the members of an instance.
pub(super) async fn free_instance(tx: &mut dyn Sql, instance: &str) -> Result<()> {
    in_order(tx, LOCK_INSTANCE, args![instance]).await?;
    tx.run(GIVE_UP_INSTANCE, args![instance]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_differ_by_one_at_most_and_leave_no_shard() {
        for shards in 0..20 {
            for members in 1..12 {
                let living: Vec<String> = (0..members).map(|it| format!("m/{it:02}")).collect();
                let shares: Vec<usize> =
                    living.iter().map(|member| share(shards, &living, member)).collect();
                assert_eq!(shares.iter().sum::<usize>(), shards);
                assert!(shares[0] - shares[members - 1] <= 1, "{shares:?}");
                assert_eq!(share(shards, &living, "nobody"), 0);
            }
        }
    }
}
