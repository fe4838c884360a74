//! The files of a database, and what is done when somebody put others in their place.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result};

/// How long a file that was put in our place must have stayed as it is before it is opened:
/// whoever restores a copy may be in the middle of it.
const SETTLED: Duration = Duration::from_millis(400);
/// How long we wait for that, at most.
const SETTLING_MAX: Duration = Duration::from_secs(20);

/// Held by who opens or closes the database, in a [`Directory`].
const OPENING: &str = "open.lock";
/// The note of which files were opened, in a [`Directory`].
const OPENED: &str = "opened";

/// Which file stands at a path: its device, its inode, and when it was made, in nanoseconds (an
/// inode is given to the next file at once).
type Id = Option<(u64, u64, u128)>;

/// Which files stand at the paths of a database. SQLite goes on with the files it opened whatever
/// happens to their names, so this tells whether what it has open is still what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Files {
    db: Id,
    wal: Id,
    shm: Id,
}

impl Files {
    /// What stands there now.
    pub fn at(path: &Path) -> Self {
        Self { db: id(path), wal: id(&beside(path, "-wal")), shm: id(&beside(path, "-shm")) }
    }

    /// Whether the database and its log are still there (two system calls).
    pub fn stand(&self, path: &Path, wal: &Path) -> bool {
        self.db.is_some() && id(path) == self.db && id(wal) == self.wal
    }

    /// Whether the database file itself is the same one.
    pub fn same_database(&self, other: &Self) -> bool {
        self.db == other.db
    }

    /// What was opened, where `before` stood just before: should any of it have been replaced in
    /// between, the next look tells.
    pub fn opened_after(self, before: &Self) -> Self {
        Self {
            db: before.db.or(self.db),
            wal: before.wal.or(self.wal),
            shm: before.shm.or(self.shm),
        }
    }

    /// Removes the log that `self` wrote where the database is another one by now: read into that,
    /// it would corrupt it.
    fn remove_stale_log(&self, path: &Path) -> Result<()> {
        let now = Self::at(path);
        if now.db == self.db {
            return Ok(());
        }
        for (suffix, then, now) in [("-wal", self.wal, now.wal), ("-shm", self.shm, now.shm)] {
            if now.is_some() && now == then {
                remove(&beside(path, suffix))?;
            }
        }
        Ok(())
    }

    /// Makes what was put at `path` ready to be opened, while somebody still has `self` open.
    fn make_way(&self, path: &Path) -> Result<()> {
        settle(path);
        let now = Self::at(path);
        if now.db.is_none() || now.db != self.db {
            return self.remove_stale_log(path);
        }
        if now.shm.is_some() && now.shm == self.shm {
            remove(&beside(path, "-shm"))?;
        }
        renew(path)
    }

    /// Makes what was put at `path` ready to be opened, while somebody has either `self` open or
    /// what was put there, or some of both.
    pub fn take_over(&self, path: &Path) -> Result<()> {
        settle(path);
        self.remove_stale_log(path)?;
        remove(&beside(path, "-shm"))?;
        if id(path).is_some() { renew(path) } else { Ok(()) }
    }
}

/// Gives a copy that was put into the very file that SQLite holds open an inode of its own: only
/// then does SQLite see that its file has moved, and neither writes its old log into the copy when
/// it closes, nor shares its index with whoever opens it anew.
fn renew(path: &Path) -> Result<()> {
    let copy = beside(path, "-restored");
    fs::copy(path, &copy)
        .and_then(|_| File::open(&copy)?.sync_all())
        .and_then(|()| fs::rename(&copy, path))
        .with_context(|| {
            format!("failed to take over {}, which was restored in place", path.display())
        })
}

/// The way to a database is free.
pub(super) struct Way {
    /// Keeps others from opening it meanwhile.
    pub lock: File,
    /// Tells others that it is in use.
    pub user: File,
    /// It is another database than the one that this process had open.
    pub replaced: bool,
}

/// `path` with a suffix added to the file's name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn id(path: &Path) -> Id {
    fs::metadata(path).ok().map(|data| id_of(&data))
}

