//! Wakes a tail when its files change: notifications of the directories they are in, beside
//! which a poll goes on, for the file systems that notify of nothing.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// Without any notification the files are looked at this often.
pub const POLL: Duration = Duration::from_millis(250);
/// Directories watched at most; in others the poll has to do.
const DIRECTORIES_MAX: usize = 512;

/// The bell that the watcher rings.
#[derive(Debug, Default)]
pub struct Wake {
    bell: tokio::sync::Notify,
    content: AtomicBool,
    names: AtomicBool,
}

impl Wake {
    /// Returns at the next notification, or after [`POLL`]. Safe to drop.
    pub async fn wait(&self) {
        // Running into the time is as good as being rung.
        let _ = tokio::time::timeout(POLL, self.bell.notified()).await;
    }

    /// Whether a file's content changed since this was last asked.
    pub fn take_content(&self) -> bool {
        self.content.swap(false, Ordering::Relaxed)
    }

    /// Whether names came, went or changed since this was last asked.
    pub fn take_names(&self) -> bool {
        self.names.swap(false, Ordering::Relaxed)
    }

    fn ring(&self, event: &Event, name: &glob::Pattern) {
        let content = match event.kind {
            // Reading a file is such an event too: it must not wake its reader.
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => true,
            _ => false,
        };
        let matches = |path: &PathBuf| path.file_name().is_some_and(|last| fits(name, last));
        if content && !event.paths.iter().any(matches) {
            return;
        }
        if content { &self.content } else { &self.names }.store(true, Ordering::Relaxed);
        self.bell.notify_one();
    }
}

fn fits(pattern: &glob::Pattern, name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| pattern.matches(name))
}

/// Watches directories. What it cannot watch it leaves to the poll, and says so once.
pub struct Directories {
    watcher: Option<RecommendedWatcher>,
    watched: HashMap<PathBuf, u64>,
    told: bool,
}

impl Directories {
    /// Rings `wake` for files whose name, without directories, is like `name`.
    pub fn new(wake: Arc<Wake>, name: glob::Pattern) -> Self {
        let watcher =
            notify::recommended_watcher(move |event: notify::Result<Event>| match event {
                Ok(event) => wake.ring(&event, &name),
                // Notifications were lost: anything may have changed.
                Err(_) => {
                    wake.names.store(true, Ordering::Relaxed);
                    wake.bell.notify_one();
                }
            });
        let mut directories = Self { watcher: None, watched: HashMap::new(), told: false };
        match watcher {
            Ok(watcher) => directories.watcher = Some(watcher),
            Err(error) => directories.tell(&error),
        }
        directories
    }

    /// Watches these directories too, where they exist, and again where one was made anew.
    pub fn watch<'a>(&mut self, directories: impl IntoIterator<Item = &'a Path>) {
        for directory in directories {
            let Ok(inode) = std::fs::metadata(directory).map(|meta| meta.ino()) else { continue };
            let before = self.watched.get(directory);
            let full = before.is_none() && self.watched.len() >= DIRECTORIES_MAX;
            let Some(watcher) = &mut self.watcher else { return };
            if full || before == Some(&inode) {
                continue;
            }
            if before.is_some() {
                // The watch of a directory that is gone went with it.
                let _ = watcher.unwatch(directory);
            }
            let watched = watcher.watch(directory, RecursiveMode::NonRecursive);
            self.watched.insert(directory.to_owned(), inode);
            if let Err(error) = watched {
                self.tell(&error);
            }
        }
    }

    fn tell(&mut self, error: &notify::Error) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!("no notifications of file changes, files are polled instead: {error}");
        }
    }
}
