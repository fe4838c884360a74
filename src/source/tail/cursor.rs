//! Reads one file in large blocks and cuts them into lines. A line is a slice of its block.

use std::fs::File;
use std::io;

use bytes::{Buf, Bytes};

use super::identity::{self, TAIL_BYTES};
use crate::event::hash;

/// Bytes asked of a file at once.
const READ_BYTES: u64 = 512 * 1024;
/// Of a line that is too long, this much is kept to show.
const SHOWN_BYTES: usize = 256;

/// What a look at the file brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Something was read: there may be lines now, and more behind them.
    More,
    /// The file holds nothing that was not read.
    End,
    /// What was read before is no longer in the file: it was truncated or written anew.
    Changed,
}

/// A line longer than allowed: where it starts, how long it is, and its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oversized {
    /// Offset of its first byte.
    pub offset: u64,
    /// Bytes, without the newline.
    pub len: u64,
    /// Its first bytes.
    pub head: Vec<u8>,
}

/// What a file is made of.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A line without its newline, and the offset of its first byte.
    Line(u64, Bytes),
    /// A line past the limit.
    Oversized(Oversized),
}

/// A place in a file. What was read stands in `block` (whole lines from `offset` on) and
/// `partial` (the unfinished line after them). Of a line past the limit only `skipping` is known
/// while it lasts; `skipped` is it at its end, just before `block`.
#[derive(Debug, Default)]
pub struct Cursor {
    offset: u64,
    tail: Vec<u8>,
    tail_hash: u64,
    skipped: Option<Oversized>,
    block: Bytes,
    partial: Vec<u8>,
    skipping: Option<Oversized>,
    /// The bytes before what was read last.
    behind: Vec<u8>,
    line_max: usize,
}

impl Cursor {
    /// At `offset`, in a file whose bytes before it have this hash. It reads nothing until
    /// [`Cursor::fits`] has found it so.
    pub fn new(offset: u64, tail_hash: u64, line_max: usize) -> Self {
        Self { offset, tail_hash, line_max, ..Self::default() }
    }

    /// Where the next line starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The hash of the bytes before [`Cursor::offset`].
    pub fn tail_hash(&self) -> u64 {
        self.tail_hash
    }

    /// How far the file was read.
    pub fn read_to(&self) -> u64 {
        let skipped = self.skipped.as_ref().map_or(0, |line| line.len + 1);
        let skipping = self.skipping.as_ref().map_or(0, |line| line.len);
        let held = self.block.len() + self.partial.len();
        self.offset + skipped + held as u64 + skipping
    }

    /// Whether there is something to take without reading.
    pub fn has_lines(&self) -> bool {
        !self.block.is_empty() || self.skipped.is_some()
    }

    /// Whether `file` holds the bytes before the offset. If so, what was read past it is dropped
    /// and reading goes on from there.
    pub fn fits(&mut self, file: &File) -> io::Result<bool> {
        let Some(tail) = identity::read_tail(file, self.offset)? else { return Ok(false) };
        if hash(&tail) != self.tail_hash {
            return Ok(false);
        }
        let (offset, tail_hash, line_max) = (self.offset, self.tail_hash, self.line_max);
        let behind = tail.clone();
        *self = Self { offset, tail, tail_hash, behind, line_max, ..Self::default() };
        Ok(true)
    }

    /// Reads on; to be called when there is nothing to take. `size` is the file's, `first` the
    /// hash of its first line. What stands before the place is compared *after* reading: whatever
    /// was read, was read while that still held.
    pub fn fill(&mut self, file: &File, size: u64, first: u64) -> io::Result<Fill> {
        let from = self.read_to();
        let Some(fresh) = size.checked_sub(from) else { return Ok(Fill::Changed) };
        let old = self.partial.len();
        self.partial.resize(old + fresh.min(READ_BYTES) as usize, 0);
        let read = identity::read_full(file, &mut self.partial[old..], from).and_then(|read| {
            let same = self.unchanged(file, from, first)?;
            Ok(same.then_some(read))
        });
        self.partial.truncate(old + read.as_ref().ok().copied().flatten().unwrap_or_default());
        match read? {
            None => Ok(Fill::Changed),
            Some(0) => Ok(Fill::End),
            Some(_) => {
                self.cut(old);
                Ok(Fill::More)
            }
        }
    }

