//! Which generation's content a file holds.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::engine::{Engine, OPEN_MAX};
use super::generation::Place;
use super::identity::{self, Birth, FileKey, Head};
use super::scan::{self, Found};
use crate::event::{hash, now_us};

/// A file that belongs to no generation yet.
#[derive(Debug)]
pub(super) struct Stranger {
    /// Where it was found.
    pub found: Found,
    /// Its first line.
    pub head: Head,
    /// Kept open, so that it cannot get lost, unless there are too many.
    pub file: Option<File>,
}

impl Stranger {
    /// Opens the file, if it is still there and not empty.
    pub fn meet(found: &Found) -> io::Result<Option<Self>> {
        let Some(file) = identity::open_as(&found.path, found.key)? else { return Ok(None) };
        let head = identity::read_head(&file)?;
        Ok(head.map(|head| Self { found: found.clone(), head, file: Some(file) }))
    }

    /// Its file, opened again where it had to be closed.
    pub fn take_file(&mut self) -> io::Result<Option<File>> {
        match self.file.take() {
            Some(file) => Ok(Some(file)),
            None => identity::open_as(&self.found.path, self.found.key),
        }
    }
}

impl Engine {
    /// Finds the files of generations that have none: first by inode, then by content; under the
    /// names that `path` stands for and, when a search is due, beside their old places.
    pub(super) fn find_missing(
        &mut self,
        strangers: &mut Vec<Stranger>,
        listed: &HashSet<FileKey>,
    ) {
        let search = std::mem::take(&mut self.search);
        let mut missing: Vec<usize> = Vec::new();
        if search || !strangers.is_empty() {
            let all = 0..self.generations.len();
            missing.extend(all.filter(|&index| self.generations[index].is_missing()));
        }
        if missing.is_empty() {
            return;
        }
        // What `path` does not stand for any more was not asked for any more either.
        let pattern = &self.settings.pattern;
        let wanted = |index: &&usize| pattern.matches(&self.generations[**index].birth.home);
        let wanted: Vec<usize> = missing.iter().filter(wanted).copied().collect();
        let names = match search {
            true => self.neighbours_of(wanted.iter().copied()),
            false => HashMap::new(),
        };
        strangers.retain_mut(|stranger| !self.take_by_inode(&missing, stranger));
        let inodes: HashSet<u64> = wanted.iter().map(|&i| self.generations[i].inode).collect();
        for (_, name) in names.iter().filter(|(inode, _)| inodes.contains(inode)) {
            if let Some(mut other) = self.unlisted(name, listed)
                && !self.is_saved_over(&wanted, &other, strangers)
            {
                self.take_by_inode(&wanted, &mut other);
            }
        }
        strangers.retain_mut(|stranger| !self.take_by_content(&missing, stranger));
        let waits = |index: &usize| {
            let generation = &self.generations[*index];
            generation.is_missing() && generation.cursor.offset() > 0
        };
        if wanted.iter().any(waits) {
            for name in names.values() {
                if let Some(mut other) = self.unlisted(name, listed) {
                    self.take_by_content(&wanted, &mut other);
                }
            }
        }
        for index in missing {
            if self.generations[index].is_missing() && self.generations[index].lost.is_some() {
                self.bury(index);
            }
        }
    }

    /// A file beside ours that `path` does not stand for and that belongs to no generation.
    fn unlisted(&self, name: &Path, listed: &HashSet<FileKey>) -> Option<Stranger> {
        let found = scan::look_up(name)?;
        let ours = listed.contains(&found.key) || self.by_file.contains_key(&found.key);
        // A file that cannot be read is none of ours, as far as anyone can tell.
        if ours { None } else { Stranger::meet(&found).ok().flatten() }
    }

    /// The youngest generation that was last in this inode, with the same first line. Older ones
    /// of this inode ended when it began. (Two devices may have an inode of one number: the name
    /// tells.)
    fn take_by_inode(&mut self, missing: &[usize], stranger: &mut Stranger) -> bool {
        let (key, first, path) = (stranger.found.key, stranger.head.hash, &stranger.found.path);
        let fits = |index: &usize| {
            let generation = &self.generations[*index];
            generation.is_missing()
                && generation.lost != Some(key)
                && generation.inode == key.inode
                && generation.birth.first == first
        };
        let rank = |index: &usize| {
            let generation = &self.generations[*index];
            let birth = &generation.birth;
            (&generation.path == path, birth.since_ms, birth.ordinal)
        };
        match missing.iter().copied().filter(fits).max_by_key(rank) {
            Some(index) => self.take(index, stranger).unwrap_or(false),
            None => false,
        }
    }

