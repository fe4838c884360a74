//! A file, through Redis, into a table of PostgreSQL and into a file, by two processes that share
//! everything, while aqueduct, Redis and PostgreSQL are killed at random and Redis comes back
//! empty or with an older copy of its data: nothing is lost, nothing is doubled, and what was
//! healed works again within seconds.
//!
//! `scripts/soak faults` runs the long form.

#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use oracle::{Writer, check_lines};
use process::{Place, Running, free_port, lines, scale, seed};
use servers::{Postgres, Redis};
use tempfile::TempDir;

/// How long after healing both sinks may need until they store again.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

const GROUPS: [&str; 2] = ["to_table", "to_file"];

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.input]
kind = "tail"
path = "in.log"
to = "lines"

[stream.lines]
kind = "redis"
url = "REDIS"
retain = "RETAIN"

[group.to_table]
from = "lines"
to = "table"
members = 2
batch = 500
lease = "2s"

[group.to_file]
from = "lines"
to = "file"
batch = 700
lease = "2s"

[sink.table]
kind = "postgres"
url = "POSTGRES"
table = "lines"
columns = { event_id = "@id", line = "@body" }

[sink.file]
kind = "file"
path = "out.log"
"#;

/// What is done to the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// One process dies while the other goes on.
    One,
    /// Both die at once.
    Both,
    /// redis-server dies, and comes back with what it had.
    Redis,
    /// PostgreSQL dies, and comes back with what it had.
    Postgres,
    /// All of them die.
    All,
    /// Redis comes back empty.
    Empty,
    /// Redis comes back with an older copy.
    Older,
    /// Redis comes back empty while no process of ours runs.
    EmptyWhileDown,
    /// Redis comes back with an older copy while no process of ours runs.
    OlderWhileDown,
}

/// All of them, so that a run of as many steps has each once.
const FAULTS: [Fault; 9] = [
    Fault::One,
    Fault::Both,
    Fault::Redis,
    Fault::Postgres,
    Fault::All,
    Fault::Older,
    Fault::Empty,
    Fault::OlderWhileDown,
    Fault::EmptyWhileDown,
];

impl Fault {
    /// A heavier one less often: after an empty Redis all of the file is read again.
    fn draw() -> Self {
        match fastrand::u32(0..100) {
            0..35 => Fault::One,
            35..50 => Fault::Both,
            50..70 => Fault::Redis,
            70..85 => Fault::Postgres,
            85..92 => Fault::All,
            92..95 => Fault::Older,
            95..97 => Fault::OlderWhileDown,
            97..99 => Fault::Empty,
            _ => Fault::EmptyWhileDown,
        }
    }

    fn stops_us(self) -> bool {
        !matches!(self, Fault::One | Fault::Redis | Fault::Postgres | Fault::Empty | Fault::Older)
    }

    fn stops_redis(self) -> bool {
        !matches!(self, Fault::One | Fault::Both | Fault::Postgres)
    }

    fn stops_postgres(self) -> bool {
        matches!(self, Fault::Postgres | Fault::All)
    }

    fn kills(self) -> u64 {
        let ours = if self.stops_us() { 2 } else { u64::from(self == Fault::One) };
        ours + u64::from(self.stops_redis()) + u64::from(self.stops_postgres())
    }
}

/// The servers, the two processes, and the file that is written meanwhile.
struct Flow {
    place: Place,
    redis: Redis,
    postgres: Postgres,
    url: String,
    /// An older copy of what Redis holds.
    copy: Option<TempDir>,
    ours: [Option<Running>; 2],
    ports: [u16; 2],
    /// Where the second process remembers what it knows of the file: with the first, or apart.
    second_data: &'static str,
    writer: Writer,
}

impl Flow {
    fn new(retain: &str, second_data: &'static str) -> Self {
        // An append-only file that is rewritten while it is copied makes no copy.
        let redis = Redis::start_with(&["--auto-aof-rewrite-percentage", "0"]);
        let postgres = Postgres::start();
        let url = postgres.database();
        let topology = TOPOLOGY
            .replace("REDIS", &redis.url())
            .replace("POSTGRES", &url)
            .replace("RETAIN", retain);
        let place = Place::new(&topology);
        let writer = Writer::create(&place.path("in.log"));
        let ports = [place.port, free_port()];
        let ours = [None, None];
        Self { place, redis, postgres, url, copy: None, ours, ports, second_data, writer }
    }

    fn start(&mut self) {
        for (which, running) in self.ours.iter_mut().enumerate() {
            let data = ["data", self.second_data][which];
            running.get_or_insert_with(|| {
                self.place.start_beside(self.ports[which], &[("AQUEDUCT__RUNTIME__DATA_DIR", data)])
            });
        }
    }

    fn kill(&mut self, which: usize) {
        if let Some(running) = self.ours[which].take() {
            running.kill();
        }
    }

