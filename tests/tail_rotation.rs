//! Files that are renamed, recreated, truncated, saved by an editor and deleted: every line that
//! was in a file while the tail could see it is stored once.
//!
//! `AQUEDUCT_ROTATIONS=1000` makes the random run long, `AQUEDUCT_SEED=…` repeats one.

#[path = "support/tailing.rs"]
mod tailing;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tailing::{Running, Setup, Stream, append};

#[tokio::test]
async fn a_renamed_file_is_followed_for_as_long_as_its_writer_goes_on() {
    let (setup, stream) = (Setup::new("log"), Stream::default());
    append(&setup.at("log"), "one\n");
    let running = setup.start(&stream);
    stream.until_lines(1).await;
    fs::rename(setup.at("log"), setup.at("log.1")).unwrap();
    append(&setup.at("log.1"), "two\n");
    stream.until_lines(2).await;
    append(&setup.at("log"), "three\n");
    stream.until_lines(3).await;
    append(&setup.at("log.1"), "late\n");
    stream.until_lines(4).await;
    running.stop().await;
    append(&setup.at("log.1"), "while down\n");
    let running = setup.start(&stream);
    stream.until_lines(5).await;
    running.stop().await;
    assert_eq!(stream.lines(), ["one", "two", "three", "late", "while down"]);
}

#[tokio::test]
async fn a_deleted_file_is_read_to_its_end_even_without_a_newline() {
    let (setup, stream) = (Setup::new("log"), Stream::default());
    let mut file = File::create(setup.at("log")).unwrap();
    writeln!(file, "one").unwrap();
    let running = setup.start(&stream);
    stream.until_lines(1).await;
    fs::remove_file(setup.at("log")).unwrap();
    append(&setup.at("log"), "other one\n");
    write!(file, "two\nthree").unwrap();
    stream.until_lines(4).await;
    running.stop().await;
    let mut lines = stream.lines();
    lines.sort();
    assert_eq!(lines, ["one", "other one", "three", "two"]);
}

#[tokio::test]
async fn what_a_truncation_took_is_read_from_the_copy_made_before() {
    let (setup, stream) = (Setup::new("log"), Stream::default());
    append(&setup.at("log"), "one\ntwo\n");
    let running = setup.start(&stream);
    stream.until_lines(2).await;
    running.stop().await;
    append(&setup.at("log"), "three\n");
    fs::copy(setup.at("log"), setup.at("log.1")).unwrap();
    fs::write(setup.at("log"), "one\nfour\n").unwrap();
    let running = setup.start(&stream);
    stream.until_lines(5).await;
    running.stop().await;
    let mut lines = stream.lines();
    lines.sort();
    assert_eq!(lines, ["four", "one", "one", "three", "two"]);
}

#[tokio::test]
async fn what_an_editor_saves_goes_on_where_it_was() {
    let (setup, stream) = (Setup::new("log"), Stream::default());
    append(&setup.at("log"), "one\ntwo");
    let running = setup.start(&stream);
    stream.until_lines(1).await;
    // One that replaces the file by a new one.
    append(&setup.at(".new"), "one\ntwo\nthree\n");
    fs::rename(setup.at(".new"), setup.at("log")).unwrap();
    stream.until_lines(3).await;
    // One that keeps the old one under a backup name.
    append(&setup.at(".new"), "one\ntwo\nthree\nfour\n");
    fs::rename(setup.at("log"), setup.at("log~")).unwrap();
    fs::rename(setup.at(".new"), setup.at("log")).unwrap();
    stream.until_lines(4).await;
    running.stop().await;
    // And while nobody looks.
    append(&setup.at(".new"), "one\ntwo\nthree\nfour\nfive\n");
    fs::rename(setup.at("log"), setup.at("log~")).unwrap();
    fs::rename(setup.at(".new"), setup.at("log")).unwrap();
    let running = setup.start(&stream);
    stream.until_lines(5).await;
    append(&setup.at("log"), "six\n");
    stream.until_lines(6).await;
    running.stop().await;
    assert_eq!(stream.lines(), ["one", "two", "three", "four", "five", "six"]);
    assert_eq!(stream.state().generations(), 1, "it was one generation all along");
}