    /// The missing generation whose content this file continues: best one of its name, else the
    /// one that was read furthest. Under another name the first line alone proves nothing: it may
    /// be a title that many files have.
    fn take_by_content(&mut self, missing: &[usize], stranger: &mut Stranger) -> bool {
        let (head, found) = (stranger.head, stranger.found.clone());
        let mut fitting: Vec<(bool, u64, usize)> = Vec::new();
        for &index in missing {
            let generation = &self.generations[index];
            let offset = generation.cursor.offset();
            let same_name = Path::new(&generation.birth.home) == found.path;
            let proof = if same_name { 1 } else { head.len + 2 };
            if generation.is_missing()
                && generation.lost != Some(found.key)
                && generation.birth.first == head.hash
                && (proof..=found.size).contains(&offset)
            {
                fitting.push((same_name, offset, index));
            }
        }
        fitting.sort_unstable();
        fitting.into_iter().rev().any(|(.., index)| self.take(index, stranger).unwrap_or(false))
    }

    /// Whether `other` is what an editor kept of a generation when it saved a newer version of
    /// the file under its name.
    fn is_saved_over(
        &mut self,
        missing: &[usize],
        other: &Stranger,
        strangers: &[Stranger],
    ) -> bool {
        missing.iter().any(|&index| {
            let generation = &mut self.generations[index];
            let home = Path::new(&generation.birth.home);
            if !generation.is_missing() || !is_backup(&other.found.path, home) {
                return false;
            }
            let newer = strangers.iter().find(|stranger| stranger.found.path == home);
            let file = newer.and_then(|newer| newer.file.as_ref());
            file.is_some_and(|file| generation.continues_in(file).unwrap_or(false))
        })
    }

    /// Gives the file to the generation, if its content goes on there.
    pub(super) fn take(&mut self, index: usize, stranger: &mut Stranger) -> io::Result<bool> {
        let Some(file) = stranger.take_file()? else { return Ok(false) };
        if !self.generations[index].continues_in(&file)? {
            stranger.file = Some(file);
            return Ok(false);
        }
        self.place(index, file, stranger.found.key);
        self.met(index, &stranger.found);
        self.enqueue(index);
        self.progress = true;
        Ok(true)
    }

    /// Finds out what a file under one of our names is: what an editor made of the generation
    /// that had the name, or a new generation, whose birth it answers.
    pub(super) fn admit(&mut self, mut stranger: Stranger) -> Option<Birth> {
        if !stranger.head.complete && !self.settings.until_idle {
            self.pending = true;
            return None;
        }
        let birth = match self.is_save_of_holder(&mut stranger) {
            Ok(true) => return None,
            Ok(false) => self.birth_of(&mut stranger),
            Err(error) => Err(error),
        };
        match birth {
            Ok(Some(birth)) => {
                self.unborn.push(stranger);
                Some(birth)
            }
            Ok(None) => None,
            Err(error) => {
                self.tell_unreadable(&stranger.found.path, &error);
                None
            }
        }
    }

    /// Whether the file is what an editor made of the generation that had its name before: that
    /// one has no name any more, or an editor's backup name, and its content goes on here. While
    /// it is not read to its end, that is left open.
    fn is_save_of_holder(&mut self, stranger: &mut Stranger) -> io::Result<bool> {
        let Some(index) = self.holder(&stranger.found.path) else { return Ok(false) };
        let generation = &self.generations[index];
        let Place::Open(handle) = &generation.place else { return Ok(false) };
        let saved = handle.file.metadata()?.nlink() == 0
            || is_backup(&generation.path, &stranger.found.path);
        if !saved {
            return Ok(false);
        }
        if !generation.at_end()? {
            self.enqueue(index);
            self.rescan_at_end = true;
            self.pending = true;
            return Ok(true);
        }
        // Of nothing anything would be the continuation.
        if generation.cursor.offset() == 0 { Ok(false) } else { self.take(index, stranger) }
    }

    /// What is settled about the new generation in this file.
    fn birth_of(&mut self, stranger: &mut Stranger) -> io::Result<Option<Birth>> {
        let Some(file) = stranger.take_file()? else { return Ok(None) };
        let start = match self.settings.from_end && !self.looked {
            true => identity::end_of_last_line(&file, self.settings.line_max as u64)?,
            false => 0,
        };
        let Some(before) = identity::read_tail(&file, start)? else { return Ok(None) };
        let (inode, first) = (stranger.found.key.inode, stranger.head.hash);
        if self.unborn.len() < OPEN_MAX {
            stranger.file = Some(file);
        }
        Ok(Some(Birth {
            home: stranger.found.path.to_string_lossy().into_owned(),
            inode,
            first,
            ordinal: self.ordinals.get(&(inode, first)).copied().unwrap_or_default(),
            start,
            start_tail: hash(&before),
            since_ms: now_us() / 1000,
        }))
    }
}

/// Whether `path` is the name an editor gives to the file it replaces under the name `home`.
fn is_backup(path: &Path, home: &Path) -> bool {
    let mut backup = home.as_os_str().to_owned();
    backup.push("~");
    path.as_os_str() == backup
}
