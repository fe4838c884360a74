//! Rows of ordered groups. A transaction locks its shards (an advisory lock for each), looks
//! whether they have newer owners, and stores their rows. All shards of a batch go by one; where a
//! row is at fault or a shard is another's, each shard goes by itself, as far as it can.
//!
//! A process that was stopped within such a transaction would keep the lock for as long as it is
//! stopped. So who waits for it too long has the server end that connection.

use anyhow::Result;
use sqlx::{AssertSqlSafe, Row};

use super::Table;
use super::plan::Plan;
use super::rows::{self, Rows};
use super::write::{CONFLICTS_MAX, Fault, Part, Writer, conflict_wait};
use crate::client::postgres::{Server, code, quote_text};
use crate::event::{Delivery, Fence, Refusal, Stored, hash_parts};
use crate::sink::fence::{self, Run, are_apart, runs};

/// How long a shard's lock is waited for; and how long who has it may be waiting for its process.
const LOCK_WAIT_MS: u32 = 2000;
const LOCK_NOT_AVAILABLE: &str = "55P03";
const UNIQUE_VIOLATION: &str = "23505";

pub(super) async fn store(table: &mut Table, batch: &[&Delivery]) -> Result<Stored> {
    let mut live = table.live().await?;
    let Table { server, plan, buffer, caution, fences, .. } = table;
    let pid = live.pid();
    let runs = runs(batch)?;
    if runs.is_empty() {
        table.session = Some(live);
        return Ok(Stored::default());
    }
    let work = async {
        if !*fences {
            plan.create_fences(server, &mut live).await?;
            *fences = true;
        }
        let mut refusals = Vec::new();
        let rows = rows::read(plan, batch, buffer, &mut refusals, true);
        let session = &mut live;
        let whole = refusals.is_empty() && rows.twins.is_empty() && are_apart(&runs);
        let mut writer = Writer::new(server, plan, session, buffer, &rows, caution, &mut refusals);
        if whole {
            let all: Vec<usize> = (0..rows.index.len()).collect();
            let fences: Vec<&Fence> = runs.iter().map(|run| run.fence).collect();
            if let Some(stored) = writer.whole(&runs, &fences, all).await? {
                writer.learn().await?;
                return anyhow::Ok(stored);
            }
        }
        let mut stored = Stored::default();
        for run in &runs {
            let events: Vec<&Delivery> = run.events.iter().map(|event| batch[*event]).collect();
            let mut unfit = Vec::new();
            let rows = rows::read(plan, &events, writer.buffer, &mut unfit, true);
            let unfit = unfit.into_iter().min_by_key(|refusal| refusal.index);
            let session = &mut *writer.session;
            let (buffer, caution) = (&mut *writer.buffer, &mut *writer.caution);
            let none = &mut Vec::new();
            let mut alone = Writer::new(server, plan, session, buffer, &rows, caution, none);
            let lasted = alone.one(run.fence, &rows, unfit).await?;
            alone.learn().await?;
            match lasted {
                Lasted::Whole => {}
                Lasted::Until(Refusal { index, reason }) => {
                    stored.refusals.push(Refusal { index: run.events[index], reason });
                }
                Lasted::Fenced => stored.fenced.extend(&run.events),
            }
        }
        Ok(stored)
    };
    let mut stored = server.watch(pid, work).await??;
    table.session = Some(live);
    stored.refusals.sort_by_key(|refusal| refusal.index);
    stored.fenced.sort_unstable();
    Ok(stored)
}

/// How far the rows of a shard could be stored.
enum Lasted {
    Whole,
    /// Those before this one.
    Until(Refusal),
    Fenced,
}

