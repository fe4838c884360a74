//! Runs a tail as its actor would, several batches ahead of a stream's answers, against a stand-in
//! of the stream: compare and append in memory, and a sink behind it that keeps one event an id.
#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aqueduct::event::{Event, EventId};
use aqueduct::source::door::Door;
use aqueduct::source::{Batch, Dead, Outcome, Position, Pull, Slot, SourceSpec, tail};
use aqueduct::spec::{Site, Value, Values};
use sqlx::Connection;
use tokio::sync::watch;

/// How long a condition may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the stream holds, and what the sink behind it has.
#[derive(Default)]
pub struct State {
    pub slots: BTreeMap<String, Position>,
    pub appended: Vec<Event>,
    pub sink: Vec<Event>,
    pub dead: Vec<Dead>,
    pub rewinds: usize,
    ids: HashSet<EventId>,
}

impl State {
    /// How many generations have a checkpoint.
    pub fn generations(&self) -> usize {
        self.slots.values().filter(|position| position.note.contains("birth")).count()
    }
}

/// The stand-in; a clone is the same stream.
#[derive(Clone, Default)]
pub struct Stream(Arc<Mutex<State>>);

impl Stream {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn slots(&self) -> Vec<Slot> {
        self.state().slots.clone().into_iter().collect()
    }

    /// Puts the checkpoint back, as a stream does that comes back older. The sink keeps all.
    pub fn restore(&self, slots: Vec<Slot>) {
        self.state().slots = slots.into_iter().collect();
    }

    /// Compare and append. `false`: rewound.
    pub fn append(&self, batch: &Batch) -> bool {
        let mut state = self.state();
        if batch.moves.iter().any(|step| state.slots.get(&step.slot) != step.from.as_ref()) {
            state.rewinds += 1;
            return false;
        }
        let names: HashSet<&str> = batch.moves.iter().map(|step| step.slot.as_str()).collect();
        assert_eq!(names.len(), batch.moves.len(), "one step a slot and batch");
        for step in &batch.moves {
            match step.to.clone() {
                Some(to) => state.slots.insert(step.slot.clone(), to),
                None => state.slots.remove(&step.slot),
            };
        }
        state.appended.extend(batch.events.iter().cloned());
        state.dead.extend(batch.dead.iter().cloned());
        for event in &batch.events {
            if state.ids.insert(event.id) {
                state.sink.push(event.clone());
            }
        }
        true
    }

    /// The lines in the sink, in order.
    pub fn lines(&self) -> Vec<String> {
        let state = self.state();
        state.sink.iter().map(|event| String::from_utf8_lossy(&event.body).into_owned()).collect()
    }

    pub async fn until(&self, what: &str, mut holds: impl FnMut(&State) -> bool) {
        let start = Instant::now();
        while !holds(&self.state()) {
            if start.elapsed() > PATIENCE {
                panic!("{what}: not within {PATIENCE:?}, there are {} lines", self.lines().len());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn until_lines(&self, count: usize) {
        self.until(&format!("{count} lines"), |state| state.sink.len() >= count).await;
    }
}

/// A tail's part of a topology, and a directory of its own for it.
pub struct Setup {
    pub dir: Arc<tempfile::TempDir>,
    pub spec: SourceSpec,
    pub site: Site,
}

impl Setup {
    /// Tails `path` in a new directory.
    pub fn new(path: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut values = Values::default();
        values.set("path", Value::Str(dir.path().join(path).to_str().unwrap().to_owned()));
        values.set("start", Value::Str("beginning".into()));
        values.set("max_line", Value::Int(1 << 20));
        let spec = SourceSpec {
            door: Door::new(1),
            name: "lines".into(),
            kind: &tail::KIND,
            to: "stream".into(),
            origin: "lines".into(),
            key: None,
            counter: None,
            values,
        };
        let data_dir = dir.path().join(".data");
        let site = Site { data_dir, instance: "test".into(), until_idle: false, runs: true };
        Self { dir, spec, site }
    }

    pub fn with(mut self, key: &'static str, value: Value) -> Self {
        self.spec.values.set(key, value);
        self
    }

    pub fn until_idle(mut self) -> Self {
        self.site.until_idle = true;
        self
    }

    /// The same with another data directory.
    pub fn elsewhere(&self, data_dir: &str) -> Self {
        let site = Site { data_dir: self.dir.path().join(data_dir), ..self.site.clone() };
        Self { dir: self.dir.clone(), spec: self.spec.clone(), site }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&self, stream: &Stream) -> Running {
        let (stop, stopped) = watch::channel(false);
        let task = run(self.spec.clone(), self.site.clone(), stream.clone(), stopped);
        Running { stop, task: tokio::spawn(task) }
    }

    async fn registry(&self) -> sqlx::Result<sqlx::SqliteConnection> {
        let url = format!("sqlite:{}", self.site.data_dir.join("sources.db").display());
        sqlx::SqliteConnection::connect(&url).await
    }

    /// Changes what the tail remembers.
    pub async fn alter_registry(&self, sql: &'static str) {
        let mut database = self.registry().await.unwrap();
        sqlx::query(sql).execute(&mut database).await.unwrap();
    }

    /// Returns once the first look is written down.
    pub async fn until_looked(&self) {
        let start = Instant::now();
        loop {
            if let Ok(mut database) = self.registry().await {
                let looked = sqlx::query("SELECT 1 FROM tail_sources").fetch_one(&mut database);
                if looked.await.is_ok() {
                    return;
                }
            }
            assert!(start.elapsed() < PATIENCE, "no first look within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs until the source is spent.
    pub async fn finish(&self, stream: &Stream) {
        let running = self.start(stream);
        tokio::time::timeout(PATIENCE, running.task).await.expect("it ends").unwrap();
    }
}

/// A running tail.
pub struct Running {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Ends it at once, with whatever is in hand.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.task.await.unwrap();
    }
}

async fn run(spec: SourceSpec, site: Site, stream: Stream, mut stopped: watch::Receiver<bool>) {
    const AHEAD: usize = 4;
    let mut source = (spec.kind.open)(&spec, &site, 1).unwrap();
    source.seek(&stream.slots()).await.unwrap();
    let mut ahead: VecDeque<Batch> = VecDeque::new();
    let mut spent = false;
    while !*stopped.borrow() {
        let mut idle = spent;
        while ahead.len() < AHEAD && !idle {
            match source.next().await.unwrap() {
                Pull::Batch(batch) => {
                    assert!(batch.events.len() + batch.dead.len() <= 1000, "a batch is bounded");
                    ahead.push_back(batch);
                }
                Pull::Idle => idle = true,
                Pull::Spent => (idle, spent) = (true, true),
            }
        }
        match ahead.pop_front() {
            Some(batch) if stream.append(&batch) => {
                source.answered(&batch.moves, Outcome::Durable);
            }
            Some(_) => {
                ahead.clear();
                spent = false;
                source.seek(&stream.slots()).await.unwrap();
            }
            None if spent => return,
            None => {
                tokio::select! {
                    () = source.wait() => {}
                    _ = stopped.changed() => {}
                }
            }
        }
    }
}

/// Appends to a file, which is made where it is missing.
pub fn append(path: &Path, bytes: impl AsRef<[u8]>) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(bytes.as_ref()).unwrap();
}
