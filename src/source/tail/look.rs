//! Looking at all names: which file is which generation, and which is a new one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::engine::{Engine, OPEN_MAX};
use super::generation::Place;
use super::identity::{self, Birth, FileKey};
use super::matching::Stranger;
use super::registry::Changes;
use super::scan::{self, Found, directory, neighbours};
use crate::event::now_us;
use crate::source::Move;

/// What was last seen is written down this often.
const MARK_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// A generation that was found nowhere for this long is forgotten.
const FORGET_AFTER_MS: i64 = 90 * 24 * 60 * 60 * 1000;

impl Engine {
    /// Looks at all names, and answers what is to be written down of it.
    pub(super) fn scan(&mut self) -> Changes {
        let files = self.settings.pattern.files();
        self.watch(&files);
        self.tell_empty(files.is_empty());
        self.unborn.clear();
        self.pending = false;
        let listed: HashSet<FileKey> = files.iter().map(|file| file.key).collect();
        let mut strangers = Vec::new();
        for found in files {
            match self.by_file.get(&found.key).copied() {
                Some(index) if self.is_still_in(index, &found) => self.met(index, &found),
                _ => strangers.extend(self.meet(found, strangers.len())),
            }
        }
        self.follow(&listed);
        self.find_missing(&mut strangers, &listed);
        let mut changes = Changes { looked: !self.looked, ..Changes::default() };
        for stranger in strangers {
            changes.born.extend(self.admit(stranger));
        }
        self.looked = true;
        changes.gone = std::mem::take(&mut self.gone);
        changes.forget = std::mem::take(&mut self.mistaken);
        self.mark(&mut changes);
        changes
    }

    /// The generations of the last scan are written down, as `births`: they can be read.
    pub fn recorded(&mut self, births: &[Birth]) {
        for (mut stranger, birth) in std::mem::take(&mut self.unborn).into_iter().zip(births) {
            let index = self.remember(birth, now_us() / 1000);
            let taken = match self.generations[index].is_missing() {
                true => self.take(index, &mut stranger),
                false => Ok(false),
            };
            match taken {
                Ok(true) => tracing::debug!(
                    source = %self.settings.name,
                    file = birth.home,
                    offset = birth.start,
                    "following a new file"
                ),
                // It changed meanwhile: the next look finds out what it is now.
                Ok(false) => self.rescan = true,
                Err(error) => self.tell_unreadable(&stranger.found.path, &error),
            }
        }
    }

    /// Whether the generation is still in its file. While it has the file open, nothing else can
    /// be; of one that was closed the inode may be another file's by now: then the content tells.
    fn is_still_in(&mut self, index: usize, found: &Found) -> bool {
        let generation = &mut self.generations[index];
        let changed = generation.path != found.path || generation.differs(found);
        if !changed || !matches!(generation.place, Place::Closed(..)) {
            return true;
        }
        let file = identity::open_as(&found.path, found.key);
        let same =
            match file.and_then(|file| file.map(|it| generation.continues_in(&it)).transpose()) {
                Ok(same) => same.unwrap_or(false),
                Err(_) => true, // it cannot be read now: its turn to be read will tell
            };
        if !same {
            self.lose(index);
        }
        same
    }

    fn watch(&mut self, files: &[Found]) {
        let root = self.settings.pattern.root();
        let directories: HashSet<&Path> = files.iter().map(|file| directory(&file.path)).collect();
        self.directories.watch(std::iter::once(root.as_path()).chain(directories));
    }

    fn tell_empty(&mut self, empty: bool) {
        if !empty || std::mem::replace(&mut self.told_empty, true) {
            return;
        }
        let (source, path) = (&self.settings.name, self.settings.pattern.text());
        match self.settings.until_idle {
            true => tracing::warn!(%source, "{path} matches no file: there is nothing to read"),
            false => tracing::info!(%source, "{path} matches no file yet: waiting for one"),
        }
    }

    fn meet(&mut self, found: Found, met: usize) -> Option<Stranger> {
        match Stranger::meet(&found) {
            Ok(Some(mut stranger)) => {
                if met >= OPEN_MAX {
                    stranger.file = None;
                }
                Some(stranger)
            }
            Ok(None) => {
                self.pending = true;
                None
            }
            Err(error) => {
                self.tell_unreadable(&found.path, &error);
                None
            }
        }
    }

    /// Follows generations whose file is no longer listed: it has another name, or none.
    fn follow(&mut self, listed: &HashSet<FileKey>) {
        let absent: Vec<(FileKey, usize)> = self
            .by_file
            .iter()
            .filter(|(key, _)| !listed.contains(key))
            .map(|(k, i)| (*k, *i))
            .collect();
        let names = self.neighbours_of(absent.iter().map(|(_, index)| *index));
        for (key, index) in absent {
            let name = names.get(&key.inode);
            let found = name.and_then(|name| scan::look_up(name)).filter(|found| found.key == key);
            match found {
                Some(found) => {
                    let generation = &mut self.generations[index];
                    generation.path.clone_from(&found.path);
                    if generation.differs(&found) {
                        self.enqueue(index);
                    }
                }
                None if matches!(self.generations[index].place, Place::Closed(..)) => {
                    self.detach(index);
                    self.search = true;
                }
                None => {}
            }
        }
    }

    /// What lies beside these generations' files, by inode.
    pub(super) fn neighbours_of(&self, of: impl Iterator<Item = usize>) -> HashMap<u64, PathBuf> {
        let mut directories = HashSet::new();
        for index in of {
            let generation = &self.generations[index];
            directories.insert(directory(&generation.path));
            directories.insert(directory(Path::new(&generation.birth.home)));
        }
        neighbours(directories)
    }

    /// Now and then: which generations were seen, and which were not for so long that they are
    /// forgotten.
    fn mark(&mut self, changes: &mut Changes) {
        if self.marked.is_some_and(|marked| marked.elapsed() < MARK_EVERY) {
            return;
        }
        self.marked = Some(Instant::now());
        let now_ms = now_us() / 1000;
        for generation in &mut self.generations {
            if generation.key().is_some() {
                generation.seen_ms = now_ms;
                changes.seen.push(generation.uid);
            } else if generation.seen_ms < now_ms - FORGET_AFTER_MS {
                generation.seen_ms = now_ms;
                generation.place = Place::Gone;
                changes.forget.push(generation.uid);
                if let Some(from) = generation.last.take() {
                    let slot = generation.slot.clone();
                    self.forgotten.push(Move { slot, from: Some(from), to: None });
                }
            }
        }
    }
}
