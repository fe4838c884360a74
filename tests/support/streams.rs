//! What the tests of stream backends share: a place for a stream of its own, events, and members.

#![allow(dead_code)] // Every test file uses another part of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aqueduct::event::{Delivery, Event, EventId, Origin, Sequence, Ticket};
use aqueduct::source::{Move, Position};
use aqueduct::spec::{Site, Value, Values};
use aqueduct::stream::{
    self, Append, Appended, Backend, GroupSpec, GroupStatus, Reader, ReaderSpec, Retain,
    StreamSpec, Writer,
};
use tempfile::TempDir;

#[path = "servers.rs"]
pub mod servers;
use servers::{Postgres, Rabbit, Redis, RedisCluster};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test looks on where nothing must happen.
pub const GLANCE: Duration = Duration::from_millis(400);
/// A batch's size, where it does not matter.
pub const BYTES: usize = 4 << 20;

/// Where a stream is that no other test knows.
pub struct Place {
    /// As a topology file would have it. A test may change it before it opens the stream.
    pub spec: StreamSpec,
    /// Removed with the place.
    pub folder: TempDir,
    members: AtomicU32,
}

impl Place {
    /// A place for the embedded backend.
    pub fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("streams.db");
        Self::embedded_at(&path, folder)
    }

    /// The place that another process of the test has the stream at.
    pub fn embedded_of_another(folder: &Path) -> Self {
        Self::embedded_at(&folder.join("streams.db"), tempfile::tempdir_in(folder).unwrap())
    }

    fn embedded_at(path: &Path, folder: TempDir) -> Self {
        let path = path.to_str().unwrap().to_owned();
        let mut values = Values::default();
        values.set("path", Value::Str(path));
        Self::new("embedded", values, folder)
    }

    /// A place in a Redis server that the tests of this process share.
    pub fn redis() -> Self {
        static SERVER: OnceLock<Redis> = OnceLock::new();
        Self::redis_at(&[SERVER.get_or_init(Redis::start).url()])
    }

    /// A place in a Redis Cluster that the tests of this process share.
    pub fn redis_cluster() -> Self {
        static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
        Self::redis_at(&CLUSTER.get_or_init(RedisCluster::start).urls())
    }

    /// A place in the server, or the Redis Cluster, at these URLs.
    pub fn redis_at(urls: &[String]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut values = Values::default();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        values.set("url", Value::List(urls.to_vec()));
        values.set("key", Value::Str(format!("s{number}")));
        values.set("field", Value::Str("body".into()));
        Self::new("redis", values, tempfile::tempdir().unwrap())
    }

    /// A place in a database of its own, in a server that the tests of this process share.
    pub fn postgres() -> Self {
        Self::postgres_at(&Postgres::shared().database())
    }

    /// A place in this database.
    pub fn postgres_at(url: &str) -> Self {
        let mut values = Values::default();
        values.set("url", Value::Str(url.to_owned()));
        values.set("schema", Value::Str("aqueduct".to_owned()));
        Self::new("postgres", values, tempfile::tempdir().unwrap())
    }

    /// A place in a RabbitMQ server that the tests of this process share, with queues of this
    /// type.
    pub fn rabbitmq(queue_type: &str) -> Self {
        Self::rabbitmq_at(&Rabbit::shared().vhost(), queue_type)
    }

    /// A place in the virtual host at this URL.
    pub fn rabbitmq_at(url: &str, queue_type: &str) -> Self {
        let mut values = Values::default();
        values.set("url", Value::Str(url.into()));
        values.set("queue_type", Value::Str(queue_type.into()));
        Self::new("rabbitmq", values, tempfile::tempdir().unwrap())
    }

    fn new(kind: &str, values: Values, folder: TempDir) -> Self {
        let kind = stream::KINDS.iter().find(|known| known.name == kind).unwrap();
        let spec = StreamSpec {
            name: "s".into(),
            kind,
            shards: 1,
            retain: Retain::Acked,
            max_backlog: 10_000_000,
            groups: vec![group("g")],
            values,
        };
        Self { spec, folder, members: AtomicU32::new(0) }
    }

    /// Opens the stream as this process.
    pub async fn open(&self) -> Arc<dyn Backend> {
        self.open_as(&self.spec).await
    }

    /// Opens it with another spec.
    pub async fn open_as(&self, spec: &StreamSpec) -> Arc<dyn Backend> {
        (spec.kind.open)(spec.clone(), self.site()).await.unwrap()
    }

    /// This process, as the backend knows it.
    pub fn site(&self) -> Site {
        let data_dir = self.folder.path().to_owned();
        Site { data_dir, instance: "here".into(), until_idle: false, runs: true }
    }

    /// A new member of the stream's group of that name.
    pub async fn member(&self, backend: &Arc<dyn Backend>, name: &str) -> Arc<dyn Reader> {
        let number = self.members.fetch_add(1, Ordering::Relaxed);
        let found = self.spec.groups.iter().find(|group| *group.name == *name);
        let group = found.cloned().unwrap_or_else(|| group(name));
        let member = format!("here/{name}/{number}");
        backend.reader(ReaderSpec { group, member }).await.unwrap()
    }

    /// The same place for another stream, of this name (in Redis, of this key).
    pub fn named(&self, name: &str, key: &str) -> Self {
        let mut spec = StreamSpec { name: name.into(), ..self.spec.clone() };
        if spec.values.opt_str("key").is_some() {
            spec.values.set("key", Value::Str(key.into()));
        }
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        Self { spec, folder, members: AtomicU32::new(0) }
    }

    /// Declares groups of these names, and no others.
    pub fn groups(mut self, names: &[&str]) -> Self {
        self.spec.groups = names.iter().map(|name| group(name)).collect();
        self
    }

    /// Changes the stream's spec.
    pub fn with(mut self, change: impl FnOnce(&mut StreamSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Gives all groups this lease.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.spec.groups.iter_mut().for_each(|group| group.lease = lease);
        self
    }
}

