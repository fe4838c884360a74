//! What only the embedded stream does: several processes in one file, killed ones, full disks,
//! locked, strange and damaged files.

#[path = "support/streams.rs"]
mod streams;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aqueduct::event::Event;
use aqueduct::spec::Site;
use aqueduct::stream::{Appended, ReaderSpec};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use streams::*;

/// Tells a child process of the tests which role it plays, and where.
const ROLE: &str = "AQUEDUCT_TEST_ROLE";
const PLACE: &str = "AQUEDUCT_TEST_PLACE";

/// Starts this test program anew in a role.
fn child(role: &str, at: &Place) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plays_a_role", "--nocapture"])
        .env(ROLE, role)
        .env(PLACE, at.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until a child says that it is ready.
fn ready(child: &mut Child) {
    let said = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(said.map_while(Result::ok).any(|line| line.ends_with("ready")), "the child ended");
}

/// What a child process does; nothing in the process that runs the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plays_a_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var(PLACE).unwrap());
    let at = Place::embedded_of_another(&folder);
    let at = at.lease(Duration::from_secs(3600));
    let instance = format!("child-{}", std::process::id());
    let site = Site { data_dir: folder, instance: instance.clone(), until_idle: false, runs: true };
    let backend = (at.spec.kind.open)(at.spec.clone(), site).await.unwrap();
    match &*role {
        "holder" => {
            let member = format!("{instance}/g/0");
            let reader = backend.reader(ReaderSpec { group: at.spec.groups[0].clone(), member });
            let reader = reader.await.unwrap();
            let held = take(&reader, 10).await;
            reader.charge(held[4].ticket).await.unwrap();
            println!("\nready");
            std::future::pending::<()>().await;
        }
        "writer" => {
            let mut writer = backend.writer().await.unwrap();
            println!("\nready");
            for number in 1000..1300 {
                put(&mut writer, events(number..number + 1)).await;
            }
        }
        role => panic!("no role {role}"),
    }
}

