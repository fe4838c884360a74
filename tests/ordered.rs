//! Eight producers that race on the shards of one stream, and an ordered group that carries it into
//! a table, while processes of both are killed, stopped for longer than the lease and continued, and
//! told to end, at random: nothing is lost, nothing doubled, of each key every row stands behind the
//! one before it, and of each shard under each epoch all rows are of one process, so nothing was
//! stored by a member that another one had followed. The same where every process's clock jumps by
//! a minute.
//!
//! `scripts/soak ordered` runs the long form.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use process::{Place, Running, eventually, free_port, scale, seed};
use rustix::process::Signal;
use servers::{Postgres, Redis};

const PRODUCERS: usize = 8;
const CONSUMERS: usize = 4;
/// Keys of one producer: only it knows in which order they come.
const KEYS: u64 = 13;
const SHARDS: u32 = 8;
const LEASE: Duration = Duration::from_secs(2);
/// What makes a process's wall clock another one (package `faketime`).
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

/// A file of each producer, one stream, one group.
fn topology(stream: &str, sink: &str) -> String {
    let mut text = String::from("[http]\nlisten = \"127.0.0.1:{port}\"\n");
    for producer in 0..PRODUCERS {
        write!(
            text,
            "[source.p{producer}]\nkind = \"tail\"\npath = \"{producer}.log\"\nto = \"lines\"\n\
             key = \"/k\"\n"
        )
        .unwrap();
    }
    write!(
        text,
        "[stream.lines]\n{stream}\nshards = {SHARDS}\n\
         [group.writer]\nfrom = \"lines\"\nto = \"table\"\nmembers = 3\nbatch = 200\n\
         lease = \"{}s\"\nordered = true\n\
         [sink.table]\n{sink}\ntable = \"rows\"\n\
         columns = {{ event_id = \"@id\", k = \"k\", n = {{ from = \"n\", type = \"bigint\" }}, \
         at = \"@time\" }}\n",
        LEASE.as_secs()
    )
    .unwrap();
    text
}

/// A process, and the part of the file that it runs.
struct Part {
    only: Vec<String>,
    /// What it is called at the database.
    name: String,
    running: Running,
    /// It is stopped, until then.
    stopped: Option<Instant>,
}

/// One row of the table.
struct Row {
    key: String,
    n: i64,
    /// When its producer says it was accepted, in seconds since 1970.
    at: i64,
    /// Which process stored it, under which epoch of its shard; where the table tells.
    by: Option<(String, i64)>,
}

struct Flow {
    place: Place,
    parts: Vec<Part>,
    started: u32,
    inputs: Vec<File>,
    /// Lines of each file.
    lines: u64,
    /// Whether the clocks of the processes jump.
    jumps: bool,
    struck: HashMap<&'static str, u64>,
}

impl Flow {
    /// One process that is everything, or one of each file's producers and some that consume.
    fn new(stream: &str, sink: &str, apart: bool, jumps: bool) -> Self {
        let place = Place::new(&topology(stream, sink));
        let input = |producer| File::create(place.path(&format!("{producer}.log"))).unwrap();
        let inputs = (0..PRODUCERS).map(input).collect();
        let (parts, struck) = (Vec::new(), HashMap::new());
        let mut flow = Self { place, parts, started: 0, inputs, lines: 0, jumps, struck };
        let sources: Vec<String> = (0..PRODUCERS).map(|it| format!("source.p{it}")).collect();
        if !apart {
            flow.start(Vec::new());
            return flow;
        }
        let producers = scale("AQUEDUCT_PRODUCERS", 2) as usize;
        for some in sources.chunks(PRODUCERS.div_ceil(producers)) {
            flow.start(some.to_vec());
        }
        for _ in 0..CONSUMERS {
            flow.start(vec!["group.writer".into()]);
        }
        flow
    }