/// A group as the topology file declares it, from stream `s`.
pub fn group(name: &str) -> GroupSpec {
    GroupSpec {
        name: name.into(),
        from: "s".into(),
        to: "sink".into(),
        members: 1,
        latest: false,
        batch: 1000,
        lease: Duration::from_secs(20),
        attempts: 5,
        dead: "s.dead".into(),
        ordered: false,
        counter: None,
        values: Values::default(),
    }
}

/// The event of this number.
pub fn event(number: u64) -> Event {
    let id = EventId::new(Origin::new(Sequence::Count, &[b"test"]), number, 7);
    Event::new(id, format!("event {number}").into(), "input".into(), 1_000_000 + number as i64)
}

/// The events of these numbers.
pub fn events(numbers: std::ops::Range<u64>) -> Vec<Event> {
    numbers.map(event).collect()
}

/// An append without a checkpoint.
pub fn plain(events: Vec<Event>) -> Append {
    Append { origin: "test".into(), moves: Vec::new(), events }
}

/// An append that moves the slot `slot` of origin `test` between these orders.
pub fn moving(slot: &str, from: Option<u64>, to: Option<u64>, events: Vec<Event>) -> Append {
    let moves = vec![Move { slot: slot.into(), from: from.map(position), to: to.map(position) }];
    Append { origin: "test".into(), moves, events }
}

/// A position of this order.
pub fn position(order: u64) -> Position {
    Position { order, note: format!("note {order}") }
}

/// Appends events, and expects them to be taken.
pub async fn put(writer: &mut Box<dyn Writer>, events: Vec<Event>) {
    assert_eq!(writer.append(&[plain(events)]).await.unwrap(), [Appended::Durable]);
}

/// The numbers of delivered events, in the order of their delivery.
pub fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| delivery.event.id.sequence()).collect()
}

/// [`numbers`], ascending.
pub fn sorted(deliveries: &[Delivery]) -> Vec<u64> {
    let mut numbers = numbers(deliveries);
    numbers.sort_unstable();
    numbers
}

