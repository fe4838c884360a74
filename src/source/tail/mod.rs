//! Follows files: an event is one line, without its newline, of a file or of every file of a
//! glob.
//!
//! What is followed is not a name but a *generation*: one history of content, from the first byte
//! on until the file is written anew. It is known by its inode, the hash of its first line, and
//! the hash of the 256 bytes before its checkpoint; each has a checkpoint slot of its own, and its
//! lines' ids are made of it and their offset. So a file that is renamed, or saved by an editor
//! under a new inode, goes on where it was, and one that is truncated or recreated is read from
//! its beginning, with new ids, even where it holds the same lines. A name's generations are read
//! one after another; files are kept open while they are followed, so that a renamed or deleted
//! one is read to its end.
//!
//! What must not be decided twice (which generations there were, where each began) is in
//! `sources.db` in the data directory before the first event of a generation is handed out.
//!
//! Two tails may follow one file into one stream: the slots decide who stores what, and that of
//! the census makes sure that neither begins a generation without knowing all the other began.
//!
//! Best effort, because a file does not tell:
//! - Lines written between a `copytruncate`'s copy and its truncation are lost to everybody. Of
//!   what was not read yet when a file is truncated, a copy in the same directory is read to its
//!   end; where `path` stands for the copy's name too, the copy is a file of its own, and its
//!   lines are events again.
//! - A file that is written anew between two looks (at most 250 ms apart, and at once where the
//!   system notifies), with the same first line, at least as long as what was read, and the same
//!   256 bytes before that place, looks as if it had grown.
//! - Of two tails of one file, one may see it truncated or saved by an editor, and the other only
//!   what came of that: where both then begin to read it before either has stored anything of
//!   it, its lines may be stored under two ids.
//! - A stream that comes back older has forgotten how far files were read; of those that were
//!   deleted or replaced while the tail was down, some cannot be told from their successors then.
//! - A deleted file is read to its end if it was open: it was seen before, and was one of the 256
//!   used last. Its last line then counts even without a newline.
//!
//! The parts, from the file up: `identity`, `cursor` (bytes into lines), `generation`,
//! `scan` and `watcher` (which files there are, and when to look), `look` and `matching`
//! (which file is which generation), `batch`, `resume` (going back to a checkpoint),
//! `engine` (whose turn it is), and `registry` (what is remembered).

mod batch;
mod cursor;
mod engine;
mod generation;
mod identity;
mod look;
mod matching;
mod registry;
mod resume;
mod scan;
mod watcher;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use tokio::sync::Mutex;

use self::engine::{Engine, Settings, Step};
use self::identity::Note;
use self::registry::{Changes, Registry};
use self::scan::Pattern;
use self::watcher::Wake;
use super::{Capabilities, Kind, Move, Outcome, Pull, Slot, Source, SourceSpec};
use crate::event::now_us;
use crate::spec::{Complaint, Default, Key, Site, Ty, Values};

/// `kind = "tail"`
pub static KIND: Kind = Kind {
    name: "tail",
    doc: "Follows files: one event a line, through renames, truncation and restarts.",
    keys: &[
        Key {
            name: "path",
            ty: Ty::Path,
            default: Default::Required,
            doc: "The file, or a glob of files, to follow.",
        },
        Key {
            name: "start",
            ty: Ty::Choice(&["beginning", "end"]),
            default: Default::Toml("\"beginning\""),
            doc: "Where to begin in files that are there at the first look, ever; later ones are \
                  read from their beginning.",
        },
        Key {
            name: "max_line",
            ty: Ty::Size,
            default: Default::Toml("\"1MiB\""),
            doc: "A longer line becomes a dead letter that names file, offset and length.",
        },
    ],
    capabilities: Capabilities { identity: true },
    check,
    finite: |_| true,
    instances: |_| 1,
    open: |spec, site, _| Ok(Box::new(Tail::open(spec, site)?)),
};

fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    if let Err(error) = Pattern::new(values.str("path")) {
        let message = format!(
            "is no glob: {} at byte {} (* ? ** and [...] are special; [*] stands for a plain *)",
            error.msg, error.pos
        );
        complaints.push(Complaint { key: "path", message });
    }
    if values.uint("max_line") == 0 {
        let message = "is too small for any line (at least \"1B\", usually \"1MiB\")".to_owned();
        complaints.push(Complaint { key: "max_line", message });
    }
    complaints
}

