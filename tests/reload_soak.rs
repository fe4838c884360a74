//! Edit after edit under load, drawn at random, one in five of them invalid: every line that was
//! written arrives once, and a route that no edit touches never notices.
//!
//! `scripts/soak reload` runs the long form.

#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oracle::{Writer, check_lines};
use process::{Place, Running, eventually, lines, scale, seed};
use servers::{Postgres, Rabbit, Redis};

/// What no edit touches: a publisher into a file.
const UNTOUCHED: &str = r#"
[runtime]
data_dir = "data"
[http]
listen = "127.0.0.1:{port}"
[source.steady]
kind = "publisher"
to = "steady"
rate = "1000/s"
body = "{n}"
[stream.steady]
path = "steady.db"
[group.steady]
from = "steady"
to = "steady-out"
[sink.steady-out]
kind = "file"
path = "steady.out"
"#;

/// A route that edits change.
struct Route {
    name: String,
    /// What its stream is made with.
    stream: String,
    /// What its stream is made with elsewhere, where it can move.
    elsewhere: Option<String>,
    /// Its sink, with `TABLE` where that may change.
    sink: String,
}

impl Route {
    fn text(&self, all: bool) -> String {
        let draw = |range: std::ops::Range<u32>| fastrand::u32(range);
        if !all && draw(0..4) == 0 {
            return String::new();
        }
        let Self { name, stream, elsewhere, sink } = self;
        let stream = match elsewhere {
            Some(elsewhere) if draw(0..5) == 0 => elsewhere,
            _ => stream,
        };
        let table = ["lines_a", "lines_b"][draw(0..2) as usize];
        // An edit may be of any part of it, or of none.
        let retain = ["", "max_backlog = 5000000\n"][draw(0..2) as usize];
        let group = ["", "batch = 100\n", "attempts = 3\n"][draw(0..3) as usize];
        let source = ["", "max_line = \"2MiB\"\n"][usize::from(draw(0..5) == 0)];
        let members = draw(1..4);
        format!(
            "[source.{name}]\nkind = \"tail\"\npath = \"{name}.in\"\nto = \"{name}\"\n{source}\
             [stream.{name}]\n{stream}\n{retain}\
             [group.{name}]\nfrom = \"{name}\"\nto = \"{name}-out\"\nmembers = {members}\n{group}\
             [sink.{name}-out]\n{}\n",
            sink.replace("TABLE", table)
        )
    }
}

/// What makes a file invalid.
const MISTAKES: &[&str] = &[
    "[sink.wrong]\nkind = \"nothing\"\n",
    "[group.wrong]\nfrom = \"nowhere\"\nto = \"steady-out\"\n",
    "[stream.steady]\n",
    "[stream.wrong]\nshards = \"many\"\n",
    "[source.wrong",
    "[runtime]\ndata_dir = \"elsewhere\"\n",
];

/// Writes lines into the routes' files, as fast as they are worth.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start(place: &Place, routes: &[Route]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let write = |route: &Route| {
            let (path, stop) = (place.path(&format!("{}.in", route.name)), stop.clone());
            std::thread::spawn(move || {
                let mut writer = Writer::create(&path);
                while !stop.load(Ordering::Relaxed) {
                    writer.write(5);
                    std::thread::sleep(Duration::from_millis(10));
                }
                writer.next
            })
        };
        let writers = routes.iter().map(write).collect();
        Self { stop, writers }
    }

    /// How many lines each has.
    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    }
}

/// Looks at the untouched route's file: the longest time in which it did not grow.
struct Gaps {
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
    watch: JoinHandle<()>,
}

impl Gaps {
    fn watch(place: &Place) -> Self {
        let (stop, longest_us) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (path, stopped, longest) = (place.path("steady.out"), stop.clone(), longest_us.clone());
        let watch = std::thread::spawn(move || {
            let length = || std::fs::metadata(&path).map_or(0, |data| data.len());
            let (mut seen, mut since) = (length(), Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                let now = length();
                if now != seen {
                    let gap = since.elapsed().as_micros() as u64;
                    longest.fetch_max(gap, Ordering::Relaxed);
                    (seen, since) = (now, Instant::now());
                }
            }
        });
        Self { stop, longest_us, watch }
    }

    fn take_ms(&self) -> f64 {
        self.longest_us.swap(0, Ordering::Relaxed) as f64 / 1000.0
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.watch.join().unwrap();
    }
}

fn readiness(running: &Running) -> serde_json::Value {
    serde_json::from_str(&running.get("/readyz").1).unwrap_or_default()
}

/// Applied and refused edits so far.
fn edits(running: &Running) -> (u64, u64) {
    let count = |result| running.metric("aqueduct_reloads_total", result) as u64;
    (count("applied"), count("refused"))
}

/// Open files, and resident KiB.
fn weight(running: &Running) -> (usize, u64) {
    let files = std::fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    (files, line.split_whitespace().nth(1).unwrap().parse().unwrap())
}

/// Saves a file in one of the ways in which editors do.
fn save(place: &Place, text: &str) {
    if fastrand::bool() {
        return place.write_topology(text);
    }
    let new = place.path(".topology.new");
    std::fs::write(&new, text.replace("{port}", &place.port.to_string())).unwrap();
    std::fs::rename(new, place.path("topology.toml")).unwrap();
}

