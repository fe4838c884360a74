//! Going to what the stream holds: the stream's slots win for how far each generation was read;
//! the registry tells of generations the stream does not know, and where they began.

use std::collections::HashMap;
use std::path::PathBuf;

use super::engine::{Engine, Settings};
use super::generation::{Generation, Place};
use super::identity::{Birth, Note};
use super::registry::Known;
use crate::source::Position;

/// A slot of the stream's, read.
pub type Stored = (Position, Note);

impl Engine {
    /// Goes to `stored`. Open files stay open: what was renamed or deleted meanwhile can still be
    /// read again.
    pub fn seek(&mut self, known: &Known, stored: Vec<Stored>, now_ms: i64) {
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
        for (_, note) in stored.values() {
            self.remember(&note.birth, now_ms);
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
