//! The database of an embedded stream is put back to an older copy, or removed, while the process
//! runs and while it is down: the sources are told and go back, and no event is lost.

#[path = "support/streams.rs"]
mod streams;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aqueduct::spec::Site;
use aqueduct::stream::Appended;
use sqlx::{Connection, Row, SqliteConnection};
use streams::*;

/// What a user may do to the files.
#[derive(Clone, Copy, Debug)]
enum Restore {
    /// `mv copy streams.db`, and the log of the old one stays.
    Rename,
    /// `rm streams.db-wal streams.db-shm; mv copy streams.db`
    RenameClean,
    /// `rm streams.db-wal streams.db-shm; cp copy streams.db`, into the same inode.
    InPlace,
    /// `cp copy streams.db; rm streams.db-wal streams.db-shm`
    InPlaceLogLast,
    /// `rm streams.db*; cp copy streams.db`
    RemoveAndCopy,
    /// `rm streams.db*`
    Remove,
}

impl Restore {
    /// Does it, as another process would: a file of the database that this one opened and closed
    /// would take SQLite's locks with it.
    fn run(self, path: &Path, copy: &Path) {
        let script = match self {
            Self::Rename => "cp $2 $1.new && mv $1.new $1",
            Self::RenameClean => "rm -f $1-wal $1-shm && cp $2 $1.new && mv $1.new $1",
            Self::InPlace => "rm -f $1-wal $1-shm && cat $2 > $1",
            Self::InPlaceLogLast => "cat $2 > $1 && rm -f $1-wal $1-shm",
            Self::RemoveAndCopy => "rm -f $1 $1-wal $1-shm && sleep 0.05 && cp $2 $1",
            Self::Remove => "rm -f $1 $1-wal $1-shm",
        };
        let shell = Command::new("sh").args(["-c", script, "sh"]).arg(path).arg(copy).status();
        assert!(shell.unwrap().success());
    }
}

async fn query(path: &Path, sql: &'static str) -> String {
    let url = format!("sqlite://{}", path.display());
    let mut sql_conn = SqliteConnection::connect(&url).await.unwrap();
    let row = sqlx::query(sql).fetch_optional(&mut sql_conn).await.unwrap();
    sql_conn.close().await.unwrap();
    row.map_or(String::new(), |row| row.get(0))
}

async fn backup(path: &Path, to: &Path) {
    let url = format!("sqlite://{}", path.display());
    let mut sql = SqliteConnection::connect(&url).await.unwrap();
    let into = format!("VACUUM INTO '{}'", to.display());
    sqlx::query(sqlx::AssertSqlSafe(into)).execute(&mut sql).await.unwrap();
    sql.close().await.unwrap();
}

/// The numbers that another process sends. This one sends those from 0 until it has been told of
/// every restore, and some more.
const OTHERS: Range<u64> = 1_000_000..1_004_000;

/// Tells a child process where the stream is.
const PLACE: &str = "AQUEDUCT_TEST_PLACE";