fn id_of(data: &Metadata) -> (u64, u64, u128) {
    // Not every file system tells when; the same answer each time will do.
    let made = data.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    (data.dev(), data.ino(), made.unwrap_or_default().as_nanos())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Waits until nothing changes at `path` any more.
fn settle(path: &Path) {
    let look =
        || fs::metadata(path).ok().map(|data| (data.ino(), data.len(), data.modified().ok()));
    let start = Instant::now();
    let (mut seen, mut since) = (look(), start);
    while since.elapsed() < SETTLED && start.elapsed() < SETTLING_MAX {
        sleep(Duration::from_millis(20));
        let now = look();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// The folder beside a database (`<path>.d`) with the locks that tell who is alive.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// The folder of the database at `path`.
    pub fn of(path: &Path) -> Self {
        Self(beside(path, ".d"))
    }

    fn file(&self, name: &str) -> Result<File> {
        let path = self.0.join(name);
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        open().or_else(|_| fs::create_dir_all(&self.0).and_then(|()| open())).with_context(|| {
            format!("failed to write {} (is the folder writable?)", path.display())
        })
    }

    /// Makes the database at `path` ready to be opened by a process that has `own` open, or
    /// nothing. Blocks while another process does the same.
    pub fn make_way(&self, path: &Path, own: Option<Files>) -> Result<Way> {
        let wal = beside(path, "-wal");
        let lock = self.file(OPENING)?;
        lock.lock().with_context(|| format!("failed to lock a file in {}", self.0.display()))?;
        let user = self.file("used.lock")?;
        let unused = own.is_none() && user.try_lock().is_ok();
        let stands = |files: &Files| files.stand(path, &wal);
        // What was opened last, by whichever process, is what may have been replaced since.
        match self.last_opened().or(own) {
            Some(before) if unused => before.remove_stale_log(path)?,
            Some(before) if !stands(&before) => {
                before.make_way(path)?;
                tracing::warn!(path = %path.display(), "the database was replaced: opening it");
            }
            _ => {}
        }
        if unused {
            user.unlock()?;
        }
        user.lock_shared()?;
        Ok(Way { lock, user, replaced: own.is_some_and(|own| !stands(&own)) })
    }

    /// Keeps other processes from opening the database, unless one is at it for longer than
    /// `max`. Blocks.
    pub fn lock_for(&self, max: Duration) -> Option<File> {
        // Not created: where somebody removed the folder, it is not to come back now.
        let lock = OpenOptions::new().write(true).open(self.0.join(OPENING)).ok()?;
        let start = Instant::now();
        while start.elapsed() < max {
            if lock.try_lock().is_ok() {
                return Some(lock);
            }
            sleep(Duration::from_millis(5));
        }
        None
    }

    /// The right to write.
    pub fn turns(&self) -> Result<Arc<Turns>> {
        Ok(Arc::new(Turns { next: self.file("next.lock")?, now: self.file("write.lock")? }))
    }

    /// Notes which files were opened, for whoever opens the database after this process.
    pub fn note_opened(&self, files: &Files) -> Result<()> {
        let path = self.0.join(OPENED);
        let text = [files.db, files.wal, files.shm].map(|id| {
            id.map_or("-".to_owned(), |(dev, inode, made)| format!("{dev}:{inode}:{made}"))
        });
        fs::write(&path, text.join(" "))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// Which files were opened last, where that is known.
    pub fn last_opened(&self) -> Option<Files> {
        let text = fs::read_to_string(self.0.join(OPENED)).ok()?;
        let mut ids = text.split(' ').map(|id| {
            let mut parts = id.split(':');
            Some((
                parts.next()?.parse().ok()?,
                parts.next()?.parse().ok()?,
                parts.next()?.parse().ok()?,
            ))
        });
        Some(Files { db: ids.next()?, wal: ids.next()?, shm: ids.next()? })
    }

    /// Marks `instance` as alive for as long as the file is open. `None`: another process does.
    pub fn claim(&self, instance: &str) -> Result<Option<File>> {
        let name = lock_name(instance);
        loop {
            let file = self.file(&name)?;
            if file.try_lock().is_err() {
                return Ok(None);
            }
            // Between opening and locking it, the one before may have removed it.
            if self.is_claim(instance, &file) {
                return Ok(Some(file));
            }
        }
    }

    /// Whether `file` is (still) what others find when they ask for `instance`.
    pub fn is_claim(&self, instance: &str, file: &File) -> bool {
        let held = file.metadata().ok().map(|data| id_of(&data));
        held.is_some() && held == id(&self.0.join(lock_name(instance)))
    }

    /// Forgets an instance whose claim is held here.
    pub fn forget(&self, instance: &str) {
        // What stays behind is an empty file that the next one to look takes for dead again.
        let _ = fs::remove_file(self.0.join(lock_name(instance)));
    }
}

/// The right to write, in turn among processes. SQLite would have each look for it ever more
/// rarely, so that of two busy processes one waits for long. Whoever has the right may still find
/// the database locked, by a program that knows nothing of this.
#[derive(Debug)]
pub(super) struct Turns {
    /// Held by who is next, so that nobody gets two turns while another waits.
    next: File,
    /// Held by who writes.
    now: File,
}

/// This process's turn, until it is dropped.
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// Waits for this process's turn; after `max`, it goes on without.
    pub async fn take(self: &Arc<Self>, max: Duration) -> Turn {
        let (turn, start) = (Turn(self.clone()), Instant::now());
        for file in [&self.next, &self.now] {
            while file.try_lock().is_err() && start.elapsed() < max {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // What cannot be unlocked is unlocked with the process.
        let _ = self.next.unlock();
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        for file in [&self.0.next, &self.0.now] {
            let _ = file.unlock();
        }
    }
}

/// A file's name for an instance, whatever characters that has.
fn lock_name(instance: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if instance.len() <= 200 && !instance.is_empty() && instance.bytes().all(plain) {
        format!("{instance}.alive")
    } else {
        format!("%{:016x}.alive", crate::event::hash(instance.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_claimed_once_and_again_after_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("streams.db");
        let (one, other) = (Directory::of(&path), Directory::of(&path));
        let claim = one.claim("host/1").unwrap().unwrap();
        assert!(other.claim("host/1").unwrap().is_none());
        assert!(other.claim("host/2").unwrap().is_some());
        drop(claim);
        assert!(other.claim("host/1").unwrap().is_some());
    }

    #[test]
    fn a_claim_whose_folder_was_removed_is_no_claim() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::of(&folder.path().join("streams.db"));
        let claim = directory.claim("a").unwrap().unwrap();
        assert!(directory.is_claim("a", &claim));
        fs::remove_dir_all(&directory.0).unwrap();
        assert!(!directory.is_claim("a", &claim));
        assert!(directory.claim("a").unwrap().is_some());
    }

    #[test]
    fn what_was_opened_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("streams.db");
        let directory = Directory::of(&path);
        assert_eq!(directory.last_opened(), None);
        drop(directory.make_way(&path, None).unwrap());
        for file in ["streams.db", "streams.db-wal"] {
            fs::write(folder.path().join(file), "").unwrap();
            directory.note_opened(&Files::at(&path)).unwrap();
            assert_eq!(directory.last_opened(), Some(Files::at(&path)));
        }
    }

    #[test]
    fn a_log_left_from_the_file_before_is_removed_and_a_new_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("streams.db");
        let wal = beside(&path, "-wal");
        for file in [&path, &wal] {
            fs::write(file, "old").unwrap();
        }
        let before = Files::at(&path);
        assert!(before.stand(&path, &wal));
        fs::write(folder.path().join("copy"), "new").unwrap();
        fs::rename(folder.path().join("copy"), &path).unwrap();
        assert!(!before.stand(&path, &wal));
        before.make_way(&path).unwrap();
        assert!(!wal.exists());

        let before = Files::at(&path);
        fs::write(&wal, "with the copy").unwrap();
        assert!(!before.stand(&path, &wal));
        let inode = id(&path);
        before.make_way(&path).unwrap();
        assert!(wal.exists());
        assert_ne!(id(&path), inode);
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
