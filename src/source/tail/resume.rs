//! Going to what the stream holds: the stream's slots win for how far each generation was read;
//! the registry tells of generations the stream does not know, and where they began.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use super::cursor::Cursor;
use super::engine::{Engine, Settings};
use super::generation::{Generation, Place};
use super::identity::{self, Birth, FileKey, Note};
use super::registry::Known;
use super::scan::{directory, look_up, neighbours};
use crate::source::Position;

/// A slot of the stream's, read.
pub type Stored = (Position, Note);

/// Which file the stream says a generation was in.
struct StoredIn {
    index: usize,
    inode: u64,
    path: PathBuf,
    /// We did not know of it: another reader began it.
    foreign: bool,
}

impl Engine {
    /// Goes to `stored`. Open files stay open: what was renamed or deleted meanwhile can still be
    /// read again.
    pub fn seek(
        &mut self,
        known: &Known,
        census: Option<Position>,
        stored: Vec<Stored>,
        now_ms: i64,
    ) {
        self.census = census;
        self.looked = known.looked || !known.entries.is_empty() || !stored.is_empty();
        let mut stored: HashMap<u64, Stored> =
            stored.into_iter().map(|slot| (slot.1.birth.uid(), slot)).collect();
        for entry in known.entries.values() {
            let index = self.remember(&entry.birth, entry.seen_ms);
            let generation = &mut self.generations[index];
            if entry.gone && generation.is_missing() {
                generation.place = Place::Gone;
            }
        }
        let mut stored_in = Vec::new();
        for (uid, (_, note)) in &stored {
            let index = self.remember(&note.birth, now_ms);
            let (path, foreign) = (PathBuf::from(&note.path), !known.entries.contains_key(uid));
            stored_in.push(StoredIn { index, inode: note.inode, path, foreign });
        }
        self.ready.clear();
        self.lanes.clear();
        self.unborn.clear();
        self.orphans.clear();
        self.forgotten.clear();
        for index in 0..self.generations.len() {
            let slot = stored.remove(&self.generations[index].uid);
            self.generations[index].rewind(slot, self.settings.line_max);
            self.settle(index);
        }
        for stored in stored_in {
            self.hand_over(&stored);
            self.follow_stored(&stored);
        }
        self.name_holders();
        self.rescan = true;
        self.search = true;
        self.progress = true;
    }

    /// The generation of this birth, known from now on.
    pub(super) fn remember(&mut self, birth: &Birth, seen_ms: i64) -> usize {
        let next = self.ordinals.entry((birth.inode, birth.first)).or_default();
        *next = (*next).max(birth.ordinal + 1);
        let uid = birth.uid();
        if let Some(&index) = self.by_uid.get(&uid) {
            return index;
        }
        let Settings { origin, line_max, .. } = &self.settings;
        self.generations.push(Generation::new(birth.clone(), origin, *line_max, seen_ms));
        self.by_uid.insert(uid, self.generations.len() - 1);
        self.generations.len() - 1
    }

    /// Keeps the open file of a generation that was just rewound, if it still holds what was read
    /// before. A closed one is found again like any other.
    fn settle(&mut self, index: usize) {
        let generation = &mut self.generations[index];
        let kept = match std::mem::replace(&mut generation.place, Place::Missing) {
            Place::Open(handle) => {
                let kept = generation.continues_in(&handle.file).unwrap_or(false);
                generation.place = Place::Open(handle);
                kept
            }
            place @ Place::Gone => {
                generation.place = place;
                return;
            }
            place => {
                generation.place = place;
                false
            }
        };
        if kept { self.enqueue(index) } else { self.detach(index) }
    }

    /// Gives a generation the file that we took for that of one which began just now, and of
    /// which nothing is stored: another reader knew better.
    fn hand_over(&mut self, stored: &StoredIn) {
        let open: Vec<(FileKey, usize)> = self.by_file.iter().map(|(key, i)| (*key, *i)).collect();
        for (key, mistaken) in open {
            let pair = self.generations.get_disjoint_mut([stored.index, mistaken]);
            let Ok([theirs, ours]) = pair else { continue };
            // Only a generation of which nothing is stored can be a mistake; and the other must
            // be news to us, or be said to have gone on in this file.
            let named = key.inode == stored.inode;
            let news = match theirs.place {
                Place::Missing => stored.foreign,
                Place::Open(_) => named,
                Place::Closed(..) | Place::Gone => false,
            };
            if !news || ours.last.is_some() || ours.birth.first != theirs.birth.first {
                continue;
            }
            let Place::Open(handle) = &ours.place else { continue };
            let same_name = theirs.birth.home == ours.birth.home && theirs.cursor.offset() > 0;
            let proven =
                stored.foreign && (named || same_name) || is_proven(&theirs.cursor, &handle.file);
            if !proven || !theirs.continues_in(&handle.file).unwrap_or(false) {
                continue;
            }
            let Ok(file) = handle.file.try_clone() else { continue };
            theirs.path.clone_from(&ours.path);
            self.mistaken.push(ours.uid);
            self.detach(mistaken);
            self.generations[mistaken].place = Place::Gone;
            self.place(stored.index, file, key);
            self.enqueue(stored.index);
            return;
        }
    }

    /// Where another reader went on in a newer file (an editor saved it), goes on there too.
    fn follow_stored(&mut self, stored: &StoredIn) {
        let generation = &self.generations[stored.index];
        if generation.key().is_none_or(|key| key.inode == stored.inode) {
            return;
        }
        let names = neighbours([directory(&stored.path)]);
        let Some(found) = names.get(&stored.inode).and_then(|name| look_up(name)) else { return };
        let Ok(Some(file)) = identity::open_as(&found.path, found.key) else { return };
        let generation = &mut self.generations[stored.index];
        if !self.by_file.contains_key(&found.key)
            && is_proven(&generation.cursor, &file)
            && generation.continues_in(&file).unwrap_or(false)
        {
            generation.path = found.path;
            self.place(stored.index, file, found.key);
            self.enqueue(stored.index);
        }
    }

    /// The youngest generation of a name has it, and the one that was last seen there even more.
    fn name_holders(&mut self) {
        let mut order: Vec<usize> = (0..self.generations.len()).collect();
        order.sort_by_key(|&index| self.generations[index].birth.since_ms);
        for &index in &order {
            let home = PathBuf::from(&self.generations[index].birth.home);
            self.lanes.entry(home).or_default().holder = Some(index);
        }
        for &index in &order {
            if matches!(self.generations[index].place, Place::Open(_)) {
                let path = self.generations[index].path.clone();
                self.lanes.entry(path).or_default().holder = Some(index);
            }
        }
    }
}

/// As in a search by content: the first line alone proves nothing, it may be a title.
fn is_proven(cursor: &Cursor, file: &File) -> bool {
    let head = identity::read_head(file).ok().flatten();
    head.is_some_and(|head| cursor.offset() >= head.len + 2)
}