/// Another process that sends its part; nothing in the process that runs the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plays_the_other_process() {
    let Ok(folder) = std::env::var(PLACE) else { return };
    let at = Place::embedded_of_another(Path::new(&folder));
    let at = at.with(|spec| spec.groups[0].latest = true);
    let site = Site { instance: "other".into(), ..at.site() };
    let backend = (at.spec.kind.open)(at.spec.clone(), site).await.unwrap();
    // What it sent may be put back until the last restore is over.
    let mut last = false;
    loop {
        let end = Arc::new(AtomicU64::new(OTHERS.end));
        source_of(backend.clone(), "b", OTHERS.start, end, Arc::default(), Arc::default()).await;
        if last {
            return;
        }
        last = Path::new(&folder).join("restored").exists();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn running(how: Restore) {
    let at = Arc::new(Place::embedded().with(|spec| spec.groups[0].latest = true));
    let path = at.folder.path().join("streams.db");
    let copy = at.folder.path().join("copy.db");
    let backend = at.open().await;
    let (sent, rewound) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let end = Arc::new(AtomicU64::new(OTHERS.start));
    let stop = Arc::new(AtomicBool::new(false));
    let members: Vec<_> =
        (0..2).map(|_| tokio::spawn(gather(at.clone(), backend.clone(), stop.clone()))).collect();
    let source = source_of(backend.clone(), "a", 0, end.clone(), sent.clone(), rewound.clone());
    let source = tokio::spawn(source);
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plays_the_other_process", "--nocapture"])
        .env(PLACE, at.folder.path())
        .spawn()
        .unwrap();
    let reached = async |count| {
        until("it was sent", async || sent.load(Ordering::SeqCst) >= count).await;
    };
    reached(3000).await;
    backup(&path, &copy).await;
    reached(6000).await;
    how.run(&path, &copy);
    until("the source was told", async || rewound.load(Ordering::SeqCst) > 0).await;
    // And once more: the copy is now older by a whole life of the file.
    reached(8000).await;
    how.run(&path, &copy);
    until("the source was told", async || rewound.load(Ordering::SeqCst) > 1).await;
    fs::write(at.folder.path().join("restored"), "").unwrap();
    let ours = 0..sent.load(Ordering::SeqCst) + 5000;
    end.store(ours.end, Ordering::SeqCst);
    tokio::time::timeout(PATIENCE * 3, source).await.unwrap().unwrap();
    let other = tokio::task::spawn_blocking(move || other.wait());
    let other = tokio::time::timeout(PATIENCE * 3, other).await.unwrap().unwrap();
    assert!(other.unwrap().success(), "the other process failed");
    until("the group is done", async || {
        let group = group_status(&backend, "g").await;
        (group.lag, group.pending) == (Some(0), Some(0))
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    let mut seen = BTreeSet::new();
    for member in members {
        seen.append(&mut member.await.unwrap());
    }
    let lost: Vec<u64> = ours.chain(OTHERS).filter(|number| !seen.contains(number)).collect();
    assert!(lost.is_empty(), "{} events are lost: {:?}…", lost.len(), &lost[..lost.len().min(9)]);
    sound(&path).await;
    drop(backend);
    sound(&path).await;
    assert!(!at.folder.path().join("streams.db-restored").exists());
}

async fn sound(path: &Path) {
    assert_eq!(query(path, "PRAGMA integrity_check").await, "ok");
}

async fn down(how: Restore) {
    let at = Place::embedded();
    let path: PathBuf = at.folder.path().join("streams.db");
    let copy = at.folder.path().join("copy.db");
    let step = |from: Option<u64>, to: u64| {
        vec![moving("a", from, Some(to), events(from.unwrap_or(0)..to))]
    };
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    writer.append(&step(None, 10)).await.unwrap();
    backup(&path, &copy).await;
    writer.append(&step(Some(10), 20)).await.unwrap();
    drop((writer, backend));
    until("it is closed", async || !path.with_extension("db-wal").exists()).await;
    how.run(&path, &copy);

    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    assert_eq!(writer.append(&step(Some(20), 30)).await.unwrap(), [Appended::Rewound]);
    let stored = writer.slots("test").await.unwrap().first().map(|slot| slot.1.order);
    assert_eq!(stored, (!matches!(how, Restore::Remove)).then_some(10));
    assert_eq!(writer.append(&step(stored, 30)).await.unwrap(), [Appended::Durable]);
    let reader = at.member(&backend, "g").await;
    assert_eq!(numbers(&finish(&reader, 30).await), (0..30).collect::<Vec<_>>());
    sound(&path).await;
}

macro_rules! restores {
    ($($name:ident: $how:ident),* $(,)?) => {
        mod while_it_runs {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::running(super::Restore::$how).await; })*
        }
        mod while_it_is_down {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::down(super::Restore::$how).await; })*
        }
    };
}

restores! {
    renamed: Rename,
    renamed_without_the_log: RenameClean,
    copied_in_place: InPlace,
    copied_in_place_and_the_log_removed_last: InPlaceLogLast,
    removed_and_copied: RemoveAndCopy,
    removed: Remove,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_folder_comes_back() {
    let at = Place::embedded();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    put(&mut writer, events(0..10)).await;
    take(&reader, 5).await;
    for entry in fs::read_dir(at.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    let gone = moving("a", Some(10), Some(20), events(10..20));
    assert_eq!(writer.append(&[gone]).await.unwrap(), [Appended::Rewound]);
    put(&mut writer, events(0..20)).await;
    assert_eq!(numbers(&finish(&reader, 20).await), (0..20).collect::<Vec<_>>());
    until("this process is marked as alive again", async || {
        backend.status().await.unwrap();
        at.folder.path().join("streams.db.d/here.alive").exists()
    })
    .await;
}

// The lease's token is drawn anew each time: what a member holds from before never fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_from_before_acks_nothing_after() {
    let at = Place::embedded();
    let path = at.folder.path().join("streams.db");
    let copy = at.folder.path().join("copy.db");
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    put(&mut writer, events(0..10)).await;
    backup(&path, &copy).await;
    let before = take(&reader, 10).await;
    Restore::Rename.run(&path, &copy);
    assert_eq!(reader.renew(&tickets(&before)).await.unwrap(), tickets(&before));
    let again = take(&reader, 10).await;
    reader.ack(&tickets(&before)).await.unwrap();
    assert_eq!(group_status(&backend, "g").await.pending, Some(10));
    reader.ack(&tickets(&again)).await.unwrap();
    assert_eq!(group_status(&backend, "g").await.pending, Some(0));
}