    fn unchanged(&self, file: &File, from: u64, first: u64) -> io::Result<bool> {
        if identity::read_tail(file, from)?.as_deref() != Some(self.behind.as_slice()) {
            return Ok(false);
        }
        Ok(identity::read_head(file)?.is_some_and(|head| head.hash == first))
    }

    /// Sorts the bytes of `partial` from `fresh` on into whole lines and an unfinished one.
    fn cut(&mut self, mut fresh: usize) {
        if let Some(mut line) = self.skipping.take() {
            let Some(newline) = memchr::memchr(b'\n', &self.partial) else {
                line.len += self.partial.len() as u64;
                roll(&mut self.behind, &self.partial);
                self.partial.clear();
                self.skipping = Some(line);
                return;
            };
            line.len += newline as u64;
            self.skipped = Some(line);
            roll(&mut self.behind, &self.partial[..=newline]);
            self.tail.clone_from(&self.behind);
            self.partial.drain(..=newline);
            fresh = 0;
        }
        roll(&mut self.behind, &self.partial[fresh..]);
        if let Some(newline) = memchr::memrchr(b'\n', &self.partial[fresh..]) {
            let end = fresh + newline + 1;
            let rest = self.partial[end..].to_vec();
            let mut whole = std::mem::replace(&mut self.partial, rest);
            whole.truncate(end);
            self.block = Bytes::from(whole);
        }
        if self.partial.len() > self.line_max {
            let offset = self.read_to() - self.partial.len() as u64;
            let partial = std::mem::take(&mut self.partial);
            self.skipping = Some(oversized(offset, &partial, self.line_max));
        }
    }

    /// Hands out what was read, in order, until it is used up or `take` answers `false`.
    pub fn drain(&mut self, mut take: impl FnMut(Piece) -> bool) {
        if let Some(line) = self.skipped.take() {
            self.offset = line.offset + line.len + 1;
            self.tail_hash = hash(&self.tail);
            if !take(Piece::Oversized(line)) {
                return;
            }
        }
        let mut at = 0;
        while let Some(newline) = memchr::memchr(b'\n', &self.block[at..]) {
            let offset = self.offset + at as u64;
            let line = self.block.slice(at..at + newline);
            at += newline + 1;
            let piece = match line.len() > self.line_max {
                true => Piece::Oversized(oversized(offset, &line, self.line_max)),
                false => Piece::Line(offset, line),
            };
            if !take(piece) {
                break;
            }
        }
        if at > 0 {
            roll(&mut self.tail, &self.block[..at]);
            self.tail_hash = hash(&self.tail);
            self.offset += at as u64;
            self.block.advance(at);
        }
    }

    /// The unfinished last line, as it stands; it stays unread. `None`: there is none.
    pub fn unfinished(&self) -> Option<Piece> {
        if let Some(line) = &self.skipping {
            return Some(Piece::Oversized(line.clone()));
        }
        let line = || Piece::Line(self.offset, Bytes::copy_from_slice(&self.partial));
        (!self.partial.is_empty()).then(line)
    }

    /// Passes over the unfinished last line: nothing will ever finish it.
    pub fn pass_unfinished(&mut self) {
        self.offset = self.read_to();
        self.tail.clone_from(&self.behind);
        self.tail_hash = hash(&self.tail);
        self.partial = Vec::new();
        self.skipping = None;
    }
}

/// Of a line past the limit there are more bytes than the limit at hand, however it arrived: so
/// its head is always the same.
fn oversized(offset: u64, line: &[u8], line_max: usize) -> Oversized {
    let head = line[..line.len().min(line_max).min(SHOWN_BYTES)].to_vec();
    Oversized { offset, len: line.len() as u64, head }
}