impl Writer<'_> {
    /// Stores rows of several shards at once. `None`: nothing is stored, and each is to go alone.
    async fn whole(
        &mut self,
        runs: &[Run<'_>],
        fences: &[&Fence],
        which: Vec<usize>,
    ) -> Result<Option<Stored>> {
        let mut wary = self.caution.wary > 0;
        let mut conflicts = 0;
        loop {
            match self.attempt(fences, &which, wary).await {
                Ok(lost) if lost.is_empty() => return Ok(Some(Stored::default())),
                Ok(_) if runs.len() > 1 => return Ok(None),
                Ok(_) => {
                    let fenced = runs.iter().flat_map(|run| run.events.clone()).collect();
                    return Ok(Some(Stored { refusals: Vec::new(), fenced }));
                }
                Err(Fault::Duplicates(_)) if !wary => (self.duplicates, wary) = (true, true),
                Err(Fault::Duplicates(_) | Fault::Row(..)) => return Ok(None),
                Err(Fault::Conflict(error)) if conflicts == CONFLICTS_MAX => {
                    return Err(self.server.explain(&error));
                }
                Err(Fault::Conflict(_)) => {
                    conflicts += 1;
                    conflict_wait(conflicts).await;
                }
                Err(Fault::Trouble(error)) => return Err(error),
            }
        }
    }

    /// Stores the rows of one shard, as far as they go. An event that does not fit the columns
    /// ends them.
    async fn one(&mut self, fence: &Fence, rows: &Rows, unfit: Option<Refusal>) -> Result<Lasted> {
        let end = unfit.as_ref().map_or(usize::MAX, |refusal| refusal.index);
        let all = (0..rows.index.len()).filter(|row| rows.index[*row] < end).collect();
        let mut refused = unfit;
        let mut todo: Vec<Vec<usize>> = vec![all];
        let (mut wary, mut conflicts) = (self.caution.wary > 0, 0);
        while let Some(which) = todo.pop() {
            match self.attempt(&[fence], &which, wary).await {
                Ok(lost) if lost.is_empty() => {}
                Ok(_) => return Ok(Lasted::Fenced),
                Err(Fault::Duplicates(_)) if !wary => {
                    (self.duplicates, wary) = (true, true);
                    todo.push(which);
                }
                Err(Fault::Duplicates(_)) => {
                    conflicts += 1;
                    anyhow::ensure!(conflicts <= CONFLICTS_MAX, "others store the same events");
                    todo.push(which);
                }
                Err(Fault::Row(at, reason)) => {
                    let at = if which.len() == 1 { Some(0) } else { at };
                    if let Some(at) = at {
                        // What is behind it waits, and it may not be the first.
                        refused = Some(Refusal { index: rows.index[which[at]], reason });
                        todo = vec![which[..at].to_vec()];
                    } else {
                        let (first, second) = which.split_at(which.len() / 2);
                        todo.extend([second.to_vec(), first.to_vec()]);
                    }
                }
                Err(Fault::Conflict(error)) if conflicts >= CONFLICTS_MAX => {
                    return Err(self.server.explain(&error));
                }
                Err(Fault::Conflict(_)) => {
                    conflicts += 1;
                    conflict_wait(conflicts).await;
                    todo.push(which);
                }
                Err(Fault::Trouble(error)) => return Err(error),
            }
        }
        Ok(refused.map_or(Lasted::Whole, Lasted::Until))
    }

    /// One transaction: all of these rows, or none. Answers which of the fences there are newer
    /// owners than; then it is none. Of a row at fault the place in `which` is told.
    async fn attempt(
        &mut self,
        fences: &[&Fence],
        which: &[usize],
        wary: bool,
    ) -> Result<Vec<usize>, Fault> {
        let entered = match self.enter(fences).await {
            Ok(lost) if lost.is_empty() => self.fill(which, wary).await.map(|()| lost),
            lost => lost,
        };
        let ended = match entered {
            Ok(lost) if lost.is_empty() => self.run("COMMIT").await.map(|()| lost),
            entered => entered,
        };
        match &ended {
            Ok(lost) if lost.is_empty() => {}
            Err(Fault::Trouble(_)) => {}
            _ => self.run("ROLLBACK").await?,
        }
        if matches!(&ended, Err(Fault::Conflict(error)) if code(error) == Some(LOCK_NOT_AVAILABLE))
        {
            let end = self.plan.end_stopped(fences);
            let ended = sqlx::raw_sql(AssertSqlSafe(end)).execute(&mut **self.session).await;
            ended.map_err(|error| Fault::Trouble(self.server.explain(&error)))?;
        }
        ended
    }

    /// Begins a transaction that has the shards to itself. Answers which have newer owners.
    async fn enter(&mut self, fences: &[&Fence]) -> Result<Vec<usize>, Fault> {
        let enter = self.plan.enter(fences);
        let rows = match sqlx::raw_sql(AssertSqlSafe(enter)).fetch_all(&mut **self.session).await {
            Ok(rows) => rows,
            Err(error) if code(&error) == Some(LOCK_NOT_AVAILABLE) => {
                return Err(Fault::Conflict(error));
            }
            Err(error) => return Err(self.trouble(error)),
        };
        let mut lost = Vec::new();
        // invariant: no-store-by-a-fenced-owner
        // The locks answer with a row of one column.
        for row in rows.iter().filter(|row| row.len() == 3) {
            let read = || Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
            let (group, shard, epoch): (String, i64, i64) =
                read().map_err(|error| self.trouble(error))?;
            let newer = |fence: &&Fence| {
                *fence.group == *group && i64::from(fence.shard) == shard && fence.epoch < epoch
            };
            lost.extend(fences.iter().position(newer));
        }
        Ok(lost)
    }

    /// Stores rows within a transaction.
    async fn fill(&mut self, which: &[usize], wary: bool) -> Result<(), Fault> {
        for part in self.pieces(which, wary) {
            self.fill_part(&part).await.map_err(|fault| match fault {
                Fault::Row(Some(at), reason) => {
                    Fault::Row(which.binary_search(&part.rows[at]).ok(), reason)
                }
                other => other,
            })?;
            if self.plan.staged {
                self.run("DELETE FROM pg_temp.aqueduct_batch").await?;
            }
        }
        Ok(())
    }

    async fn fill_part(&mut self, part: &Part) -> Result<(), Fault> {
        let Some(id) = self.plan.id.filter(|_| !self.plan.staged) else {
            return self.store_within(part).await;
        };
        let rest;
        let mut which = &part.rows;
        if part.wary {
            rest = self.unstored(which, id).await?;
            self.duplicates |= rest.len() < which.len();
            which = &rest;
            if which.is_empty() {
                return Ok(());
            }
        }
        match self.copy(part.mask, which).await? {
            Ok(()) => Ok(()),
            // Of the id column or another? A second look tells.
            Err(error) if !part.wary && code(&error) == Some(UNIQUE_VIOLATION) => {
                Err(Fault::Duplicates(Vec::new()))
            }
            Err(error) => Err(self.fault(error, part, which)),
        }
    }

    /// Rows that fill the same columns; where a later one may replace one before it, only such as
    /// follow each other.
    fn pieces(&self, which: &[usize], wary: bool) -> Vec<Part> {
        let masks = &self.rows.masks;
        let mut pieces: Vec<Part> = Vec::new();
        for &row in which {
            let mask = masks[row];
            let found = match self.plan.staged {
                true => pieces.last_mut().filter(|piece| piece.mask == mask),
                false => pieces.iter_mut().find(|piece| piece.mask == mask),
            };
            match found {
                Some(piece) => piece.rows.push(row),
                None => pieces.push(Part { mask, rows: vec![row], wary }),
            }
        }
        pieces
    }
}

