//! What makes a file the same file: inode, first line, and the bytes before the checkpoint.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::event::{hash, hash_parts};
use crate::source::{Position, Slot};

/// Of the first line, this much counts.
pub const HEAD_BYTES: usize = 1024;
/// Of what stands before an offset, this much counts.
pub const TAIL_BYTES: usize = 256;

/// A file while it is open, or while its name leads to it: device and inode. Not kept beyond
/// that: a remount changes the device, and an inode is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

impl FileKey {
    /// Of the file that the metadata describe.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// When the content last changed, as the file system tells it.
pub fn mtime(meta: &std::fs::Metadata) -> (i64, i64) {
    (meta.mtime(), meta.mtime_nsec())
}

/// Opens a file for reading and never waits, not even where the name became a pipe meanwhile.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Opens what is under this name, if it is this file.
pub fn open_as(path: &Path, key: FileKey) -> io::Result<Option<File>> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let same = FileKey::of(&file.metadata()?) == key;
    Ok(same.then_some(file))
}

/// The first line of a file, or what is there of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Hash of the line without its newline, at most [`HEAD_BYTES`] of it.
    pub hash: u64,
    /// The line's newline, or [`HEAD_BYTES`] of it, are there: the hash will not change any more.
    pub complete: bool,
    /// How many bytes were hashed.
    pub len: u64,
}

/// Reads the first line. `None`: the file is empty.
pub fn read_head(file: &File) -> io::Result<Option<Head>> {
    let mut bytes = [0; HEAD_BYTES];
    let len = read_full(file, &mut bytes, 0)?;
    if len == 0 {
        return Ok(None);
    }
    let newline = memchr::memchr(b'\n', &bytes[..len]);
    let line = newline.unwrap_or(len);
    Ok(Some(Head {
        hash: hash(&bytes[..line]),
        complete: newline.is_some() || len == HEAD_BYTES,
        len: line as u64,
    }))
}

/// The bytes just before `offset`, at most [`TAIL_BYTES`]. `None`: the file is shorter.
pub fn read_tail(file: &File, offset: u64) -> io::Result<Option<Vec<u8>>> {
    let len = offset.min(TAIL_BYTES as u64);
    let mut bytes = vec![0; len as usize];
    let read = read_full(file, &mut bytes, offset - len)?;
    Ok((read == bytes.len()).then_some(bytes))
}

/// Where the last whole line ends, looking back no further than `reach` bytes from the end;
/// without a newline there, the end itself.
pub fn end_of_last_line(file: &File, reach: u64) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut end = size;
    let mut block = vec![0; 64 * 1024];
    while end > 0 && size - end <= reach {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        let read = read_full(file, part, start)?;
        if let Some(newline) = memchr::memrchr(b'\n', &part[..read]) {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(if end == 0 { 0 } else { size })
}

/// Reads until `bytes` is full or the file ends, and answers how much it was.
pub fn read_full(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What is settled about a generation when it is first seen, and never decided again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// The name it had.
    pub home: String,
    /// The inode it had.
    pub inode: u64,
    /// The hash of its first line.
    pub first: u64,
    /// How many generations with this inode and first line came before it.
    pub ordinal: u32,
    /// The offset of its first event.
    pub start: u64,
    /// Hash of the bytes before `start`.
    pub start_tail: u64,
    /// Milliseconds since 1970: generations of one name are read in this order.
    pub since_ms: i64,
}

impl Birth {
    /// The generation's id. Two readers that see the file come into being agree on it.
    pub fn uid(&self) -> u64 {
        hash_parts(&[
            &self.inode.to_le_bytes(),
            &self.first.to_le_bytes(),
            &self.ordinal.to_le_bytes(),
        ])
    }
}

/// The note of a generation's checkpoint; its order is the offset of the next line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What was settled once.
    pub birth: Birth,
    /// The file's name when it was last looked at.
    pub path: String,
    /// Its inode then: an editor's save changes it.
    pub inode: u64,
    /// Hash of the bytes before the offset.
    pub tail: u64,
}

impl Note {
    /// Reads the note of a slot. Errs when another version, or another kind of source, wrote it.
    pub fn read(slot: &Slot) -> Result<Self> {
        let note: Self = serde_json::from_str(&slot.1.note).with_context(|| {
            format!("read checkpoint slot {:?}: not one that a tail of this version wrote", slot.0)
        })?;
        anyhow::ensure!(
            slot_name(note.birth.uid()) == slot.0,
            "read checkpoint slot {:?}: its note belongs to slot {:?}",
            slot.0,
            slot_name(note.birth.uid()),
        );
        Ok(note)
    }
}

/// The slot that moves with the first events of each generation. Whoever began one that we do not
/// know of has moved it: then ours is not begun, and we find out that it is theirs.
pub const CENSUS: &str = "generations";

/// Where the census stands after these generations began.
pub fn census(before: Option<&Position>, begun: &[u64]) -> Position {
    let (order, note) = before.map_or((0, ""), |before| (before.order, &before.note));
    let uids: Vec<u8> = begun.iter().flat_map(|uid| uid.to_le_bytes()).collect();
    let note = format!("{:016x}", hash_parts(&[note.as_bytes(), &uids]));
    Position { order: order + begun.len() as u64, note }
}

/// The slot of the generation with this id.
pub fn slot_name(uid: u64) -> String {
    format!("{uid:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, content).unwrap();
        (dir, open(&path).unwrap())
    }

    #[test]
    fn a_first_line_counts_once_it_is_whole_or_long() {
        assert_eq!(read_head(&file(b"").1).unwrap(), None);
        let part = read_head(&file(b"abc").1).unwrap().unwrap();
        let whole = read_head(&file(b"abc\nd").1).unwrap().unwrap();
        assert!(!part.complete && whole.complete);
        assert_eq!((part.hash, part.len), (whole.hash, whole.len));
        let long = read_head(&file(&[b'x'; 3000]).1).unwrap().unwrap();
        assert!(long.complete && long.len == 1024);
        assert_eq!(read_head(&file(b"\n").1).unwrap().unwrap().len, 0);
    }

    #[test]
    fn the_tail_is_what_stands_before_an_offset() {
        let (_dir, file) = file(b"0123456789");
        assert_eq!(read_tail(&file, 4).unwrap().unwrap(), b"0123");
        assert_eq!(read_tail(&file, 0).unwrap().unwrap(), b"");
        assert_eq!(read_tail(&file, 11).unwrap(), None);
    }

    #[test]
    fn the_end_is_where_the_last_whole_line_ends() {
        assert_eq!(end_of_last_line(&file(b"a\nb\nhalf").1, 1 << 20).unwrap(), 4);
        assert_eq!(end_of_last_line(&file(b"half").1, 1 << 20).unwrap(), 0);
        let mut long = vec![b'x'; 300_000];
        long[0] = b'\n';
        assert_eq!(end_of_last_line(&file(&long).1, 1 << 20).unwrap(), 1);
        assert_eq!(end_of_last_line(&file(&long).1, 1024).unwrap(), 300_000);
    }
}
