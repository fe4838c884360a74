//! Rows of ordered groups: a batch is one transaction, in which each shard's owner is looked at
//! first, and of each shard the rows before the first that the database will not take are stored.

use std::ops::Range;

use anyhow::Result;
use sqlx::sqlite::SqliteArguments;

use super::Table;
use super::plan::Known;
use super::write::{End, Hand, Rows, halves, read, refused};
use crate::event::{Delivery, Fence, Refusal, Stored};
use crate::sink::database::{add, code, primary, statement, trouble};
use crate::sink::fence::{Run, runs};

/// The newest owner of each shard that something was stored of.
pub(super) const FENCES: &str = "
    CREATE TABLE IF NOT EXISTS aqueduct_fence (
        grp TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        PRIMARY KEY (grp, shard)
    ) WITHOUT ROWID";

pub(super) async fn store(table: &mut Table, batch: &[&Delivery]) -> Result<Stored> {
    let mut unfit = Vec::new();
    let rows = read(&table.plan, batch, &mut unfit);
    let lanes = lanes(runs(batch)?, &rows, &mut unfit);
    let mut stored = match transact(table, &rows, &lanes).await? {
        End::Committed(stored) => stored,
        End::Undone(_) => singly(table, &rows, &lanes).await?,
    };
    stored.refusals.sort_by_key(|refusal| refusal.index);
    stored.fenced.sort_unstable();
    Ok(stored)
}

/// What is to be stored of one shard.
struct Lane<'a> {
    run: Run<'a>,
    /// The rows before the first event that does not fit the columns.
    rows: Vec<usize>,
    /// That event.
    unfit: Option<Refusal>,
}

fn lanes<'a>(runs: Vec<Run<'a>>, rows: &Rows<'_>, unfit: &mut Vec<Refusal>) -> Vec<Lane<'a>> {
    let lanes = runs.into_iter().map(|run| {
        let own = |refusal: &Refusal| run.events.binary_search(&refusal.index).is_ok();
        let at = unfit.iter().position(own);
        let unfit = at.map(|at| unfit.remove(at));
        let end = unfit.as_ref().map_or(usize::MAX, |refusal| refusal.index);
        let events = run.events.iter().take_while(|event| **event < end);
        // An event before the first that does not fit has a row.
        let rows = events.filter_map(|event| rows.index.binary_search(event).ok()).collect();
        Lane { run, rows, unfit }
    });
    lanes.collect()
}

/// Stores these in one transaction.
async fn transact(table: &mut Table, rows: &Rows<'_>, lanes: &[Lane<'_>]) -> Result<End<Stored>> {
    let Table { config, plan, database, .. } = table;
    let path = database.path().to_owned();
    let mut stored = Stored::default();
    let mut transaction = database.begin().await?;
    let hand = &mut Hand { config, plan, rows, path: &path, transaction: &mut transaction };
    for lane in lanes {
        if !hand.enter(lane.run.fence).await? {
            stored.fenced.extend(&lane.run.events);
            continue;
        }
        match hand.store_in_order(&lane.rows).await? {
            Lasted::Whole => stored.refusals.extend(lane.unfit.clone()),
            Lasted::Until(refusal) => stored.refusals.push(refusal),
            Lasted::Undone(reason) => return Ok(End::Undone(reason)),
        }
    }
    if plan.known == Known::BySeen {
        hand.forget_expired(lanes.iter().map(|lane| lane.rows.len()).sum()).await?;
    }
    match transaction.commit().await {
        Ok(()) => Ok(End::Committed(stored)),
        Err(error) if primary(&error) == Some(code::CONSTRAINT) => {
            Ok(End::Undone(refused(config, &error)))
        }
        Err(error) => Err(trouble(&path, error)),
    }
}

/// A transaction a row, for what undoes all of its transaction: of each shard as far as it goes.
async fn singly(table: &mut Table, rows: &Rows<'_>, lanes: &[Lane<'_>]) -> Result<Stored> {
    let mut stored = Stored::default();
    for lane in lanes {
        let Run { fence, events } = &lane.run;
        let mut end = lane.unfit.clone();
        for &row in &lane.rows {
            table.reconnect().await?;
            let run = Run { fence, events: events.clone() };
            let one = Lane { run, rows: vec![row], unfit: None };
            match transact(table, rows, &[one]).await? {
                End::Committed(one) if !one.fenced.is_empty() => {
                    stored.fenced.extend(one.fenced);
                    end = None;
                    break;
                }
                End::Committed(one) if one.refusals.is_empty() => {}
                End::Committed(one) => {
                    end = one.refusals.into_iter().next();
                    break;
                }
                End::Undone(reason) => {
                    end = Some(Refusal { index: rows.index[row], reason });
                    break;
                }
            }
        }
        stored.refusals.extend(end);
    }
    table.reconnect().await?;
    Ok(stored)
}

/// How far the rows of a shard could be stored.
enum Lasted {
    Whole,
    /// Those before this one.
    Until(Refusal),
    /// The database undid the whole transaction, for this reason.
    Undone(String),
}

impl Hand<'_, '_, '_> {
    /// Makes this owner the newest of its shard. `false`: there is a newer one.
    async fn enter(&mut self, fence: &Fence) -> Result<bool> {
        let mut arguments = SqliteArguments::default();
        add(&mut arguments, fence.group.to_string())?;
        add(&mut arguments, i64::from(fence.shard))?;
        add(&mut arguments, fence.epoch)?;
        let enter = statement(
            // invariant: no-store-by-a-fenced-owner
            "INSERT INTO aqueduct_fence (grp, shard, epoch) VALUES (?, ?, ?)
             ON CONFLICT (grp, shard) DO UPDATE SET epoch = excluded.epoch
             WHERE aqueduct_fence.epoch <= excluded.epoch",
            arguments,
        );
        let entered = enter.execute(&mut **self.transaction).await;
        Ok(entered.map_err(|error| trouble(self.path, error))?.rows_affected() > 0)
    }

    async fn store_in_order(&mut self, which: &[usize]) -> Result<Lasted> {
        let which = match self.plan.known {
            Known::ByColumn => which.to_vec(),
            Known::BySeen => self.unseen(which).await?,
        };
        let mut todo: Vec<Range<usize>> = std::iter::once(0..which.len()).collect();
        while let Some(range) = todo.pop() {
            if range.is_empty() {
                continue;
            }
            let block = range.start..range.start + self.plan.block(range.len());
            todo.push(block.end..range.end);
            let Some(reason) = self.insert(&which[block.clone()]).await? else { continue };
            if !self.step_back().await {
                return Ok(Lasted::Undone(reason));
            }
            match halves(block.clone()) {
                Some((first, second)) => todo.extend([second, first]),
                None => {
                    let index = self.rows.index[which[block.start]];
                    return Ok(Lasted::Until(Refusal { index, reason }));
                }
            }
        }
        Ok(Lasted::Whole)
    }
}