impl Plan {
    /// The table of fences, as SQL calls it.
    fn fences(&self) -> String {
        self.name.beside(fence::TABLE)
    }

    async fn create_fences(
        &self,
        server: &Server,
        connection: &mut sqlx::postgres::PgConnection,
    ) -> Result<()> {
        let columns = "(grp text NOT NULL, shard int8 NOT NULL, epoch int8 NOT NULL, \
                       PRIMARY KEY (grp, shard))";
        self.create_beside(server, connection, &self.fences(), columns, "").await
    }

    /// The advisory lock of a shard.
    fn lock_of(&self, fence: &Fence) -> i64 {
        let (table, shard) = (self.fences(), fence.shard.to_le_bytes());
        hash_parts(&[b"aqueduct fence", table.as_bytes(), fence.group.as_bytes(), &shard]) as i64
    }

    /// Begins a transaction, waits for the shards, makes these owners their newest ones, and asks
    /// who is that now.
    fn enter(&self, fences: &[&Fence]) -> String {
        let mut locks: Vec<i64> = fences.iter().map(|fence| self.lock_of(fence)).collect();
        locks.sort_unstable();
        let mut sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {LOCK_WAIT_MS}; "
        );
        for lock in locks {
            sql.push_str(&format!("SELECT pg_advisory_xact_lock({lock}); "));
        }
        let (mut rows, mut keys) = (Vec::new(), Vec::new());
        for Fence { group, shard, epoch } in fences {
            let group = quote_text(group);
            rows.push(format!("({group}, {shard}, {epoch})"));
            keys.push(format!("({group}, {shard})"));
        }
        let (table, rows, keys) = (self.fences(), rows.join(", "), keys.join(", "));
        sql.push_str(&format!(
            "SET LOCAL lock_timeout TO DEFAULT;
             INSERT INTO {table} AS f (grp, shard, epoch) VALUES {rows}
             ON CONFLICT (grp, shard) DO UPDATE SET epoch = excluded.epoch
             WHERE f.epoch < excluded.epoch;
             SELECT grp, shard, epoch FROM {table} WHERE (grp, shard) IN ({keys})"
        ));
        sql
    }

    /// Ends connections that have one of these shards and have heard nothing from their process
    /// for a while.
    fn end_stopped(&self, fences: &[&Fence]) -> String {
        let locks: Vec<String> =
            fences.iter().map(|fence| format!("({})", self.lock_of(fence))).collect();
        format!(
            "SELECT pg_terminate_backend(a.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND ((l.classid::int8 << 32) | l.objid::int8) IN ({})
               AND a.pid <> pg_backend_pid() AND a.wait_event_type = 'Client'
               AND greatest(a.state_change, a.query_start)
                   < clock_timestamp() - interval '{LOCK_WAIT_MS} ms'",
            locks.join(", ")
        )
    }
}