    fn start(&mut self, only: Vec<String>) {
        self.started += 1;
        let name = format!("process{}", self.started);
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let mut variables = vec![("AQUEDUCT__HTTP__LISTEN", &*listen), ("NAME", &name)];
        let clock = self.place.path(&format!("{name}.clock"));
        if self.jumps {
            // The first is behind.
            let ahead = [-60, 60, 0][(self.started as usize - 1) % 3];
            std::fs::write(&clock, format!("{ahead:+}s")).unwrap();
            variables.extend([
                ("LD_PRELOAD", FAKETIME),
                ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
                ("FAKETIME_CACHE_DURATION", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("DONT_FAKE_MONOTONIC", "1"),
            ]);
        }
        let mut args = vec!["run", "topology.toml"];
        args.extend(only.iter().flat_map(|part| ["--only", part]));
        let running = self.place.start_command(&args, &variables, port);
        self.parts.push(Part { only, name, running, stopped: None });
    }

    /// Each file gets `count` more lines, of a key that the line's number gives.
    fn write(&mut self, count: u64) {
        for (producer, input) in self.inputs.iter_mut().enumerate() {
            let mut text = String::new();
            for n in self.lines..self.lines + count {
                let key = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                writeln!(text, r#"{{"k":"p{producer}-{}","n":{n}}}"#, key % KEYS).unwrap();
            }
            input.write_all(text.as_bytes()).unwrap();
        }
        self.lines += count;
    }

    /// Does something bad to a process that runs.
    fn strike(&mut self) {
        let at = loop {
            let runs = |at: &usize| self.parts[*at].stopped.is_none();
            match fastrand::choice((0..self.parts.len()).filter(runs).collect::<Vec<_>>()) {
                Some(at) => break at,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
            self.go_on(false);
        };
        let what = match fastrand::u32(..if self.jumps { 14 } else { 10 }) {
            0..4 => {
                let part = self.parts.swap_remove(at);
                part.running.kill();
                self.start(part.only);
                "killed"
            }
            4 => {
                let part = self.parts.swap_remove(at);
                self.end(part.running, part.stopped);
                self.start(part.only);
                "told to end"
            }
            5..10 => {
                let part = &mut self.parts[at];
                signal(&part.running, Signal::STOP);
                part.stopped = Some(Instant::now() + LEASE.mul_f64(1.1 + fastrand::f64()));
                "stopped"
            }
            _ => {
                let clock = self.place.path(&format!("{}.clock", self.parts[at].name));
                let ahead = fastrand::i64(-1..=1) * 60;
                std::fs::write(clock, format!("{ahead:+}s")).unwrap();
                "clock moved"
            }
        };
        *self.struck.entry(what).or_default() += 1;
    }

    /// SIGTERM, and waits for the end; those that are stopped go on meanwhile when it is time.
    fn end(&mut self, mut running: Running, stopped: Option<Instant>) {
        signal(&running, Signal::TERM);
        if stopped.is_some() {
            signal(&running, Signal::CONT);
        }
        let status = loop {
            if let Some(status) = running.exited() {
                break status;
            }
            self.go_on(false);
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "a stop did not end well:\n{}", running.log());
    }

    /// Continues those that were stopped for long enough; `all`: all of them.
    fn go_on(&mut self, all: bool) {
        for part in &mut self.parts {
            if part.stopped.is_some_and(|until| all || Instant::now() >= until) {
                part.stopped = None;
                signal(&part.running, Signal::CONT);
            }
        }
    }

    fn run(mut self, rows: impl Fn(&Place) -> Vec<Row>) {
        let seed = seed();
        let events = scale("AQUEDUCT_EVENTS", 30_000);
        let strikes = scale("AQUEDUCT_KILLS", 14);
        let (began, real) = (Instant::now(), chrono::Utc::now().timestamp());
        self.write(1);
        eventually("the first producer works", || {
            rows(&self.place).iter().any(|row| row.key.starts_with("p0-"))
        });
        for strike in 1..=strikes {
            for _ in 0..4 {
                self.write(events / PRODUCERS as u64 / strikes / 4);
                std::thread::sleep(Duration::from_millis(fastrand::u64(..300)));
                self.go_on(false);
            }
            self.strike();
            if strike % 50 == 0 {
                println!("{:?}: {strike} of {strikes}", began.elapsed());
            }
        }
        self.go_on(true);
        let total = self.lines * PRODUCERS as u64;
        let rows = self.all_rows(seed, total, rows);
        println!("seed {seed}: {total} events, {:?}, in {:?}", self.struck, began.elapsed());
        check(&rows, total);
        let behind = rows.iter().filter(|row| row.at < real - 30).count();
        assert_eq!(behind > 0, self.jumps, "{behind} rows are from before the test");
        while let Some(part) = self.parts.pop() {
            self.end(part.running, part.stopped);
        }
    }

    /// The rows, once there are `total`, or once no more have come for a minute.
    fn all_rows(&self, seed: u64, total: u64, rows: impl Fn(&Place) -> Vec<Row>) -> Vec<Row> {
        let (mut came, mut since) = (0, Instant::now());
        loop {
            let asked = Instant::now();
            let all = rows(&self.place);
            let took = asked.elapsed();
            if all.len() as u64 >= total {
                return all;
            }
            if all.len() > came {
                (came, since) = (all.len(), Instant::now());
            }
            if since.elapsed() > Duration::from_secs(60) {
                for part in &self.parts {
                    println!("--- {}\n{}", part.name, part.running.log());
                }
                panic!("seed {seed}: {came} of {total} came");
            }
            std::thread::sleep(Duration::from_millis(200).max(took * 5));
        }
    }
}

fn signal(running: &Running, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(running.pid() as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Each event once; of each key in the order they were written in; of each shard the epochs in
/// order, and each of them one process's.
fn check(rows: &[Row], total: u64) {
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut owners: HashMap<u32, (i64, &str)> = HashMap::new();
    let mut wrong = Vec::new();
    let mut fenced = Vec::new();
    for row in rows {
        let before = last.insert(&row.key, row.n);
        if before.is_some_and(|before| before >= row.n) {
            wrong.push((&row.key, before, row.n));
        }
        if let Some((name, epoch)) = &row.by {
            let shard = aqueduct::shard_of(&row.key, SHARDS);
            let before = owners.insert(shard, (*epoch, name));
            if before.is_some_and(|(was, by)| was > *epoch || (was == *epoch && by != name)) {
                fenced.push((shard, before, (epoch, name)));
            }
        }
    }
    let mut events: Vec<(&str, i64)> = rows.iter().map(|row| (&*row.key, row.n)).collect();
    events.sort_unstable();
    let doubled = events.windows(2).filter(|pair| pair[0] == pair[1]).count();
    events.dedup();
    let lost = total - events.len() as u64;
    let some = (&wrong[..wrong.len().min(5)], &fenced[..fenced.len().min(5)]);
    assert_eq!(
        (lost, doubled, wrong.len(), fenced.len()),
        (0, 0, 0, 0),
        "lost, doubled, out of order, stored by a fenced member: {some:?}"
    );
}

/// Who stores a row, and under which epoch of its shard, is written down by a trigger, in the
/// transaction that stores it.
const TABLE: &str = "
CREATE TABLE rows (event_id uuid PRIMARY KEY, k text, n bigint, at timestamptz, seq bigserial, writer text, epoch bigint);
CREATE TABLE shards (k text PRIMARY KEY, shard bigint);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  NEW.writer := current_setting('application_name');
  NEW.epoch := (SELECT f.epoch FROM aqueduct_fence f JOIN shards s ON s.shard = f.shard WHERE s.k = NEW.k);
  RETURN NEW;
END $$;
CREATE TRIGGER audit BEFORE INSERT ON rows FOR EACH ROW EXECUTE FUNCTION audit();";

fn into_postgres(stream: &str, jumps: bool) {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit_once('/').unwrap().1.to_owned();
    let keys = (0..PRODUCERS).flat_map(|producer| (0..KEYS).map(move |key| (producer, key)));
    let shards: Vec<String> = keys
        .map(|(producer, key)| format!("p{producer}-{key}"))
        .map(|key| format!("('{key}', {})", aqueduct::shard_of(&key, SHARDS)))
        .collect();
    server.psql(&database, TABLE);
    server.psql(&database, &format!("INSERT INTO shards VALUES {}", shards.join(", ")));
    let named = "?application_name=${NAME}";
    let sink = format!("kind = \"postgres\"\nurl = \"{url}{named}\"");
    let stream = stream.replace("POSTGRES", &url);
    Flow::new(&stream, &sink, true, jumps).run(|_| {
        let rows = "SELECT k, n, extract(epoch FROM at)::bigint, writer, epoch FROM rows
                    ORDER BY seq";
        let row = |line: &str| {
            let mut cells = line.split('|').map(str::to_owned);
            let mut cell = || cells.next().unwrap();
            let (key, n, at) = (cell(), cell().parse().unwrap(), cell().parse().unwrap());
            Row { key, n, at, by: Some((cell(), cell().parse().unwrap())) }
        };
        server.psql(&database, rows).lines().map(row).collect()
    });
}

fn through_postgres(jumps: bool) {
    into_postgres("kind = \"postgres\"\nurl = \"POSTGRES\"", jumps);
}

fn through_redis(jumps: bool) {
    let redis = Redis::start();
    into_postgres(&format!("kind = \"redis\"\nurl = \"{}\"", redis.url()), jumps);
}

fn through_embedded(jumps: bool) {
    let sink = "kind = \"sqlite\"\npath = \"out.db\"\ncreate = true";
    Flow::new("", sink, false, jumps).run(|place| {
        let there = "SELECT count(*) FROM sqlite_master WHERE name = 'rows'";
        if !place.path("out.db").exists() || place.count("out.db", there) == 0 {
            return Vec::new();
        }
        let rows = "SELECT k, n, CAST(strftime('%s', at) AS INTEGER) FROM rows ORDER BY rowid";
        let rows = place.rows::<(String, i64, i64)>("out.db", rows);
        rows.into_iter().map(|(key, n, at)| Row { key, n, at, by: None }).collect()
    });
}

#[test]
fn postgres_keeps_the_order_of_each_key_whatever_stops() {
    through_postgres(false);
}

#[test]
fn redis_keeps_the_order_of_each_key_whatever_stops() {
    through_redis(false);
}

#[test]
fn embedded_keeps_the_order_of_each_key_whatever_stops() {
    through_embedded(false);
}

#[test]
fn postgres_trusts_nobodys_clock() {
    through_postgres(true);
}

#[test]
fn redis_trusts_nobodys_clock() {
    through_redis(true);
}

#[test]
fn embedded_trusts_no_clock() {
    through_embedded(true);
}