/// What deliveries are known by.
pub fn tickets(deliveries: &[Delivery]) -> Vec<Ticket> {
    deliveries.iter().map(|delivery| delivery.ticket).collect()
}

/// Fetches until it has `count` events, and acks nothing.
pub async fn take(reader: &Arc<dyn Reader>, count: usize) -> Vec<Delivery> {
    let (start, mut taken) = (Instant::now(), Vec::new());
    while taken.len() < count {
        let wanted = count - taken.len();
        taken.extend(reader.fetch(wanted, BYTES, Duration::from_millis(200)).await.unwrap());
        assert!(start.elapsed() < PATIENCE, "{} of {count} events came", taken.len());
    }
    taken
}

/// Fetches until it has `count` events, and acks them.
pub async fn finish(reader: &Arc<dyn Reader>, count: usize) -> Vec<Delivery> {
    let taken = take(reader, count).await;
    reader.ack(&tickets(&taken)).await.unwrap();
    taken
}

/// Expects that nothing is delivered for a while.
pub async fn nothing(reader: &Arc<dyn Reader>) {
    let taken = reader.fetch(1000, BYTES, GLANCE).await.unwrap();
    assert_eq!(numbers(&taken), [0; 0], "nothing was to be delivered");
}

/// Waits until `holds`.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The status of a group.
pub async fn group_status(backend: &Arc<dyn Backend>, name: &str) -> GroupStatus {
    let status = backend.status().await.unwrap();
    status.groups.into_iter().find(|group| group.name == name).unwrap()
}

/// Events that the stream holds.
pub async fn length(backend: &Arc<dyn Backend>) -> u64 {
    backend.status().await.unwrap().length.unwrap()
}

/// A source that goes where the stream says, until it has sent the events from `first` to `end`
/// (which may be set while it runs).
pub async fn source_of(
    backend: Arc<dyn Backend>,
    slot: &str,
    first: u64,
    end: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    rewound: Arc<AtomicU64>,
) {
    let mut writer = backend.writer().await.unwrap();
    let mut at = None;
    while at < Some(end.load(Ordering::SeqCst)) {
        let start = at.unwrap_or(first);
        let to = (start + 50).min(end.load(Ordering::SeqCst));
        match writer.append(&[moving(slot, at, Some(to), events(start..to))]).await {
            Ok(answers) if answers == [Appended::Durable] => {
                at = Some(to);
                sent.store(to, Ordering::SeqCst);
            }
            // Half a copy can be read as anything; the source tries again.
            answers => {
                let mut told = false;
                match answers {
                    Ok(answers) => {
                        assert_eq!(answers, [Appended::Rewound]);
                        told = true;
                    }
                    Err(error) => println!("{slot}: {error:#}"),
                }
                if let Ok(slots) = writer.slots("test").await {
                    let found = slots.into_iter().find(|(name, _)| name == slot);
                    let found = found.map(|(_, position)| position.order);
                    told |= found < at;
                    at = found;
                }
                rewound.fetch_add(told.into(), Ordering::SeqCst);
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A member that gathers what comes until told to stop. After an error it begins a new life, as a
/// member's actor does.
pub async fn gather(
    at: Arc<Place>,
    backend: Arc<dyn Backend>,
    stop: Arc<AtomicBool>,
) -> BTreeSet<u64> {
    let number = at.members.fetch_add(1, Ordering::Relaxed);
    let spec = ReaderSpec { group: at.spec.groups[0].clone(), member: format!("here/g/{number}") };
    let mut seen = BTreeSet::new();
    while !stop.load(Ordering::SeqCst) {
        let Ok(reader) = backend.reader(spec.clone()).await else { continue };
        while !stop.load(Ordering::SeqCst)
            && let Ok(taken) = reader.fetch(30, BYTES, GLANCE / 4).await
        {
            seen.extend(numbers(&taken));
            if reader.ack(&tickets(&taken)).await.is_err() {
                break;
            }
        }
    }
    seen
}