/// More files than are kept open: those that were closed may be deleted, and their inodes become
/// other files.
#[tokio::test]
async fn a_save_into_the_inode_of_a_deleted_file_goes_on_where_it_was() {
    const OTHERS: usize = 300;
    let (setup, stream) = (Setup::new("log*"), Stream::default());
    for n in 0..OTHERS {
        append(&setup.at(&format!("log.{n}")), format!("other {n}\n"));
    }
    let mut content = "line 0\n".to_owned();
    append(&setup.at("log"), &content);
    let running = setup.start(&stream);
    stream.until_lines(OTHERS + 1).await;
    for n in 0..60 {
        fs::remove_file(setup.at(&format!("log.{n}"))).unwrap();
        content += &format!("line {}\n", n + 1);
        append(&setup.at(".new"), &content);
        fs::rename(setup.at(".new"), setup.at("log")).unwrap();
        stream.until_lines(OTHERS + 2 + n).await;
    }
    running.stop().await;
    let lines = stream.lines();
    let ours = lines.iter().filter(|line| line.starts_with("line")).cloned().collect::<Vec<_>>();
    assert_eq!(ours.join("\n") + "\n", content);
    assert_eq!(stream.state().generations(), OTHERS + 1, "it was one generation all along");
}

#[tokio::test]
async fn the_same_lines_in_a_renamed_and_a_new_file_are_different_events() {
    let (setup, stream) = (Setup::new("log"), Stream::default());
    append(&setup.at("log"), "ok\n".repeat(200));
    let running = setup.start(&stream);
    stream.until_lines(200).await;
    running.stop().await;
    fs::rename(setup.at("log"), setup.at("log.1")).unwrap();
    append(&setup.at("log"), "ok\n".repeat(300));
    let running = setup.start(&stream);
    stream.until_lines(500).await;
    fs::rename(setup.at("log"), setup.at("log.2")).unwrap();
    append(&setup.at("log"), "ok\n".repeat(400));
    stream.until_lines(900).await;
    running.stop().await;
    assert_eq!(stream.lines().len(), 900);
}

const TITLE: &str = "# the same first line in every file";

/// A log that is written and rotated at random, and what must have become of it.
struct Rotation {
    setup: Setup,
    stream: Stream,
    /// Another tail of the same file, with a data directory of its own.
    second: Option<Setup>,
    running: Vec<Running>,
    random: fastrand::Rng,
    log: PathBuf,
    file: File,
    /// The lines of each generation, in order.
    written: Vec<Vec<String>>,
    expected: usize,
    /// A line that was written since the log is the file it is.
    mark: Option<String>,
    number: usize,
    renamed: Vec<PathBuf>,
    /// What the stream held some time ago; nothing was deleted since: a file that is gone, and of
    /// which the stream has forgotten what it held, cannot be told from its successor.
    older: Option<Vec<aqueduct::source::Slot>>,
    same_inode: usize,
}

impl Rotation {
    fn new(seed: u64, tails: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let setup = Setup::new(if random.bool() { "log" } else { "log*" });
        let log = setup.at("log");
        let file = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        let stream = Stream::default();
        let second = (tails > 1).then(|| setup.elsewhere(".data2"));
        Self {
            setup,
            second,
            stream,
            running: Vec::new(),
            random,
            log,
            file,
            written: vec![Vec::new()],
            expected: 0,
            mark: None,
            number: 0,
            renamed: Vec::new(),
            older: None,
            same_inode: 0,
        }
    }

    /// Some lines that nothing else holds, but for the title that a file may start with.
    fn lines(&mut self) -> String {
        let lines = self.written.last_mut().unwrap();
        let before = lines.len();
        if lines.is_empty() && self.random.bool() {
            lines.push(TITLE.to_owned());
        }
        for _ in 0..self.random.usize(1..60) {
            lines.push(format!("{} {}", self.number, "x".repeat(self.random.usize(..80))));
            self.number += 1;
        }
        self.mark = lines.last().cloned();
        self.expected += lines.len() - before;
        lines[before..].join("\n") + "\n"
    }

