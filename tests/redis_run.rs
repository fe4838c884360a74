//! The whole program on Redis: file → Redis → file, with either of them killed, stopped, emptied
//! and set back, and every line in the end exactly once.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::io::Write;
use std::time::Duration;

use process::{Place, eventually, lines, scale, seed};
use servers::{Redis, RedisCluster};

fn topology(url: &str, shards: u32) -> String {
    format!(
        "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[source.input]\nkind = \"tail\"\npath = \
         \"in.txt\"\nto = \"events\"\n[stream.events]\nkind = \"redis\"\nurl = {url}\nshards = \
         {shards}\n[group.writer]\nfrom = \"events\"\nto = \"out\"\nmembers = 2\nbatch = \
         200\nlease = \"2s\"\n[sink.out]\nkind = \"file\"\npath = \"out.txt\"\n"
    )
}

fn add_lines(place: &Place, from: u64, to: u64) {
    let mut file =
        std::fs::OpenOptions::new().create(true).append(true).open(place.path("in.txt")).unwrap();
    let text: String = (from..to).map(|number| format!("line {number}\n")).collect();
    file.write_all(text.as_bytes()).unwrap();
}

fn written(place: &Place) -> usize {
    std::fs::read(place.path("out.txt")).unwrap_or_default().iter().filter(|b| **b == b'\n').count()
}

/// Each line of the input is in the output, once.
fn check(place: &Place, count: u64) {
    let mut out: Vec<String> = lines(&place.path("out.txt"))
        .into_iter()
        .map(|line| String::from_utf8(line).unwrap())
        .collect();
    out.sort_unstable();
    let mut expected: Vec<String> = (0..count).map(|number| format!("line {number}")).collect();
    expected.sort_unstable();
    assert_eq!(out.len(), expected.len());
    assert!(out == expected, "the same number of lines, and others");
}

/// Events that a member of a process holds: what was handed back is nobody's.
fn held(url: &str, key: &str) -> u64 {
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    let mut cmd = redis::cmd("XINFO");
    cmd.arg("CONSUMERS").arg(key).arg("writer");
    let reply: redis::streams::StreamInfoConsumersReply = cmd.query(&mut connection).unwrap();
    let members = reply.consumers.iter().filter(|consumer| consumer.name.contains('/'));
    members.map(|consumer| consumer.pending as u64).sum()
}

#[test]
fn a_stop_leaves_nothing_waiting_for_a_lease() {
    let server = Redis::start();
    let place = Place::new(&topology(&format!("\"{}\"", server.url()), 1));
    let (rounds, each) = (scale("ROUNDS", 5), 20_000);
    for round in 0..rounds {
        let before = written(&place);
        add_lines(&place, round * each, (round + 1) * each);
        let running = place.start();
        eventually("it is under way", || written(&place) > before);
        assert!(running.stop().success());
        assert_eq!(held(&server.url(), "events"), 0);
    }
    place.run_until_idle();
    check(&place, rounds * each);
}

#[test]
fn whatever_is_killed_each_line_is_there_once() {
    seed();
    let mut server = Redis::start();
    let place = Place::new(&topology(&format!("\"{}\"", server.url()), 3));
    let (rounds, each) = (scale("ROUNDS", 8), 10_000);
    let mut running = place.start();
    let mut backup = server.backup();
    for round in 0..rounds {
        add_lines(&place, round * each, (round + 1) * each);
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..600)));
        match (round, fastrand::u32(..3)) {
            (1, _) => server.wipe(),
            (2, _) => backup = server.backup(),
            (4, _) => server.restore(&backup),
            (_, 0) => server.kill(),
            (_, 1) => {
                running.kill();
                running = place.start();
            }
            _ => {
                running.kill();
                server.kill();
                server.up();
                running = place.start();
            }
        }
        server.up();
    }
    eventually("all is written", || written(&place) as u64 >= rounds * each);
    assert!(running.stop().success());
    place.run_until_idle();
    check(&place, rounds * each);
}