#[test]
fn edits_under_load_lose_and_double_nothing() {
    let edits_wanted = scale("AQUEDUCT_EDITS", 25);
    seed();
    let (redis, rabbit, postgres) = (Redis::start(), Rabbit::shared(), Postgres::shared());
    let sqlite = |table: &str| {
        format!(
            "kind = \"sqlite\"\npath = \"out.db\"\ntable = \"{table}\"\ncolumns = {{ id = \"@id\", \
             line = \"@body\" }}"
        )
    };
    let routes = [
        Route {
            name: "embedded".into(),
            stream: String::new(),
            elsewhere: None,
            sink: sqlite("embedded_TABLE"),
        },
        Route {
            name: "moving".into(),
            stream: "path = \"here.db\"".into(),
            elsewhere: Some("path = \"there.db\"".into()),
            sink: sqlite("moving_lines"),
        },
        Route {
            name: "redis".into(),
            stream: format!("kind = \"redis\"\nurl = \"{}\"", redis.url()),
            elsewhere: None,
            sink: sqlite("redis_TABLE"),
        },
        Route {
            name: "postgres".into(),
            stream: format!("kind = \"postgres\"\nurl = \"{}\"", postgres.database()),
            elsewhere: None,
            sink: "kind = \"file\"\npath = \"postgres-TABLE.out\"".into(),
        },
        Route {
            name: "rabbit".into(),
            stream: format!("kind = \"rabbitmq\"\nurl = \"{}\"", rabbit.vhost()),
            elsewhere: None,
            sink: sqlite("rabbit_TABLE"),
        },
    ];
    let topology = |all: bool, number: u64| {
        let routes: String = routes.iter().map(|route| route.text(all)).collect();
        format!("{UNTOUCHED}{routes}# edit {number}\n")
    };
    let place = Place::new(&topology(true, 0));
    let running = place.start();
    eventually("all works", || running.get("/healthz").0 == 200);
    let load = Load::start(&place, &routes);
    let gaps = Gaps::watch(&place);
    std::thread::sleep(Duration::from_secs(2));
    println!("longest gap without edits: {:.1} ms", gaps.take_ms());
    let (files_before, kib_before) = weight(&running);

    let mut slowest = Duration::ZERO;
    let mut moved_away = 0;
    for number in 1..=edits_wanted {
        let bad = fastrand::u32(0..5) == 0;
        let mut text = topology(false, number);
        if bad {
            text.push_str(fastrand::choice(MISTAKES).unwrap());
        }
        let (applied, refused) = edits(&running);
        let saved = Instant::now();
        save(&place, &text);
        eventually("the edit is applied or refused", || edits(&running) != (applied, refused));
        if saved.elapsed() > slowest {
            slowest = saved.elapsed();
            let log = running.log();
            let said = log.lines().rev().find(|line| line.contains("is applied"));
            println!("edit {number} took {} ms: {}", slowest.as_millis(), said.unwrap_or_default());
        }
        let (applied_now, refused_now) = edits(&running);
        if bad {
            assert_eq!((applied_now, refused_now), (applied, refused + 1), "edit {number}: {text}");
        } else if refused_now > refused {
            let faults = readiness(&running)["refused"]["faults"].to_string();
            assert!(faults.contains("events behind"), "edit {number} was refused: {faults}");
            moved_away += 1;
        }
        if number % 100 == 0 {
            println!("{number} edits");
        }
    }
    let longest = gaps.take_ms();
    let (files, kib) = weight(&running);
    let (applied, refused) = edits(&running);
    println!(
        "{edits_wanted} edits: {applied} applied, {refused} refused ({moved_away} as they would \
         have left events behind); slowest {} ms; longest gap of the untouched route {longest:.1} \
         ms; open files {files_before} then {files}, memory {kib_before} then {kib} KiB",
        slowest.as_millis()
    );
    let untouched = ["source.steady", "stream.steady", "group.steady", "sink.steady-out"];
    for component in untouched {
        assert_eq!(running.metric("aqueduct_restarts_total", component), 0.0, "{component}");
    }
    assert!(files < files_before + 100, "{files_before} open files became {files}");

    let written = load.stop();
    gaps.end();
    save(&place, &topology(true, edits_wanted + 1));
    let tables = |name: &str| {
        let tables = "SELECT name FROM sqlite_master WHERE type = 'table'";
        let all: Vec<(String,)> = place.rows("out.db", tables);
        all.into_iter().map(|(table,)| table).filter(|table| table.starts_with(name)).collect()
    };
    let stored = |name: &str| -> Vec<Vec<u8>> {
        if name == "postgres" {
            let files = ["postgres-lines_a.out", "postgres-lines_b.out"].map(|it| place.path(it));
            return files.iter().filter(|it| it.exists()).flat_map(|it| lines(it)).collect();
        }
        let names: Vec<String> = tables(name);
        let rows = names.iter().flat_map(|table| {
            place.rows::<(String,)>("out.db", &format!("SELECT line FROM {table}"))
        });
        rows.map(|(line,)| line.into_bytes()).collect()
    };
    for (route, written) in routes.iter().zip(&written) {
        eventually(&format!("all {written} lines of {}", route.name), || {
            stored(&route.name).len() as u64 >= *written
        });
        check_lines(&route.name, *written, stored(&route.name).into_iter());
        println!("{}: {written} lines, each once", route.name);
    }
    assert!(running.stop().success());
    let steady = lines(&place.path("steady.out"));
    let numbers: Vec<u64> =
        steady.iter().map(|it| std::str::from_utf8(it).unwrap().parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "the untouched route is whole");
}