    /// Writes lines, in pieces that end anywhere.
    fn write(&mut self) {
        let text = self.lines();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let piece = self.random.usize(1..=rest.len().min(700));
            self.file.write_all(&rest[..piece]).unwrap();
            rest = &rest[piece..];
        }
    }

    fn start(&mut self) {
        if self.running.is_empty() {
            let setups = std::iter::once(&self.setup).chain(&self.second);
            self.running = setups.map(|setup| setup.start(&self.stream)).collect();
        }
    }

    async fn stop(&mut self) {
        for running in std::mem::take(&mut self.running) {
            running.stop().await;
        }
    }

    async fn caught_up(&mut self) {
        self.start();
        let start = std::time::Instant::now();
        while self.stream.state().sink.len() < self.expected {
            if start.elapsed() > tailing::PATIENCE {
                self.verify();
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// The tail has seen that the log is the file it is.
    async fn seen(&mut self) {
        self.start();
        let mark = self.mark.clone().expect("a line was written");
        let find = |state: &tailing::State| {
            state.sink.iter().rev().take(500).any(|event| event.body == mark.as_bytes())
        };
        self.stream.until(&format!("line {mark:?}"), find).await;
    }

    fn open_new(&mut self) {
        let path = &self.log;
        self.file = OpenOptions::new().append(true).create_new(true).open(path).unwrap();
        self.written.push(Vec::new());
        self.mark = None;
    }

    fn rename(&mut self) {
        let name = self.setup.at(&format!("log.{}", self.number));
        fs::rename(&self.log, &name).unwrap();
        self.renamed.push(name);
    }

    fn rename_and_recreate(&mut self) {
        self.rename();
        self.open_new();
        self.write();
    }

    /// The writer keeps its handle for a while, and once more after the new file is there.
    fn rename_under_the_writer(&mut self) {
        self.rename();
        for _ in 0..self.random.usize(..3) {
            self.write();
        }
        let mut old = self.file.try_clone().unwrap();
        self.open_new();
        self.write();
        let late = format!("{} late", self.number);
        self.number += 1;
        self.expected += 1;
        writeln!(old, "{late}").unwrap();
        let generations = self.written.len();
        self.written[generations - 2].push(late);
    }

    async fn delete_and_recreate(&mut self) {
        self.caught_up().await;
        self.older = None;
        fs::remove_file(&self.log).unwrap();
        self.open_new();
        self.write();
    }

    /// Deleted and recreated, if the file system plays along as the same inode, with the same
    /// first line.
    async fn recreate_as_the_same_inode(&mut self) {
        self.caught_up().await;
        self.stop().await;
        let inode = self.file.metadata().unwrap().ino();
        let first = self.written.last().unwrap()[0].clone();
        fs::remove_file(&self.log).unwrap();
        self.file = File::open("/dev/null").unwrap();
        self.open_new();
        self.same_inode += usize::from(self.file.metadata().unwrap().ino() == inode);
        writeln!(self.file, "{first}").unwrap();
        self.written.last_mut().unwrap().push(first);
        self.expected += 1;
        self.write();
        self.older = None;
    }

    /// Truncated in place, then some of the same lines again.
    async fn truncate_to_the_same_lines(&mut self) {
        self.caught_up().await;
        let lines = self.written.last().unwrap();
        let same = lines[..self.random.usize(1..lines.len().max(2))].to_vec();
        if same.len() == lines.len() {
            return;
        }
        self.file.set_len(0).unwrap();
        self.file.write_all((same.join("\n") + "\n").as_bytes()).unwrap();
        self.expected += same.len();
        self.written.push(same);
        // Until this was seen it must not grow past what was there before.
        self.caught_up().await;
    }

    /// Written anew beside, with more lines, and put in its place.
    fn save(&mut self) {
        let new = self.setup.at(".new");
        let text = self.lines();
        fs::copy(&self.log, &new).unwrap();
        append(&new, text);
        fs::rename(&new, &self.log).unwrap();
        self.file = OpenOptions::new().append(true).open(&self.log).unwrap();
    }

    /// Deletes a renamed file that nobody writes any more.
    async fn clean_up(&mut self) {
        self.caught_up().await;
        self.older = None;
        if !self.renamed.is_empty() {
            let old = self.random.usize(..self.renamed.len());
            fs::remove_file(self.renamed.swap_remove(old)).unwrap();
        }
    }

    /// The stream comes back older, and all that can still be read again is.
    async fn go_back(&mut self) {
        let Some(older) = self.older.take() else { return };
        println!("back");
        let rewinds = self.stream.state().rewinds;
        self.stream.restore(older);
        self.write();
        self.stream.until("a rewind", |state| state.rewinds > rewinds).await;
        let meta = self.file.metadata().unwrap();
        let place = format!("\"inode\":{},\"tail\"", meta.ino());
        let read = |position: &aqueduct::source::Position| {
            position.order == meta.len() && position.note.contains(&place)
        };
        self.stream.until("all again", |state| state.slots.values().any(read)).await;
        self.caught_up().await;
    }

    async fn rotate(&mut self) {
        self.write();
        self.seen().await;
        if self.random.bool() {
            self.write();
        }
        match self.random.usize(..12) {
            0 | 1 => self.older = Some(self.stream.slots()),
            2 | 3 => self.go_back().await,
            _ => {}
        }
        let what = self.random.usize(..10);
        println!("{what} after line {}", self.number);
        match what {
            // What one of two tails sees of a truncation or a save, the other may not.
            5 | 6 | 8 if self.second.is_some() => {}
            0 | 1 => self.rename_and_recreate(),
            2 => self.rename_under_the_writer(),
            3 => self.delete_and_recreate().await,
            4 => self.recreate_as_the_same_inode().await,
            5 => self.truncate_to_the_same_lines().await,
            6 => self.save(),
            7 => {
                self.stop().await;
                self.write();
                self.rename_and_recreate();
            }
            8 => {
                self.stop().await;
                self.save();
            }
            _ => self.clean_up().await,
        }
    }

    /// Each line as often as it was written, and those of a file in order.
    fn verify(&self) {
        let stored = self.stream.lines();
        let mut expected: Vec<&str> = self.written.iter().flatten().map(String::as_str).collect();
        let mut found: Vec<&str> = stored.iter().map(String::as_str).collect();
        expected.sort_unstable();
        found.sort_unstable();
        let count =
            |lines: &[&str], line: &str| lines.iter().filter(|other| **other == line).count();
        if found != expected {
            let mut all: Vec<&str> = found.iter().chain(&expected).copied().collect();
            all.sort_unstable();
            all.dedup();
            all.retain(|line| count(&found, line) != count(&expected, line));
            for line in &all {
                println!("{} for {}: {line}", count(&found, line), count(&expected, line));
            }
            panic!("{} lines are not there as often as they were written", all.len());
        }
        let at: std::collections::HashMap<&str, usize> =
            stored.iter().enumerate().map(|(at, line)| (line.as_str(), at)).collect();
        let mut seen = std::collections::HashMap::new();
        self.written.iter().flatten().for_each(|line| *seen.entry(line.as_str()).or_insert(0) += 1);
        for lines in &self.written {
            let unique = lines.iter().filter(|line| seen[line.as_str()] == 1);
            let places: Vec<usize> = unique.map(|line| at[line.as_str()]).collect();
            assert!(places.is_sorted(), "the order within a file is kept");
        }
    }
}

async fn rotate_at_random(tails: usize, rotations: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("AQUEDUCT_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rotations = number("AQUEDUCT_ROTATIONS").unwrap_or(rotations);
    println!("AQUEDUCT_SEED={seed} AQUEDUCT_ROTATIONS={rotations}");
    let mut rotation = Rotation::new(seed, tails);
    for _ in 0..rotations {
        rotation.rotate().await;
    }
    rotation.caught_up().await;
    rotation.stop().await;
    rotation.verify();
    println!(
        "{} lines, {} generations, {} times the same inode, {} rewinds",
        rotation.expected,
        rotation.written.len(),
        rotation.same_inode,
        rotation.stream.state().rewinds
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_that_could_be_seen_is_stored_once() {
    rotate_at_random(1, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_that_two_tails_could_see_is_stored_once() {
    rotate_at_random(2, 60).await;
}