async fn sql(path: &Path, statement: &str) {
    let url = format!("sqlite://{}?mode=rwc", path.display());
    let mut conn = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

fn database(at: &Place) -> PathBuf {
    at.folder.path().join("streams.db")
}

/// Why it cannot be opened.
async fn refusal(at: &Place) -> String {
    let opened = (at.spec.kind.open)(at.spec.clone(), at.site()).await;
    format!("{:#}", opened.err().expect("it was to be refused"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_keeps_nothing_from_the_living() {
    let at = Place::embedded().lease(Duration::from_secs(3600));
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let mut holder = child("holder", &at);
    ready(&mut holder);
    let reader = at.member(&backend, "g").await;
    nothing(&reader).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    nothing(&reader).await;
    assert_eq!(group_status(&backend, "g").await.pending, Some(10));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let killed = Instant::now();
    let taken = take(&reader, 10).await;
    assert!(killed.elapsed() < Duration::from_secs(3), "it took {:?}", killed.elapsed());
    assert!(taken.iter().all(|delivery| delivery.deliveries == 2));
    let attempts = taken.iter().map(|delivery| delivery.attempts).sum::<u32>();
    assert_eq!(attempts, 1, "the attempt was charged durably");
    until("the dead one is forgotten", async || {
        let consumers = group_status(&backend, "g").await.consumers;
        consumers.iter().all(|consumer| consumer.name.starts_with("here/"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_after_a_kill_waits_for_no_lease() {
    let at = Place::embedded().lease(Duration::from_secs(3600));
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    drop((writer, backend));
    let mut holder = child("holder", &at);
    ready(&mut holder);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let backend = at.open().await;
    let reader = at.member(&backend, "g").await;
    let taken = reader.fetch(10, BYTES, Duration::ZERO).await.unwrap();
    assert_eq!(taken.len(), 10);
}

// The log of a killed process stays behind; it must not be read into a copy put there since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_killed_process_is_no_part_of_a_restored_copy() {
    let at = Place::embedded().lease(Duration::from_secs(3600));
    let copy = at.folder.path().join("copy.db");
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    sql(&database(&at), &format!("VACUUM INTO '{}'", copy.display())).await;
    put(&mut writer, events(10..500)).await;
    drop((writer, backend));
    let wal = at.folder.path().join("streams.db-wal");
    until("it is closed", async || !wal.exists()).await;
    let mut holder = child("holder", &at);
    ready(&mut holder);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(fs::metadata(&wal).unwrap().len() > 0, "the log was to stay behind");
    fs::rename(&copy, database(&at)).unwrap();
    let backend = at.open().await;
    let reader = at.member(&backend, "g").await;
    assert_eq!(numbers(&finish(&reader, 10).await), (0..10).collect::<Vec<_>>());
    nothing(&reader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_write_one_file() {
    let at = Place::embedded();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    let mut other = child("writer", &at);
    ready(&mut other);
    let reading = tokio::spawn(async move { numbers(&finish(&reader, 600).await) });
    for number in 0..300 {
        put(&mut writer, events(number..number + 1)).await;
    }
    let mut all = reading.await.unwrap();
    all.sort_unstable();
    assert_eq!(all, (0..300).chain(1000..1300).collect::<Vec<_>>());
    assert!(other.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_appends_is_found_without_a_wake_up() {
    let at = Place::embedded();
    let backend = at.open().await;
    let reader = at.member(&backend, "g").await;
    nothing(&reader).await;
    let mut other = child("writer", &at);
    assert_eq!(finish(&reader, 300).await.len(), 300);
    let mut rest = String::new();
    other.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert!(other.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_waits_for_who_holds_the_file_locked() {
    let at = Place::embedded();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    let url = format!("sqlite://{}", database(&at).display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let start = Instant::now();
    let unlock = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    });
    put(&mut writer, events(0..10)).await;
    assert!(start.elapsed() >= Duration::from_secs(2));
    unlock.await.unwrap();
    assert_eq!(finish(&reader, 10).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_clear_error_and_passes() {
    let at = Place::embedded();
    let disk = at.folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
        .arg(&disk)
        .stderr(Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a small file system cannot be mounted here (that takes root)");
        return;
    }
    let path = disk.join("streams.db").to_str().unwrap().to_owned();
    let at = at.with(|spec| spec.values.set("path", aqueduct::spec::Value::Str(path)));
    let _unmount = Unmount(disk.clone());
    let filler = disk.join("filler");
    fs::write(&filler, vec![1; 3 << 20]).unwrap();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    let mut stored = None;
    let step = |from: Option<u64>| {
        let start = from.unwrap_or(0);
        let big = |number| Event { body: vec![number as u8; 2000].into(), ..event(number) };
        vec![moving("a", from, Some(start + 50), (start..start + 50).map(big).collect())]
    };
    let error = loop {
        match writer.append(&step(stored)).await {
            Ok(answers) => {
                assert_eq!(answers, [Appended::Durable]);
                stored = Some(stored.unwrap_or(0) + 50);
                assert!(stored < Some(10_000), "6 MiB do not fill");
            }
            Err(error) => break format!("{error:#}"),
        }
    };
    assert!(error.contains("streams.db") && error.contains("disk"), "{error}");
    assert!(error.contains("full"), "{error}");
    for _ in 0..3 {
        assert!(writer.append(&step(stored)).await.is_err());
    }
    fs::remove_file(&filler).unwrap();
    let slots = writer.slots("test").await.unwrap();
    assert_eq!(slots.first().map(|slot| slot.1.order), stored);
    assert_eq!(writer.append(&step(stored)).await.unwrap(), [Appended::Durable]);
    let end = stored.unwrap() + 50;
    assert_eq!(numbers(&finish(&reader, end as usize).await), (0..end).collect::<Vec<_>>());
    drop((reader, writer, backend));
    until("it is closed", async || !disk.join("streams.db-wal").exists()).await;
}

/// Takes a file system away again.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acked_gives_its_room_back() {
    let at = Place::embedded();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    let big = |number| Event { body: vec![number as u8; 1000].into(), ..event(number) };
    let (mut db, mut wal) = (0, 0);
    let size = |path: PathBuf| fs::metadata(path).map_or(0, |data| data.len());
    for start in (0..60_000).step_by(500) {
        put(&mut writer, (start..start + 500).map(big).collect()).await;
        finish(&reader, 500).await;
        if start % 10_000 == 9_500 {
            until("it is deleted", async || length(&backend).await == 0).await;
        }
        db = size(database(&at)).max(db);
        wal = size(at.folder.path().join("streams.db-wal")).max(wal);
    }
    // 60 MB went through.
    assert!(db < 30_000_000, "the database grew to {db} bytes");
    assert!(wal < 30_000_000, "the log grew to {wal} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_share_a_file_share_nothing_else() {
    let at = Place::embedded();
    let mut other = at.spec.clone();
    other.name = "other".into();
    other.groups[0].from = "other".into();
    let (one, two) = (at.open().await, at.open_as(&other).await);
    let (mut to_one, mut to_two) = (one.writer().await.unwrap(), two.writer().await.unwrap());
    let step = |events| vec![moving("a", None, Some(1), events)];
    assert_eq!(to_one.append(&step(events(0..5))).await.unwrap(), [Appended::Durable]);
    assert_eq!(to_two.append(&step(events(5..7))).await.unwrap(), [Appended::Durable]);
    let (of_one, of_two) = (at.member(&one, "g").await, at.member(&two, "g").await);
    assert_eq!(numbers(&take(&of_one, 5).await), [0, 1, 2, 3, 4]);
    let held = take(&of_two, 2).await;
    assert_eq!((numbers(&held), &*held[0].stream), (vec![5, 6], "other"));
    of_two.bury(&held[0], "no").await.unwrap();
    assert!(one.dead().await.unwrap().is_empty());
    assert_eq!((length(&one).await, length(&two).await), (5, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_boot_of_the_machine_no_lease_counts() {
    let at = Place::embedded().lease(Duration::from_secs(3600));
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let reader = at.member(&backend, "g").await;
    take(&reader, 10).await;
    drop((reader, writer, backend));
    until("it is closed", async || !at.folder.path().join("streams.db-wal").exists()).await;
    // As another machine, or an earlier boot of this one, would have left it.
    let sooner = "UPDATE leases SET owner = 'x', deadline = 9000000000000000";
    sql(&database(&at), sooner).await;
    sql(&database(&at), "UPDATE meta SET value = 'earlier' WHERE key = 'boot'").await;
    let backend = at.open().await;
    let reader = at.member(&backend, "g").await;
    assert_eq!(reader.fetch(10, BYTES, Duration::ZERO).await.unwrap().len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_will_not_do_are_refused_with_the_remedy() {
    let at = Place::embedded();
    fs::write(database(&at), "this is a letter to a friend\n".repeat(200)).unwrap();
    let message = refusal(&at).await;
    assert!(message.contains("streams.db is not a database (give the stream another"), "{message}");

    let at = Place::embedded();
    sql(&database(&at), "CREATE TABLE addresses (name)").await;
    let message = refusal(&at).await;
    assert!(
        message.contains("a database of something else (give the stream a `path`"),
        "{message}"
    );
    sql(&database(&at), "INSERT INTO addresses VALUES ('untouched')").await;

    let at = Place::embedded();
    drop(at.open().await);
    until("it is closed", async || !at.folder.path().join("streams.db-wal").exists()).await;
    sql(&database(&at), "PRAGMA user_version = 7").await;
    let message = refusal(&at).await;
    assert!(message.contains("of version 7, and this program knows version 2"), "{message}");

    let at = Place::embedded();
    fs::create_dir(database(&at)).unwrap();
    let message = refusal(&at).await;
    assert!(message.contains("streams.db cannot be written (its folder and file"), "{message}");

    let at = Place::embedded();
    let file = at.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let path = file.join("streams.db").to_str().unwrap().to_owned();
    let at = at.with(|spec| spec.values.set("path", aqueduct::spec::Value::Str(path)));
    let message = refusal(&at).await;
    assert!(message.contains("failed to create the folder of"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_chunk_is_an_error_that_names_its_place() {
    let at = Place::embedded();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    drop((writer, backend));
    until("it is closed", async || !at.folder.path().join("streams.db-wal").exists()).await;
    sql(&database(&at), "UPDATE messages SET data = substr(data, 1, 50)").await;
    let backend = at.open().await;
    let reader = at.member(&backend, "g").await;
    let error = reader.fetch(10, BYTES, Duration::ZERO).await.unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("failed to read shard 0 at 0: a chunk of 50 bytes"), "{message}");
}

/// A file as version 1 left it: the first to open it brings it up to date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_version_is_brought_up_to_date() {
    let at = Place::embedded();
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..5)).await;
    drop(backend);
    until("it is closed", async || !at.folder.path().join("streams.db-wal").exists()).await;
    sql(
        &database(&at),
        "DROP TABLE owners; ALTER TABLE offsets DROP COLUMN shards;
         ALTER TABLE cursors DROP COLUMN ordered; ALTER TABLE members DROP COLUMN ordered;
         ALTER TABLE members DROP COLUMN lease; PRAGMA user_version = 1",
    )
    .await;
    let backend = at.open().await;
    assert_eq!(numbers(&finish(&at.member(&backend, "g").await, 5).await), [0, 1, 2, 3, 4]);
    drop(backend);
    sql(&database(&at), "SELECT epoch FROM owners").await;
}
