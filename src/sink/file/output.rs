//! The file that lines go to, and the lock that writers take turns by.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::sink::database::{check_directory, directory_of};

/// How long a writer waits for its turn before it is an error.
const TURN: Duration = Duration::from_secs(10);

/// A writer's turn: no other writer of the file, in this process or another, has it at the same
/// time. It ends when this is dropped, or with the process.
///
/// The lock file also repeats the stamp of the last intent whose lines are in the file. It is
/// written without a sync: it outlives a killed process, and after a power failure the file itself
/// is looked at.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Waits for the turn.
    pub(super) async fn take(path: &Path) -> Result<Self> {
        check_directory(path)?;
        let started = tokio::time::Instant::now();
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(lock);
            }
            if started.elapsed() > TURN {
                bail!(
                    "another process has held {} for {} s (stop it, or let it go on)",
                    path.display(),
                    TURN.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_micros(fastrand::u64(200..1_000))).await;
        }
    }

    fn try_take(path: &Path) -> Result<Option<Self>> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).with_context(|| writable(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        // Somebody may have removed the lock file: then the next one locks another.
        let there = path.metadata().is_ok_and(|found| Some(found.ino()) == inode(&file));
        Ok(there.then_some(Self(file)))
    }

    /// The stamp of the last intent whose lines are in the file; 0 for none.
    pub(super) fn settled(&self) -> Result<i64> {
        let mut stamp = [0; 8];
        match self.0.read_exact_at(&mut stamp, 0) {
            Ok(()) => Ok(i64::from_le_bytes(stamp)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(error).context("cannot read the lock file"),
        }
    }

    /// Notes that the lines of the intent with this stamp are in the file.
    pub(super) fn settle(&self, stamp: i64) -> Result<()> {
        self.0.write_all_at(&stamp.to_le_bytes(), 0).context("cannot write the lock file")
    }
}

fn inode(file: &File) -> Option<u64> {
    file.metadata().ok().map(|found| found.ino())
}

fn writable(path: &Path) -> String {
    format!("cannot write {} (let this user write it and its directory)", path.display())
}

/// The file, open for appending.
#[derive(Clone, Debug)]
pub(super) struct Output {
    file: Arc<File>,
    path: PathBuf,
    /// Its inode.
    pub(super) inode: u64,
}

impl Output {
    /// Opens the file, and creates it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path);
        let file = file.with_context(|| writable(path))?;
        let found = file.metadata()?;
        if !found.is_file() {
            bail!("{} is no regular file (name one, or a new one)", path.display());
        }
        if is_new {
            let directory = File::open(directory_of(path)).and_then(|it| it.sync_all());
            directory
                .with_context(|| format!("cannot sync the directory of {}", path.display()))?;
        }
        Ok(Self { file: Arc::new(file), path: path.to_owned(), inode: found.ino() })
    }

    /// This file, or the one that is at its path by now.
    pub(super) fn current(&self) -> Result<Self> {
        match self.path.metadata() {
            Ok(found) if found.ino() == self.inode => Ok(self.clone()),
            _ => Self::open(&self.path),
        }
    }

    /// The file that `path` named when it had this inode: still there, or renamed within its
    /// directory.
    pub(super) fn find(path: &Path, inode: u64) -> Result<Option<Self>> {
        if path.metadata().is_ok_and(|found| found.ino() == inode) {
            return Self::open(path).map(Some);
        }
        for entry in directory_of(path).read_dir()? {
            let entry = entry?;
            let found = entry.metadata()?;
            if found.ino() == inode && found.is_file() {
                return Self::open(&entry.path()).map(Some);
            }
        }
        Ok(None)
    }

    /// Its length in bytes.
    pub(super) fn length(&self) -> Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether what is appended next starts a line.
    pub(super) fn at_line_start(&self, length: u64) -> Result<bool> {
        let mut last = [b'\n'];
        if length > 0 {
            match self.file.read_exact_at(&mut last, length - 1) {
                // It was truncated just now.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                read => read.with_context(|| format!("cannot read {}", self.path.display()))?,
            }
        }
        Ok(last == *b"\n")
    }

    /// The bytes from `start` to `end`, or to where the file ends.
    pub(super) fn read(&self, start: u64, end: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start))?];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], start + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot read {}", self.path.display()));
                }
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Appends all of `bytes` in one piece, and makes the file durable. Where only a part went in,
    /// it errs without another try: somebody else may have appended since, and what is missing
    /// has to be looked at.
    pub(super) fn append(&self, bytes: &[u8]) -> Result<()> {
        let context = || format!("cannot append to {}", self.path.display());
        let written = loop {
            match (&*self.file).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => break written.with_context(context)?,
            }
        };
        if written < bytes.len() {
            bail!(
                "{}: only {written} of {} bytes went in (make room on its file system)",
                context(),
                bytes.len()
            );
        }
        self.sync()
    }

    /// Makes what was appended durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().with_context(|| format!("cannot sync {}", self.path.display()))
    }
}
