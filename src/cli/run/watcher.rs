//! Notices when the topology file is another one and has come to rest: saved in place, saved by a
//! rename, or reached over a link that was turned (as Kubernetes does with a ConfigMap).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// How often the file is looked at, where nothing tells of changes (a network's file system).
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long it must not change to be at rest.
const REST: Duration = Duration::from_millis(100);
/// How long somebody who writes it and does not close it is waited for.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// Watches one file.
pub struct Watcher {
    file: PathBuf,
    /// What it was when it was last told of.
    seen: Option<Stamp>,
    news: Arc<News>,
    /// Tells of changes as long as it lives.
    _notify: Option<RecommendedWatcher>,
}

/// What the file system told.
#[derive(Debug, Default)]
struct News {
    any: Notify,
    /// Since when somebody is at writing it.
    written: Mutex<Option<Instant>>,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let path = fs::canonicalize(file).ok()?;
        let data = fs::metadata(&path).ok()?;
        Some(Self {
            path,
            inode: data.ino(),
            length: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

impl Watcher {
    /// Watches `file`, from what it is now on.
    pub fn new(file: &Path) -> Self {
        let news = Arc::new(News::default());
        let notify = subscribe(file, &news)
            .inspect_err(|error| {
                tracing::debug!("no news of {} ({error}): looking at it", file.display());
            })
            .ok();
        Self { file: file.to_owned(), seen: Stamp::of(file), news, _notify: notify }
    }

    /// Returns when the file is another one than it was when this last returned, and at rest. It
    /// may be gone then, for longer than a save takes. Safe to drop while it waits.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                () = self.news.any.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if Stamp::of(&self.file) == self.seen {
                continue;
            }
            let at_rest = self.at_rest().await;
            if at_rest != self.seen {
                self.seen = at_rest;
                return;
            }
        }
    }

    async fn at_rest(&self) -> Option<Stamp> {
        let until = Instant::now() + CLOSE_WAIT;
        loop {
            let before = Stamp::of(&self.file);
            tokio::time::sleep(REST).await;
            let after = Stamp::of(&self.file);
            let waits = Instant::now() < until && (after.is_none() || self.is_written());
            if before == after && !waits {
                return after;
            }
        }
    }

    fn is_written(&self) -> bool {
        let written = self.news.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.is_some_and(|since| since.elapsed() < CLOSE_WAIT)
    }
}

/// Has `news` told of what happens in the file's directory, and in that of what it links to.
fn subscribe(file: &Path, news: &Arc<News>) -> notify::Result<RecommendedWatcher> {
    let (name, told) = (file.file_name().map(ToOwned::to_owned), news.clone());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let Ok(event) = event else { return told.any.notify_one() };
        if event.paths.iter().any(|path| path.file_name() == name.as_deref()) {
            let mut written = told.written.lock().unwrap_or_else(PoisonError::into_inner);
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(CreateKind::File) => {
                    *written = Some(Instant::now());
                }
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(_)) => *written = None,
                _ => {}
            }
        }
        told.any.notify_one();
    })?;
    let directory = |file: &Path| match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    watcher.watch(&directory(file), RecursiveMode::NonRecursive)?;
    if let Ok(target) = fs::canonicalize(file)
        && directory(&target) != directory(file)
    {
        watcher.watch(&directory(&target), RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