    fn strike(&mut self, fault: Fault) {
        if fault == Fault::One {
            self.kill(fastrand::usize(..2));
        }
        if fault.stops_us() {
            self.kill(0);
            self.kill(1);
        }
        match fault {
            Fault::Empty | Fault::EmptyWhileDown => self.redis.wipe(),
            Fault::Older | Fault::OlderWhileDown => match &self.copy {
                Some(copy) => self.redis.restore(copy),
                None => self.redis.wipe(),
            },
            _ if fault.stops_redis() => self.redis.kill(),
            _ => {}
        }
        if fault.stops_postgres() {
            self.postgres.kill();
        }
    }

    fn heal(&mut self) {
        self.redis.up();
        self.postgres.up();
        self.start();
    }

    /// How many events each group has stored, by the processes that run.
    fn stored(&self) -> BTreeMap<(usize, &'static str), f64> {
        let mut stored = BTreeMap::new();
        for (which, running) in self.ours.iter().enumerate() {
            for group in GROUPS {
                let metric = running.as_ref().map_or(0.0, |running| {
                    running.metric("aqueduct_events_stored", &format!("group=\"{group}\""))
                });
                stored.insert((which, group), metric);
            }
        }
        stored
    }

    /// Writes more, and waits until both sinks have stored something since now.
    fn recovery(&mut self) -> Duration {
        let healed = Instant::now();
        let before = self.stored();
        let mut waiting = GROUPS.to_vec();
        while !waiting.is_empty() {
            self.writer.write(1);
            let now = self.stored();
            waiting.retain(|group| {
                !(0..2).any(|which| now[&(which, *group)] > before[&(which, *group)])
            });
            if healed.elapsed() > 6 * RECOVERY_MAX {
                for running in self.ours.iter().flatten() {
                    println!("{}\n{:?}", running.log(), running.get("/healthz"));
                }
                panic!("{waiting:?} stored nothing for a minute");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        healed.elapsed()
    }

    /// Writes `count` lines in pieces, and strikes somewhere between them.
    fn under_load(&mut self, count: u64, fault: Fault) {
        let pieces = fastrand::u64(1..=20).min(count);
        let when = fastrand::u64(0..=pieces);
        let pause = Duration::from_micros(fastrand::u64(0..=400_000) / pieces);
        for piece in 0..=pieces {
            if piece == when {
                self.strike(fault);
            }
            if piece < pieces {
                self.writer.write(count * (piece + 1) / pieces - count * piece / pieces);
                std::thread::sleep(pause);
            }
        }
    }
}

/// The faults of a run: each once, the copy made before it is needed, then by chance until
/// enough was killed.
fn draw(kills: u64) -> Vec<Fault> {
    let mut faults = FAULTS.to_vec();
    fastrand::shuffle(&mut faults);
    while faults.iter().map(|fault| fault.kills()).sum::<u64>() < kills {
        faults.push(Fault::draw());
    }
    faults
}

#[test]
fn nothing_is_lost_or_doubled_whatever_is_killed_emptied_or_set_back() {
    let seed = seed();
    let faults = draw(scale("AQUEDUCT_KILLS", 12));
    let retain = if fastrand::bool() { "acked" } else { "forever" };
    let second_data = if fastrand::bool() { "data" } else { "data2" };
    let each = (scale("AQUEDUCT_EVENTS", 20_000) / faults.len() as u64).max(1);
    let mut flow = Flow::new(retain, second_data);
    flow.start();
    flow.recovery();
    let mut recoveries: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
    let began = Instant::now();
    for (step, fault) in faults.iter().enumerate() {
        if step % 8 == 0 {
            flow.copy = Some(flow.redis.backup());
        }
        flow.under_load(each, *fault);
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..=500)));
        flow.heal();
        let recovery = flow.recovery();
        if faults.len() > FAULTS.len() * 2 && step % 20 == 19 {
            println!("{:?}: {} of {} faults", began.elapsed(), step + 1, faults.len());
        }
        recoveries.entry(*fault).or_default().push(recovery);
    }
    let kills: u64 = faults.iter().map(|fault| fault.kills()).sum();
    for running in flow.ours.iter_mut().filter_map(Option::take) {
        assert!(running.stop().success(), "a stop did not end well");
    }
    let done = flow.place.run_until_idle();
    println!(
        "seed {seed}, retain {retain}, second data_dir {second_data}: {kills} kills in {} faults, \
         {} events in {:?}; seconds until both sinks stored again:",
        faults.len(),
        flow.writer.next,
        began.elapsed()
    );
    report(&recoveries);
    assert!(!done.stderr.contains("dead letter"), "{}", done.stderr);
    check_lines("the file", flow.writer.next, lines(&flow.place.path("out.log")).into_iter());
    let database = flow.url.rsplit_once('/').unwrap().1;
    let table = flow.postgres.psql(database, "SELECT line FROM lines");
    let rows = table.lines().map(|line| line.as_bytes().to_vec());
    check_lines("the table", flow.writer.next, rows);
    let slowest = recoveries.values().flatten().max().unwrap();
    assert!(*slowest <= RECOVERY_MAX, "once it took {slowest:?} to recover");
}

fn report(recoveries: &BTreeMap<Fault, Vec<Duration>>) {
    for (fault, times) in recoveries {
        let mut times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        println!(
            "  {:<16} {:>4} times, median {:.2}, most {:.2}",
            format!("{fault:?}"),
            times.len(),
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
}
