//! `file`: a line for each event at the end of a file, each once, whoever is killed when and
//! whoever else appends.
//!
//! Beside the file are its ledger, `.NAME.aqueduct.db`, which knows what was written, and a lock
//! file, by which writers take turns. A turn is: make the events count as written and keep the
//! lines to append (the *intent*) in one durable step; append; sync the file; note in the lock
//! file that it is done. Who finds that note missing at the start of a turn brings the intent of
//! the one before to its end first. So an event of the ledger is in the file, or will be; nothing
//! is ever taken back, and nothing is cut.

mod ledger;
mod output;
mod settle;
mod spans;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;

use super::database::Database;
use super::line::one_line;
use super::{Capabilities, Kind, Sink, SinkSpec};
use crate::event::{Delivery, Refusal, now_us};
use crate::spec::{Complaint, Default, Key, Site, Ty, Values};
use ledger::{Entry, Intent, Turn};
use output::{Lock, Output};
use settle::Rest;

/// The kind.
pub static KIND: Kind = Kind {
    name: "file",
    doc: "A line for each event at the end of a file, each exactly once. A JSON body is put on one \
          line; a text body that holds a newline is refused. What others append stays as it is; \
          behind somebody's unfinished line, ours start on a fresh one.",
    system: None,
    keys: KEYS,
    capabilities: Capabilities { idempotent: Ok(()), fencing: false },
    check,
    claims: |values| {
        let path = Path::new(values.str("path"));
        let plain: PathBuf = path.components().filter(|it| *it != Component::CurDir).collect();
        Some(format!("file {}", plain.display()))
    },
    place: |values| values.str("path").into(),
    look: |values| Some(format!("tail -f {}", values.str("path"))),
    writers: |_| 1,
    open,
    reader: None,
};

static KEYS: &[Key] = &[
    Key {
        name: "path",
        ty: Ty::Path,
        default: Default::Required,
        doc: "The file. It is created if it is missing, also when it was rotated or removed \
              meanwhile, and so is its directory. Beside it, `.NAME.aqueduct.db` keeps what \
              was written: as long as it is there, no event is written twice.",
    },
    Key {
        name: "seen",
        ty: Ty::Duration,
        default: Default::Toml("\"30d\""),
        doc: "How long an event that follows no other (an id hashed whole) is known when it comes \
              again. Lines of files and published events are known for ever.",
    },
];

/// Bytes of lines in one append: past this, a batch is written in several.
const APPEND_MAX: usize = 8 * 1024 * 1024;

fn check(values: &Values) -> Vec<Complaint> {
    let path = values.str("path");
    let names_file = !path.ends_with('/') && Path::new(path).file_name().is_some();
    let message = || format!("`{path}` names no file (a path like \"out/events.log\" does)");
    (!names_file).then(|| Complaint { key: "path", message: message() }).into_iter().collect()
}

fn open(spec: SinkSpec, _site: Site) -> BoxFuture<'static, Result<Box<dyn Sink>>> {
    Box::pin(async move {
        let seen = spec.values.opt_duration("seen").unwrap_or(Duration::from_secs(30 * 86_400));
        let path = spec.values.opt_path("path").unwrap_or_default();
        Ok(Box::new(Lines::open(path, seen).await?) as _)
    })
}

/// A file, open for appending.
struct Lines {
    path: PathBuf,
    ledger_path: PathBuf,
    lock_path: PathBuf,
    seen: Duration,
    ledger: Database,
    output: Output,
}

#[async_trait]
impl Sink for Lines {
    async fn store(&mut self, batch: &[&Delivery]) -> Result<Vec<Refusal>> {
        let mut refusals = Vec::new();
        let mut part = Part::default();
        for (index, delivery) in batch.iter().enumerate() {
            let body = &delivery.event.body;
            let Some(line) = one_line(body) else {
                let reason = "the body holds a newline and is not JSON: it cannot be one line";
                refusals.push(Refusal { index, reason: reason.into() });
                continue;
            };
            part.entries.push(Entry { id: delivery.event.id, length: body.len() });
            part.lines.extend_from_slice(&line);
            part.lines.push(b'\n');
            part.ends.push(part.lines.len());
            if part.lines.len() >= APPEND_MAX {
                self.write(std::mem::take(&mut part)).await?;
            }
        }
        if !part.entries.is_empty() {
            self.write(part).await?;
        }
        Ok(refusals)
    }
}

