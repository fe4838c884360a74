//! Clients that post over kept connections, through RabbitMQ with quorum queues or through Redis
//! with `appendfsync always`, into a table of PostgreSQL, by two processes that share the group,
//! while aqueduct, the broker and PostgreSQL are killed at random: every event that was answered
//! 202 is in the table exactly once, and a client that repeats a request under its
//! `Idempotency-Key` never doubles it.
//!
//! `scripts/soak http` runs the long form.

#[path = "support/client.rs"]
mod client;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use client::{Load, check_rows};
use process::{Place, Running, free_port, scale, seed};
use servers::{Postgres, Rabbit, Redis};

/// How long after healing it may take until a request is answered 202, and one is stored.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
const CLIENTS: u64 = 24;

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.log]
kind = "http"
path = "/log"
to = "logs"

[stream.logs]
STREAM

[group.writer]
from = "logs"
to = "table"
members = 2
lease = "2s"

[sink.table]
kind = "postgres"
url = "POSTGRES"
table = "logs"
columns = { event_id = "@id", id = "id" }
"#;

/// What is between.
enum Broker {
    Rabbit(Rabbit),
    Redis(Redis),
}

impl Broker {
    fn kill(&mut self) {
        match self {
            Self::Rabbit(server) => server.kill(),
            Self::Redis(server) => server.kill(),
        }
    }

    fn up(&mut self) {
        match self {
            Self::Rabbit(server) => server.up(),
            Self::Redis(server) => server.up(),
        }
    }
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    One,
    Both,
    Broker,
    Postgres,
    All,
}

const FAULTS: [Fault; 5] = [Fault::One, Fault::Both, Fault::Broker, Fault::Postgres, Fault::All];

impl Fault {
    fn draw() -> Self {
        match fastrand::u32(0..100) {
            0..30 => Self::One,
            30..40 => Self::Both,
            40..70 => Self::Broker,
            70..90 => Self::Postgres,
            _ => Self::All,
        }
    }

    /// The processes it kills: of ours, of the broker's, of PostgreSQL's.
    fn kills(self) -> [u64; 3] {
        match self {
            Self::One => [1, 0, 0],
            Self::Both => [2, 0, 0],
            Self::Broker => [0, 1, 0],
            Self::Postgres => [0, 0, 1],
            Self::All => [2, 1, 1],
        }
    }
}

struct Flow {
    place: Place,
    broker: Broker,
    postgres: Postgres,
    ours: [Option<Running>; 2],
    ports: [u16; 2],
}

impl Flow {
    fn start(&mut self) {
        for (which, running) in self.ours.iter_mut().enumerate() {
            let data = ["data", "data2"][which];
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
        match fault.kills()[0] {
            0 => {}
            1 => self.kill(fastrand::usize(..2)),
            _ => (0..2).for_each(|which| self.kill(which)),
        }
        if fault.kills()[1] > 0 {
            self.broker.kill();
        }
        if fault.kills()[2] > 0 {
            self.postgres.kill();
        }
    }

    fn heal(&mut self) {
        self.broker.up();
        self.postgres.up();
        self.start();
    }

    fn stored(&self) -> [f64; 2] {
        [0, 1].map(|which| {
            let running: &Option<Running> = &self.ours[which];
            running.as_ref().map_or(0.0, |it| it.metric("aqueduct_events_stored", ""))
        })
    }

    /// Waits until a request was answered 202 and an event stored since now.
    fn recovery(&self, load: &Load) -> Duration {
        let healed = Instant::now();
        let (accepted, stored) = (load.accepted.load(Ordering::Relaxed), self.stored());
        loop {
            let now = self.stored();
            let any = (0..2).any(|which| now[which] > stored[which]);
            if any && load.accepted.load(Ordering::Relaxed) > accepted {
                return healed.elapsed();
            }
            if healed.elapsed() > 6 * RECOVERY_MAX {
                for running in self.ours.iter().flatten() {
                    println!("{}\n{:?}", running.log(), running.get("/healthz"));
                }
                panic!("nothing went through for a minute");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Kills this many processes, each kind of fault at least once.
fn kill_run(stream: &str, broker: Broker, kills: u64) {
    let seed = seed();
    let mut faults = FAULTS.to_vec();
    fastrand::shuffle(&mut faults);
    while faults.iter().flat_map(|fault| fault.kills()).sum::<u64>() < kills {
        faults.push(Fault::draw());
    }
    let postgres = Postgres::start();
    let url = postgres.database();
    let place = Place::new(&TOPOLOGY.replace("STREAM", stream).replace("POSTGRES", &url));
    let ports = [place.port, free_port()];
    let mut flow = Flow { place, broker, postgres, ours: [None, None], ports };
    flow.start();
    let load = Load::start(CLIENTS, &ports);
    flow.recovery(&load);
    let began = Instant::now();
    let mut recoveries: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
    for fault in &faults {
        std::thread::sleep(Duration::from_millis(fastrand::u64(100..1500)));
        flow.strike(*fault);
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..500)));
        flow.heal();
        recoveries.entry(*fault).or_default().push(flow.recovery(&load));
    }
    let promised = load.stop();
    let [Some(first), Some(second)] = flow.ours.each_mut().map(Option::take) else {
        panic!("both run");
    };
    assert!(second.stop().success(), "a stop did not end well");
    let mut streams = String::new();
    let idle = || {
        streams = first.get("/streams").1;
        streams.contains(r#""lag":0,"pending":0"#)
    };
    if !within(Duration::from_secs(60), idle) {
        panic!("seed {seed}: not all is stored: {streams}\n{}", first.get("/healthz").1);
    }
    assert!(first.stop().success(), "a stop did not end well");
    let mut killed = [0; 3];
    for fault in &faults {
        fault.kills().iter().zip(&mut killed).for_each(|(kills, killed)| *killed += kills);
    }
    println!(
        "seed {seed}: killed aqueduct {} times, the broker {}, PostgreSQL {}, in {:?}; {} events \
         accepted, {} left open, {} requests repeated; until requests and events went through:",
        killed[0],
        killed[1],
        killed[2],
        began.elapsed(),
        promised.accepted.len(),
        promised.open.len(),
        promised.again
    );
    for (fault, times) in &mut recoveries {
        times.sort();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!("  {fault:?}: {} times, median {median:.2?}, most {most:.2?}", times.len());
    }
    let database = url.rsplit_once('/').unwrap().1;
    let rows = flow.postgres.psql(database, "SELECT id FROM logs");
    check_rows(&promised, rows.lines().map(str::to_owned));
    assert!(promised.again > 0, "no request was repeated");
    let slowest = recoveries.values().flatten().max().unwrap();
    assert!(*slowest <= RECOVERY_MAX, "once it took {slowest:?} to recover");
    let dead = flow.place.done(&["dead", "list", "topology.toml", "logs"]);
    assert_eq!(dead.stdout, "", "{}", dead.stderr);
}

fn within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Each of the two takes half.
fn kills() -> u64 {
    scale("AQUEDUCT_KILLS", 18).div_ceil(2)
}

#[test]
fn through_rabbitmq() {
    let server = Rabbit::start();
    let stream = format!("kind = \"rabbitmq\"\nurl = \"{}\"", server.url("v0"));
    kill_run(&stream, Broker::Rabbit(server), kills());
}

#[test]
fn through_redis() {
    let server = Redis::start_with(&["--appendfsync", "always"]);
    let stream = format!("kind = \"redis\"\nurl = \"{}\"", server.url());
    kill_run(&stream, Broker::Redis(server), kills());
}
