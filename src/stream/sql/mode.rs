//! Whether a group is an ordered one: all its living members are of one mode.
//!
//! The mode stands in each row of `cursors`, which a fetch reads, and locks before it takes new
//! events: so whoever is of the other mode is told so in the transaction that would have taken
//! something, also one that was stopped and wakes. It changes when a member of the other mode is
//! opened and nobody lives any more that goes by the old one.
//!
//! Who changes it locks all owners, cursors and leases of the group first. Nobody makes a lease
//! but a fetch, with the cursor or the lease that it takes over locked, and who cuts one in two,
//! with that one locked: so then none is made, and a fetch that was under way is over.

use anyhow::Result;

use super::{Sql, Stale, Statement, args, first, own, statement};
use crate::stream::{GroupSpec, StreamSpec, modes};

/// Of two that come at once, the second sees the first among the members.
const LOCK_GROUP: Statement = statement!("SELECT id FROM groups WHERE id = $1", lock "FOR UPDATE");
const IS_OTHER: Statement =
    statement!("SELECT 1 FROM cursors WHERE grp = $1 AND ordered <> $2 LIMIT 1");
const LOCK_CURSORS: Statement =
    statement!("SELECT shard FROM cursors WHERE grp = $1 ORDER BY shard", lock "FOR UPDATE");
const LOCK_LEASES: Statement =
    statement!("SELECT id FROM leases WHERE grp = $1 ORDER BY shard, first", lock "FOR UPDATE");
const LEASES: Statement = statement!("SELECT COUNT(*) FROM leases WHERE grp = $1");
/// Of the other mode: who was seen within its lease, or holds something.
const WORKING: Statement = statement!(
    "SELECT name FROM members WHERE grp = $1 AND ordered <> $2 AND name <> $3 AND seen + lease > $4
     UNION SELECT owner FROM leases WHERE grp = $1 AND owner <> '' AND owner <> $3 AND deadline > $4
     UNION SELECT member FROM owners WHERE grp = $1 AND member <> '' AND member <> $3 AND until > $4
     ORDER BY 1 LIMIT 1"
);
const FREE_LEASES: Statement = statement!(
    "UPDATE leases SET deadline = 0, owner = '', token = $1 WHERE grp = $2 AND deadline > 0"
);
const SET: Statement = statement!("UPDATE cursors SET ordered = $1 WHERE grp = $2");

/// Waits until nobody else opens a member of the group.
pub(super) async fn wait_turn(tx: &mut dyn Sql, group: i64) -> Result<()> {
    first(tx, LOCK_GROUP, args![group]).await?.map_or(Err(Stale.into()), |_| Ok(()))
}

/// Sees to it that the group is of the mode that its spec says. Errs while somebody else goes by
/// the other one. The member has to be known as living, and it is its turn.
pub(super) async fn enter(
    tx: &mut dyn Sql,
    group: i64,
    stream: &StreamSpec,
    spec: &GroupSpec,
    member: &str,
) -> Result<()> {
    let mine = u32::from(spec.ordered);
    if first(tx, IS_OTHER, args![group, mine]).await?.is_none() {
        return Ok(());
    }
    // Who is refused locks nothing: those that are at work would wait for it.
    let now = tx.now_ms();
    let mut working = first(tx, WORKING, args![group, mine, member, now]).await?;
    if working.is_none() && tx.is_shared() {
        own::lock(tx, group).await?;
        tx.rows(LOCK_CURSORS, args![group]).await?;
        lock_leases(tx, group).await?;
        working = first(tx, WORKING, args![group, mine, member, now]).await?;
    }
    if let Some(mut other) = working {
        return Err(modes::refusal(stream, spec, &other.text(0)?));
    }
    own::take_all_away(tx, group).await?;
    tx.run(FREE_LEASES, args![fastrand::u64(..), group]).await?;
    tx.run(SET, args![mine, group]).await?;
    Ok(())
}

/// Locks all leases of a group whose cursors are locked: until there are no more than those that
/// are locked, as who was waited for may have left others.
async fn lock_leases(tx: &mut dyn Sql, group: i64) -> Result<()> {
    loop {
        let locked = tx.rows(LOCK_LEASES, args![group]).await?.len() as u64;
        let there = first(tx, LEASES, args![group]).await?;
        if there.map_or(Ok(0), |row| row.uint(0))? == locked {
            return Ok(());
        }
    }
}