/// Appends to the bytes that stand before a place.
fn roll(tail: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.len() >= TAIL_BYTES {
        tail.clear();
        tail.extend_from_slice(&bytes[bytes.len() - TAIL_BYTES..]);
    } else {
        tail.extend_from_slice(bytes);
        let extra = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..extra);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::source::tail::identity::{open, read_head};

    struct Fixture {
        _dir: tempfile::TempDir,
        writer: File,
        reader: File,
        cursor: Cursor,
    }

    impl Fixture {
        fn new(line_max: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let writer = File::create(&path).unwrap();
            let reader = open(&path).unwrap();
            let cursor = Cursor::new(0, hash(b""), line_max);
            Self { _dir: dir, writer, reader, cursor }
        }

        fn fill(&mut self) -> Fill {
            let size = self.reader.metadata().unwrap().len();
            let first = read_head(&self.reader).unwrap().map_or(0, |head| head.hash);
            self.cursor.fill(&self.reader, size, first).unwrap()
        }

        fn read(&mut self) -> Vec<(u64, String)> {
            let mut pieces = Vec::new();
            while self.fill() == Fill::More {
                self.cursor.drain(|piece| {
                    pieces.push(match piece {
                        Piece::Line(at, line) => (at, String::from_utf8(line.to_vec()).unwrap()),
                        Piece::Oversized(line) => (line.offset, format!("!{}", line.len)),
                    });
                    true
                });
            }
            pieces
        }
    }

    fn piece(offset: u64, line: &str) -> (u64, String) {
        (offset, line.to_owned())
    }

    #[test]
    fn lines_are_cut_at_newlines_and_nothing_else() {
        let mut file = Fixture::new(100);
        file.writer.write_all(b"a\r\n\n  b\nhalf").unwrap();
        assert_eq!(file.read(), [piece(0, "a\r"), piece(3, ""), piece(4, "  b")]);
        assert_eq!(file.cursor.unfinished(), Some(Piece::Line(8, Bytes::from_static(b"half"))));
        file.writer.write_all(b" done\n").unwrap();
        assert_eq!(file.read(), [piece(8, "half done")]);
        assert_eq!((file.cursor.offset(), file.cursor.unfinished()), (18, None));
    }

    #[test]
    fn a_line_past_the_limit_is_told_once_however_it_arrives() {
        let text = format!("{}\nnext\n{}\n{}", "x".repeat(11), "y".repeat(10), "z".repeat(12));
        let expected = [piece(0, "!11"), piece(12, "next"), piece(17, &"y".repeat(10))];
        for step in [1, 7, 1000] {
            let mut file = Fixture::new(10);
            let mut pieces = Vec::new();
            for chunk in text.as_bytes().chunks(step) {
                file.writer.write_all(chunk).unwrap();
                pieces.extend(file.read());
            }
            assert_eq!(pieces, expected);
            let head = vec![b'z'; 10];
            let last = Oversized { offset: 28, len: 12, head };
            assert_eq!(file.cursor.unfinished(), Some(Piece::Oversized(last)));
        }
    }

    #[test]
    fn what_was_read_before_must_still_be_there() {
        let mut file = Fixture::new(1 << 20);
        file.writer.write_all(b"head\none\n").unwrap();
        file.read();
        file.writer.write_all(b"ha").unwrap();
        assert_eq!(file.fill(), Fill::More);
        file.writer.set_len(9).unwrap();
        assert_eq!(file.fill(), Fill::Changed);
        assert!(file.cursor.fits(&file.reader).unwrap(), "only an unfinished line is gone");
        let path = file._dir.path().join("log");
        std::fs::write(&path, b"head\ntwo\nthree\n").unwrap();
        assert_eq!(file.fill(), Fill::Changed);
        assert!(!file.cursor.fits(&file.reader).unwrap());
    }

    #[test]
    fn a_place_survives_blocks_and_stops() {
        let mut file = Fixture::new(1 << 20);
        let text: String = (0..60_000).map(|n| format!("line number {n}\n")).collect();
        file.writer.write_all(text.as_bytes()).unwrap();
        let mut seen = Vec::new();
        while file.cursor.has_lines() || file.fill() == Fill::More {
            let mut left = 1000;
            file.cursor.drain(|piece| {
                let Piece::Line(offset, line) = piece else { panic!("no line is that long") };
                assert_eq!(text.as_bytes()[offset as usize..][..line.len()], line[..]);
                seen.push(line);
                left -= 1;
                left > 0
            });
            let before = &text.as_bytes()[..file.cursor.offset() as usize];
            let tail = &before[before.len() - before.len().min(TAIL_BYTES)..];
            assert_eq!(file.cursor.tail_hash(), hash(tail));
        }
        assert_eq!(seen.len(), 60_000);
    }
}