/// A tail: the [`Engine`] on threads that may block, and the [`Registry`] beside it.
struct Tail {
    origin: String,
    data_dir: PathBuf,
    registry: Option<Registry>,
    engine: Arc<Mutex<Engine>>,
    wake: Arc<Wake>,
    stored: Vec<Move>,
}

impl Tail {
    fn open(spec: &SourceSpec, site: &Site) -> Result<Self> {
        let path = spec.values.str("path");
        let settings = Settings {
            name: spec.name.clone(),
            origin: spec.origin.clone(),
            pattern: Pattern::new(path).with_context(|| format!("read path {path:?} as a glob"))?,
            from_end: spec.values.str("start") == "end",
            line_max: usize::try_from(spec.values.uint("max_line"))?,
            until_idle: site.until_idle,
        };
        let wake = Arc::new(Wake::default());
        Ok(Self {
            origin: spec.origin.clone(),
            data_dir: site.data_dir.clone(),
            registry: None,
            engine: Arc::new(Mutex::new(Engine::new(settings, wake.clone()))),
            wake,
            stored: Vec::new(),
        })
    }

    async fn registry(&mut self) -> Result<&mut Registry> {
        let registry = match self.registry.take() {
            Some(registry) => registry,
            None => Registry::open(&self.data_dir, &self.origin).await?,
        };
        Ok(self.registry.insert(registry))
    }

    /// Lets the engine work where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T> {
        let mut engine = self.engine.clone().lock_owned().await;
        tokio::task::spawn_blocking(move || work(&mut engine)).await.context("follow files")
    }

    async fn record(&mut self, changes: Changes) -> Result<()> {
        let births = self.registry().await?.record(&changes, now_us() / 1000).await?;
        self.blocking(move |engine| engine.recorded(&births)).await
    }
}

#[async_trait]
impl Source for Tail {
    async fn seek(&mut self, stored: &[Slot]) -> Result<()> {
        self.stored.clear();
        let census = stored.iter().find(|(slot, _)| slot == identity::CENSUS);
        let slots = stored.iter().filter(|(slot, _)| slot != identity::CENSUS);
        let slots = slots.map(|slot| Ok((slot.1.clone(), Note::read(slot)?)));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        let registry = self.registry().await?;
        let known = registry.load().await?;
        let births = slots.iter().map(|(_, note)| note.birth.clone());
        let born: Vec<_> =
            births.filter(|birth| !known.entries.contains_key(&birth.uid())).collect();
        if !born.is_empty() {
            registry.record(&Changes { born, ..Changes::default() }, now_us() / 1000).await?;
        }
        let census = census.map(|(_, position)| position.clone());
        self.blocking(move |engine| engine.seek(&known, census, slots, now_us() / 1000)).await
    }

    async fn next(&mut self) -> Result<Pull> {
        loop {
            let stored = std::mem::take(&mut self.stored);
            let step = self.blocking(move |engine| {
                engine.stored(&stored);
                engine.step()
            });
            match step.await?? {
                Step::Batch(batch) => return Ok(Pull::Batch(batch)),
                Step::Record(changes) => self.record(changes).await?,
                Step::Again => {}
                Step::Idle => return Ok(Pull::Idle),
                Step::Spent => return Ok(Pull::Spent),
            }
        }
    }

    async fn wait(&mut self) {
        self.wake.wait().await;
    }

    fn answered(&mut self, moves: &[Move], outcome: Outcome) {
        if outcome == Outcome::Durable {
            self.stored.extend_from_slice(moves);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    #[test]
    fn what_cannot_work_is_told_before_it_starts() {
        let complaints = |path: &str, max_line| {
            let mut values = Values::default();
            values.set("path", Value::Str(path.to_owned()));
            values.set("max_line", Value::Int(max_line));
            check(&values)
        };
        assert_eq!(complaints("/var/log/**/*.log", 1), []);
        let found = complaints("logs/a**.log", 0);
        assert_eq!(found.iter().map(|found| found.key).collect::<Vec<_>>(), ["path", "max_line"]);
        assert_eq!(
            found[0].message,
            "is no glob: recursive wildcards must form a single path component at byte 5 \
             (* ? ** and [...] are special; [*] stands for a plain *)"
        );
    }
}
