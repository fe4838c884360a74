//! A generation: one history of content, from a file's first byte on until it is written anew. It
//! keeps its id, its checkpoint and its place through renames.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use super::cursor::Cursor;
use super::identity::{self, Birth, FileKey, Note};
use super::scan::Found;
use crate::event::{Origin, Sequence};
use crate::source::{Move, Position};

/// An open file.
#[derive(Debug)]
pub struct Handle {
    /// The file; while it is open its inode is not used again.
    pub file: File,
    /// Which file it is.
    pub key: FileKey,
    /// Its modification time when it was last read.
    pub mtime: (i64, i64),
    /// When it was last found without a name and without anything new.
    pub unlinked: Option<Instant>,
    /// Ascends with each use: of two, the one used longer ago is closed first.
    pub used: u64,
}

/// Where a generation's content is.
#[derive(Debug)]
pub enum Place {
    /// Not found yet; it may be found.
    Missing,
    /// Nowhere any more. The generation is remembered for its number only.
    Gone,
    /// In this file, which was closed to make room, and had this size and modification time.
    Closed(FileKey, u64, (i64, i64)),
    /// In this file.
    Open(Handle),
}

/// See the [module](self).
#[derive(Debug)]
pub struct Generation {
    /// What is settled about it.
    pub birth: Birth,
    /// Its id.
    pub uid: u64,
    /// The name of its checkpoint's slot.
    pub slot: String,
    /// What its events' ids start with.
    pub origin: Origin,
    /// Its file's name, as far as known.
    pub path: PathBuf,
    /// Its file's inode, when it was last looked at.
    pub inode: u64,
    /// What the stream holds once everything handed out is stored.
    pub last: Option<Position>,
    /// Up to here the stream has said that it is durable.
    pub durable: u64,
    /// How far it was read.
    pub cursor: Cursor,
    /// Where its content is.
    pub place: Place,
    /// It waits in its lane to be read.
    pub queued: bool,
    /// Its content is no longer in this file; a copy may hold it.
    pub lost: Option<FileKey>,
    /// When it was last seen, in milliseconds since 1970.
    pub seen_ms: i64,
    /// The unfinished last line handed out already: where it starts and ends.
    pub told: Option<(u64, u64)>,
}

impl Generation {
    /// A generation of which nothing but its birth is known.
    pub fn new(birth: Birth, source_origin: &str, line_max: usize, seen_ms: i64) -> Self {
        let uid = birth.uid();
        let parts: [&[u8]; 2] = [source_origin.as_bytes(), &uid.to_le_bytes()];
        Self {
            uid,
            slot: identity::slot_name(uid),
            origin: Origin::new(Sequence::Bytes, &parts),
            path: PathBuf::from(&birth.home),
            inode: birth.inode,
            last: None,
            durable: birth.start,
            cursor: Cursor::new(birth.start, birth.start_tail, line_max),
            place: Place::Missing,
            queued: false,
            lost: None,
            seen_ms,
            told: None,
            birth,
        }
    }

    /// Goes back to what the stream holds, or to its start where the stream holds nothing.
    pub fn rewind(&mut self, stored: Option<(Position, Note)>, line_max: usize) {
        let (offset, tail) = match &stored {
            Some((position, note)) => (position.order, note.tail),
            None => (self.birth.start, self.birth.start_tail),
        };
        self.cursor = Cursor::new(offset, tail, line_max);
        self.durable = offset;
        self.queued = false;
        self.told = None;
        self.last = stored.map(|(position, note)| {
            if !matches!(self.place, Place::Open(_)) {
                self.path = PathBuf::from(note.path);
                self.inode = note.inode;
            }
            position
        });
    }

    /// The file it is in.
    pub fn key(&self) -> Option<FileKey> {
        match &self.place {
            Place::Missing | Place::Gone => None,
            Place::Closed(key, ..) => Some(*key),
            Place::Open(handle) => Some(handle.key),
        }
    }

    /// Whether its content is in no file that is known, and may yet be found.
    pub fn is_missing(&self) -> bool {
        matches!(self.place, Place::Missing)
    }

    /// Whether `found` was changed since it was closed.
    pub fn differs(&self, found: &Found) -> bool {
        matches!(self.place, Place::Closed(_, size, mtime) if (size, mtime) != (found.size, found.mtime))
    }

    /// Whether everything in its open file was taken; an unfinished last line is not counted.
    pub fn at_end(&self) -> io::Result<bool> {
        let Place::Open(handle) = &self.place else { return Ok(true) };
        Ok(!self.cursor.has_lines() && handle.file.metadata()?.len() == self.cursor.read_to())
    }

    /// Whether `file` continues this generation: the same first line, and the same bytes before
    /// the place that was read to. If so, the cursor stands there.
    pub fn continues_in(&mut self, file: &File) -> io::Result<bool> {
        let head = identity::read_head(file)?;
        Ok(head.is_some_and(|head| head.hash == self.birth.first) && self.cursor.fits(file)?)
    }

    /// The step of its checkpoint from where it was to where its cursor stands.
    pub fn advance(&mut self) -> Result<Move> {
        let note = Note {
            birth: self.birth.clone(),
            path: self.path.to_string_lossy().into_owned(),
            inode: self.inode,
            tail: self.cursor.tail_hash(),
        };
        let note = serde_json::to_string(&note)?;
        let to = Some(Position { order: self.cursor.offset(), note });
        let from = std::mem::replace(&mut self.last, to.clone());
        Ok(Move { slot: self.slot.clone(), from, to })
    }
}
