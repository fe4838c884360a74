//! The disk is full: clear errors, nothing lost or doubled, and on it goes when there is room.

#[path = "support/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Place, eventually, lines};

const LINES: usize = 60_000;

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "small/data"

[http]
listen = "127.0.0.1:{port}"

[source.input]
kind = "tail"
path = "in.log"
to = "lines"

[stream.lines]

[group.db]
from = "lines"
to = "db"
lease = "2s"

[group.out]
from = "lines"
to = "out"
lease = "2s"

[sink.db]
kind = "sqlite"
path = "small/out.db"
table = "lines"
columns = { event_id = "@id", line = "@body" }

[sink.out]
kind = "file"
path = "small/out.log"
"#;

/// A file system of its own, a few MiB large. Unmounted when dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where mounting is not allowed.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mounted = Self::run(&["-t", "tmpfs", "-o", "size=10m", "tmpfs"], at);
        mounted.then(|| Self(at.to_owned()))
    }

    fn grow(&self) {
        assert!(Self::run(&["-o", "remount,size=400m"], &self.0));
    }

    fn run(args: &[&str], at: &Path) -> bool {
        let output = Command::new("mount").args(args).arg(at).output();
        output.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_loses_nothing_and_is_over_when_there_is_room() {
    let place = Place::new(TOPOLOGY);
    let Some(small) = Small::mount(&place.path("small")) else {
        println!("not run: mounting a small file system needs root");
        return;
    };
    let text: String =
        (0..LINES).map(|n| format!("line {n:06} {}\n", "x".repeat(n % 300))).collect();
    std::fs::write(place.path("in.log"), text).unwrap();
    let running = place.start();
    eventually("an error that says so", || {
        let (status, health) = running.get("/healthz");
        status == 503 && health.contains("full")
    });
    small.grow();
    eventually("everything", || {
        let (_, streams) = running.get("/streams");
        let streams: serde_json::Value = serde_json::from_str(&streams).unwrap_or_default();
        let groups = streams[0]["groups"].as_array().cloned().unwrap_or_default();
        running.metric("aqueduct_events_published", "") >= LINES as f64
            && groups.len() == 2
            && groups.iter().all(|group| group["lag"] == 0 && group["pending"] == 0)
    });
    eventually("health", || running.get("/healthz").0 == 200);
    assert_eq!(running.metric("aqueduct_dead_letters", ""), 0.0);
    assert!(running.stop().success());

    let wanted = lines(&place.path("in.log"));
    let stored = place.rows::<(Vec<u8>,)>(
        "small/out.db",
        "SELECT CAST(line AS BLOB) FROM lines ORDER BY event_id",
    );
    assert!(stored.into_iter().map(|row| row.0).eq(wanted.iter().cloned()), "the table");
    let mut written = lines(&place.path("small/out.log"));
    written.sort();
    assert!(written == wanted, "the file");
}
