//! What a process keeps beside a database: chunks that were appended or read of late, and who
//! waits for events.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::lock;
use crate::client::said::Telling;
use crate::event::{Event, hash};

/// Chunks in the cache, at most.
const CHUNKS: usize = 1024;
/// Bytes in the cache, at most, beside its newest chunk.
const BYTES: usize = 4 * 1024 * 1024;

/// Events that follow each other in a shard.
#[derive(Clone, Debug)]
pub(in crate::stream) struct Chunk {
    /// The offset of the first.
    pub first: u64,
    /// The events.
    pub events: Arc<[Event]>,
    /// The checksum that ends the packed chunk.
    pub sum: [u8; 8],
}

impl Chunk {
    /// The offset after the last.
    pub fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

/// The chunks, oldest first, unpacked: a group that keeps up never reads from the disk, and a
/// small batch does not unpack a whole chunk again.
#[derive(Debug, Default)]
struct Cache {
    generation: u64,
    chunks: VecDeque<Cached>,
    bytes: usize,
}

#[derive(Debug)]
struct Cached {
    stream: i64,
    shard: u32,
    chunk: Chunk,
    bytes: usize,
}

impl Cache {
    fn get(&self, stream: i64, shard: u32, offset: u64) -> Option<Chunk> {
        let holds = |chunk: &Chunk| (chunk.first..chunk.end()).contains(&offset);
        let mut newest_first = self.chunks.iter().rev();
        newest_first
            .find(|at| at.stream == stream && at.shard == shard && holds(&at.chunk))
            .map(|found| found.chunk.clone())
    }

    fn put(&mut self, stream: i64, shard: u32, chunk: Chunk) {
        let bytes = chunk.events.iter().map(Event::size).sum();
        self.bytes += bytes;
        self.chunks.push_back(Cached { stream, shard, chunk, bytes });
        while self.chunks.len() > CHUNKS || (self.bytes > BYTES && self.chunks.len() > 1) {
            let Some(Cached { bytes, .. }) = self.chunks.pop_front() else { break };
            self.bytes -= bytes;
        }
    }
}

/// What is to happen once a transaction is committed.
#[derive(Debug, Default)]
pub(in crate::stream) struct Outbox {
    /// Chunks that it stored.
    chunks: Vec<(i64, u32, Chunk)>,
    /// Streams, or groups of them, whose waiting members find something now.
    wakes: Vec<(Arc<str>, Option<Arc<str>>)>,
}

impl Outbox {
    /// A chunk was stored at a stream's shard.
    pub fn store(&mut self, stream: i64, shard: u32, chunk: Chunk) {
        self.chunks.push((stream, shard, chunk));
    }

    /// There is something for the members of every group of `stream` (or of one).
    pub fn wake(&mut self, stream: &Arc<str>, group: Option<&Arc<str>>) {
        let wake = (stream.clone(), group.cloned());
        if !self.wakes.contains(&wake) {
            self.wakes.push(wake);
        }
    }

    /// Whom to wake.
    pub fn wakes(&self) -> &[(Arc<str>, Option<Arc<str>>)] {
        &self.wakes
    }
}

/// When a stream was last tended, and whether it is being tended.
#[derive(Clone, Copy, Debug)]
enum Tended {
    Now,
    At(Instant),
}

/// Numbers of shards, by database and stream.
type Numbers = HashMap<(u64, Arc<str>), u32>;

/// Those that this process runs with. They outlive what it keeps beside a database, which goes
/// with the last who has that open, and who failed opens it again.
static NUMBERS: LazyLock<Mutex<Numbers>> = LazyLock::new(Mutex::default);

/// A stream's name and a group's.
type GroupName = (String, String);

/// What this process keeps beside a database.
#[derive(Debug, Default)]
pub(in crate::stream) struct Local {
    /// Tells the database from others.
    place: u64,
    cache: Mutex<Cache>,
    signals: Mutex<HashMap<GroupName, Arc<Notify>>>,
    tended: Mutex<HashMap<Arc<str>, Tended>>,
    /// What was said of tending that failed.
    pub tidied: Telling,
}

impl Local {
    /// What is kept beside the database at `place`.
    pub fn beside(place: &str) -> Self {
        Self { place: hash(place.as_bytes()), ..Self::default() }
    }

    /// How many shards a stream has, as this process knows that runs with it.
    pub fn shards(&self, stream: &Arc<str>) -> Option<u32> {
        lock(&NUMBERS).get(&(self.place, stream.clone())).copied()
    }

    /// This process runs with so many shards of a stream; `None`: the stream is gone.
    pub fn set_shards(&self, stream: &Arc<str>, shards: Option<u32>) {
        let (mut numbers, key) = (lock(&NUMBERS), (self.place, stream.clone()));
        match shards {
            Some(shards) => numbers.insert(key, shards),
            None => numbers.remove(&key),
        };
    }

    /// The chunk that holds this offset of a stream's shard.
    pub fn chunk(&self, stream: i64, shard: u32, offset: u64) -> Option<Chunk> {
        lock(&self.cache).get(stream, shard, offset)
    }

    /// Keeps a chunk, until newer ones push it out. One of an earlier opening of the database is
    /// not kept: by now another may stand in its place.
    pub fn keep(&self, generation: u64, stream: i64, shard: u32, chunk: Chunk) {
        let mut cache = lock(&self.cache);
        if generation == cache.generation {
            cache.put(stream, shard, chunk);
        }
    }

    /// Forgets all chunks of earlier openings of the database.
    pub fn clear(&self, generation: u64) {
        let mut cache = lock(&self.cache);
        if cache.generation < generation {
            *cache = Cache { generation, ..Cache::default() };
        }
    }

    /// A transaction is committed.
    pub fn deliver(&self, generation: u64, outbox: Outbox) {
        for (stream, shard, chunk) in outbox.chunks {
            self.keep(generation, stream, shard, chunk);
        }
        for (stream, group) in outbox.wakes {
            self.wake(&stream, group.as_deref());
        }
    }

    /// What wakes the members of a group; or, where that has a NUL and a member's name behind it,
    /// that member alone.
    pub fn signal(&self, stream: &str, group: &str) -> Arc<Notify> {
        lock(&self.signals).entry((stream.to_owned(), group.to_owned())).or_default().clone()
    }

    /// Wakes a member of each group of `stream` (or of one), and each that has a signal of its own.
    pub fn wake(&self, stream: &str, group: Option<&str>) {
        for ((of, name), signal) in &*lock(&self.signals) {
            if of == stream && group.is_none_or(|group| Some(group) == name.split('\0').next()) {
                signal.notify_one();
            }
        }
    }

    /// Wakes a member of each group there is.
    pub fn wake_all(&self) {
        lock(&self.signals).values().for_each(|signal| signal.notify_one());
    }

    /// Whether a stream was not tended for `every`; if so, it is up to the caller, until it calls
    /// [`Local::tended`].
    pub fn is_to_be_tended(&self, stream: &Arc<str>, every: Duration) -> bool {
        let mut tended = lock(&self.tended);
        let last = tended.entry(stream.clone()).or_insert(Tended::At(Instant::now()));
        let due = matches!(last, Tended::At(at) if at.elapsed() >= every);
        if due {
            *last = Tended::Now;
        }
        due
    }

    /// The stream has been tended.
    pub fn tended(&self, stream: &Arc<str>) {
        lock(&self.tended).insert(stream.clone(), Tended::At(Instant::now()));
    }
}