/// Events, and their lines behind each other.
#[derive(Default)]
struct Part {
    entries: Vec<Entry>,
    lines: Vec<u8>,
    /// Where each line ends.
    ends: Vec<usize>,
}

impl Part {
    /// The lines of those events that are new.
    fn keep(self, new: &[bool]) -> Vec<u8> {
        if new.iter().all(|new| *new) {
            return self.lines;
        }
        let starts = std::iter::once(&0).chain(&self.ends);
        let lines = starts.zip(&self.ends).zip(new).filter(|(_, new)| **new);
        lines.flat_map(|((start, end), _)| &self.lines[*start..*end]).copied().collect()
    }
}

impl Lines {
    async fn open(path: PathBuf, seen: Duration) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| anyhow!("{} names no file", path.display()))?;
        let beside = |end: &str| {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(end);
            path.with_file_name(hidden)
        };
        let (ledger_path, lock_path) = (beside(".aqueduct.db"), beside(".aqueduct.lock"));
        let ledger = ledger::open(&ledger_path).await?;
        let output = Output::open(&path)?;
        let mut lines = Self { path, ledger_path, lock_path, seen, ledger, output };
        lines.write(Part::default()).await?;
        Ok(lines)
    }

    /// Writes those of the events that are not written yet, after what the writer before may have
    /// left to do.
    async fn write(&mut self, part: Part) -> Result<()> {
        self.ledger.check_there()?;
        loop {
            let lock = Lock::take(&self.lock_path).await?;
            let mut turn = Turn::begin(&mut self.ledger, &self.ledger_path).await?;
            // Within the transaction: a writer that was dropped may have committed just now.
            if turn.stamp().await? == lock.settled()? {
                let expires_us = now_us().saturating_add(self.seen.as_micros() as i64);
                let new = turn.admit(&part.entries, expires_us).await?;
                if new.contains(&true) {
                    self.output = self.output.current()?;
                    append(self.output.clone(), lock, turn, part.keep(&new)).await?;
                }
                return Ok(());
            }
            let intent = turn.intent().await?;
            drop(turn);
            self.settle(lock, intent).await?;
        }
    }

    /// Brings to its end what the writer before left behind.
    async fn settle(&mut self, lock: Lock, intent: Intent) -> Result<()> {
        let (path, stamp) = (self.path.clone(), intent.stamp);
        let (lock, rest) = spawn_blocking(move || {
            let rest = settle::settle(&path, intent)?;
            if matches!(rest, Rest::Done) {
                lock.settle(stamp)?;
            }
            anyhow::Ok((lock, rest))
        })
        .await??;
        let Rest::Lines(lines) = rest else { return Ok(()) };
        let mut turn = Turn::begin(&mut self.ledger, &self.ledger_path).await?;
        if turn.stamp().await? == stamp {
            self.output = self.output.current()?;
            append(self.output.clone(), lock, turn, lines).await?;
        }
        Ok(())
    }
}

/// The end of a turn: the intent durable, then the lines in the file. The lock goes with the
/// append, so that it is held until that has ended, also when nobody waits for it any more.
async fn append(output: Output, lock: Lock, turn: Turn<'_>, lines: Vec<u8>) -> Result<()> {
    let length = output.length()?;
    let fresh = !output.at_line_start(length)?;
    let mut payload = lines;
    if fresh {
        payload.insert(0, b'\n');
    }
    // Another one for each intent, also where the ledger or the lock file was removed.
    let stamp = fastrand::i64(1..);
    let intent = Intent { stamp, inode: output.inode, length, fresh, payload: payload.clone() };
    turn.commit(intent).await?;
    spawn_blocking(move || {
        output.append(&payload)?;
        lock.settle(stamp)
    })
    .await?
}
