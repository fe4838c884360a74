//! The examples as real programs, and what tests do with these.

#![allow(dead_code)] // Every test file uses another part of it.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::process::Place;

/// How long others have to take over what a stopped consumer holds: a few leases.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Whether it comes true in time.
pub fn within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    while !holds() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// One of the examples, next to the directory of this test's program.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{path:?} is missing: cargo build --all-features --examples");
    path
}

/// A stream at a URL, and a directory to run in.
pub struct Orders {
    pub place: Place,
    pub url: String,
    pub shards: u32,
}

impl Orders {
    pub fn at(url: impl Into<String>) -> Self {
        Self { place: Place::new(""), url: url.into(), shards: 3 }
    }

    pub fn command(&self, name: &str, args: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(example(name));
        command.arg(&self.url).args(args).current_dir(self.place.dir.path());
        command.env("SHARDS", self.shards.to_string()).envs(variables.iter().copied());
        command
    }

    pub fn publish(&self, count: u64, variables: &[(&str, &str)]) {
        let done = self.command("producer", &["orders", &count.to_string()], variables).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn consume(&self, name: &str, variables: &[(&str, &str)]) -> Program {
        let log = self.place.path(&format!("{name}.log"));
        let file = std::fs::File::create(&log).unwrap();
        let mut command = self.command("consumer", &["orders", "billing", "book.db"], variables);
        command.env("NAME", name).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Program { child: command.spawn().unwrap(), log }
    }

    /// A consumer of an ordered group.
    pub fn keep_in_order(&self, name: &str) -> Program {
        let log = self.place.path(&format!("{name}.log"));
        let file = std::fs::File::create(&log).unwrap();
        let mut command = self.command("ordered", &["orders", "ledger", "ledger.db"], &[]);
        // What dies with its consumer again and again is not to blame here.
        command.envs([
            ("LEASE_MS", "600"),
            ("WORK_MS", "15"),
            ("BATCH", "40"),
            ("ATTEMPTS", "1000"),
        ]);
        command.env("NAME", name).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Program { child: command.spawn().unwrap(), log }
    }

    pub fn booked(&self) -> i64 {
        match self.place.path("book.db").exists() {
            true => self.place.count("book.db", "SELECT count(*) FROM book"),
            false => 0,
        }
    }

    /// Each order from 1 to `count` is in the book, once.
    pub fn check(&self, count: u64) {
        let numbers: Vec<(i64,)> =
            self.place.rows("book.db", "SELECT number FROM book ORDER BY number");
        let numbers: Vec<u64> = numbers.into_iter().map(|row| row.0 as u64).collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
    }
}

/// An example that runs. It is killed when this is dropped.
pub struct Program {
    pub child: Child,
    pub log: PathBuf,
}

impl Program {
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Whether it would end in order: a signal that comes before ends it at once.
    pub fn catches_interrupts(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        caught & 1 << (Signal::INT.as_raw() - 1) != 0
    }

    pub fn handled(&self) -> usize {
        self.said().lines().filter(|line| line.contains("booked")).count()
    }

    pub fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        (status, self.said())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {:?} said ---\n{}", self.log, self.said());
        }
    }
}