#[test]
fn a_cluster_whose_nodes_are_killed_loses_nothing() {
    seed();
    let mut cluster = RedisCluster::start();
    let urls = cluster.urls().iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
    let place = Place::new(&topology(&format!("[{urls}]"), 4));
    let (rounds, each) = (scale("ROUNDS", 5), 5_000);
    let mut running = place.start();
    for round in 0..rounds {
        add_lines(&place, round * each, (round + 1) * each);
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..600)));
        let node = fastrand::usize(..cluster.nodes.len());
        cluster.nodes[node].kill();
        if fastrand::bool() {
            running.kill();
            running = place.start();
        }
        cluster.nodes[node].up();
    }
    eventually("all is written", || written(&place) as u64 >= rounds * each);
    assert!(running.stop().success());
    place.run_until_idle();
    check(&place, rounds * each);
}

// An answered request is a promise, and the server may be set up to keep less.
#[test]
fn a_weaker_setting_under_an_http_source_is_told_at_the_start() {
    let told = |options: &[&str], source: &str| {
        let server = Redis::start_with(options);
        let place = Place::new(&format!(
            "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[source.in]\n{source}\nto = \
             \"events\"\n[stream.events]\nkind = \"redis\"\nurl = \"{}\"\n",
            server.url()
        ));
        let running = place.start();
        eventually("it is ready", || running.get("/readyz").0 == 200);
        let log = running.log();
        assert!(running.stop().success());
        log.lines().find(|line| line.contains("may not mean durable")).map(str::to_owned)
    };
    let (post, file) = ("kind = \"http\"\npath = \"/in\"", "kind = \"tail\"\npath = \"in.txt\"");
    let weak = told(&["--appendfsync", "everysec"], post).unwrap();
    assert!(weak.contains("appendfsync everysec") && weak.contains("the last second"), "{weak}");
    let none = told(&["--appendonly", "no"], post).unwrap();
    assert!(none.contains("appendonly no"), "{none}");
    assert_eq!(told(&["--appendfsync", "always"], post), None);
    assert_eq!(told(&["--appendfsync", "everysec"], file), None);
}

// An operator deletes the event that a shard waits for: those behind it go on, in order.
#[test]
fn a_refused_event_that_is_deleted_does_not_keep_those_behind_it() {
    let server = Redis::start();
    let place = Place::new(&format!(
        "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[source.input]\nkind = \"tail\"\npath = \
         \"in.txt\"\nto = \"events\"\n[stream.events]\nkind = \"redis\"\nurl = \
         \"{}\"\n[group.writer]\nfrom = \"events\"\nto = \"db\"\nbatch = 20\nlease = \
         \"2s\"\nordered = true\nattempts = 1000\n[sink.db]\nkind = \"sqlite\"\npath = \
         \"out.db\"\ncreate = true\ntable = \"numbers\"\ncolumns = {{ event_id = \"@id\", \
         number = {{ from = \"number\", type = \"bigint\" }} }}\n",
        server.url()
    ));
    let line = |n| match n {
        50 => "{\"number\":\"refused\"}\n".to_owned(),
        n => format!("{{\"number\":{n}}}\n"),
    };
    std::fs::write(place.path("in.txt"), (0..200).map(line).collect::<String>()).unwrap();
    let running = place.start();
    eventually("it is tried alone", || running.metric("aqueduct_events_refused", "") >= 3.0);
    let stored = || place.rows::<(i64,)>("out.db", "SELECT number FROM numbers ORDER BY rowid");
    assert_eq!(stored().len(), 50);
    let mut redis = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut look = redis::cmd("XRANGE");
    look.arg("events").arg("-").arg("+");
    let entries: Vec<(String, Vec<String>)> = look.query(&mut redis).unwrap();
    let refused = entries.iter().find(|(_, fields)| fields.iter().any(|it| it.contains("refused")));
    let mut delete = redis::cmd("XDEL");
    delete.arg("events").arg(&refused.unwrap().0);
    let deleted: u32 = delete.query(&mut redis).unwrap();
    assert_eq!(deleted, 1);
    eventually("those behind it", || stored().len() == 199);
    assert!(stored().into_iter().map(|row| row.0).eq((0..200).filter(|n| *n != 50)));
    assert!(running.stop().success());
}
