//! An edit of the topology file while it runs: what changed changes, what did not never notices,
//! and a bad edit changes nothing.

#[path = "support/collector.rs"]
mod collector;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use collector::Collector;
use process::{Place, Request, Running, eventually, free_port, lines};
use servers::{Postgres, Rabbit, Redis};

const HEAD: &str = r#"
[runtime]
data_dir = "data"
[http]
listen = "127.0.0.1:{port}"
"#;

/// A route of its own, from `NAME.in` to `NAME.out`.
fn route(name: &str) -> String {
    format!(
        r#"
[source.{name}-in]
kind = "tail"
path = "{name}.in"
to = "{name}-lines"
[stream.{name}-lines]
[group.{name}-group]
from = "{name}-lines"
to = "{name}-out"
[sink.{name}-out]
kind = "file"
path = "{name}.out"
"#
    )
}

fn add(place: &Place, file: &str, text: &str) {
    let file = OpenOptions::new().create(true).append(true).open(place.path(file));
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

fn arrived(place: &Place, file: &str) -> Vec<String> {
    let path = place.path(file);
    let lines = if path.exists() { lines(&path) } else { Vec::new() };
    let text = lines.into_iter().map(|line| String::from_utf8(line).unwrap());
    text.filter(|line| !line.is_empty()).collect()
}

fn generation(running: &Running) -> u64 {
    readiness(running)["generation"].as_u64().unwrap_or_default()
}

fn readiness(running: &Running) -> serde_json::Value {
    serde_json::from_str(&running.get("/readyz").1).unwrap_or_default()
}

fn healthy(running: &Running) {
    eventually("all works", || running.get("/healthz").0 == 200);
}

/// Writes the topology, and waits until it is the `wanted`th that runs.
fn edit(place: &Place, running: &Running, topology: &str, wanted: u64) {
    place.write_topology(topology);
    eventually("the edit is applied", || generation(running) == wanted);
}

#[test]
fn what_an_edit_adds_runs_and_what_it_takes_away_stops_and_the_rest_never_notices() {
    let first = format!("{HEAD}{}", route("a"));
    let place = Place::new(&first);
    let running = place.start();
    healthy(&running);
    add(&place, "a.in", "one\n");
    eventually("the first line", || arrived(&place, "a.out") == ["one"]);

    add(&place, "b.in", "two\n");
    let saved = Instant::now();
    place.write_topology(&format!("{first}{}", route("b")));
    eventually("the new route's line", || arrived(&place, "b.out") == ["two"]);
    println!("a saved edit flows after {} ms", saved.elapsed().as_millis());
    assert_eq!(generation(&running), 2);
    healthy(&running);
    assert!(running.get("/streams").1.contains("b-lines"));
    assert_eq!(running.metric("aqueduct_component_up", "source.b-in"), 1.0);

    edit(&place, &running, &first, 3);
    add(&place, "b.in", "three\n");
    add(&place, "a.in", "four\n");
    eventually("the route that stayed", || arrived(&place, "a.out") == ["one", "four"]);
    assert_eq!(arrived(&place, "b.out"), ["two"]);
    assert!(!running.get("/streams").1.contains("b-lines"));
    assert!(!running.get("/metrics").1.contains("aqueduct_component_up{component=\"source.b-in"));

    // It goes on where it was.
    edit(&place, &running, &format!("{first}{}", route("b")), 4);
    eventually("the line that waited", || arrived(&place, "b.out") == ["two", "three"]);
    assert_eq!(running.metric("aqueduct_restarts_total", ""), 0.0);
    assert!(running.stop().success());
}

#[test]
fn a_bad_edit_changes_nothing_and_says_where_it_is_bad() {
    let good = format!("{HEAD}{}", route("a"));
    let place = Place::new(&good);
    let running = place.start();
    healthy(&running);
    place.write_topology(&format!("{good}\n[sink.other]\nkind = \"fil\"\npath = 7\n"));
    let said = "topology.toml:20:8: no kind of sink is called `fil`";
    eventually("the refusal", || readiness(&running)["refused"].is_object());
    let faults = readiness(&running)["refused"]["faults"].clone();
    assert!(faults[0].as_str().unwrap().starts_with("topology.toml:"), "{faults}");
    assert!(faults.to_string().contains("did you mean"), "{faults}");
    assert_eq!(generation(&running), 1);
    assert_eq!(running.metric("aqueduct_reloads_total", "refused"), 1.0);
    assert_eq!(running.metric("aqueduct_topology_refused", ""), 1.0);
    let line = faults[0].as_str().unwrap();
    eventually("the log says it", || running.log().contains(line));
    assert!(line.starts_with(&said[..18]), "{line}");
    healthy(&running);
    add(&place, "a.in", "one\n");
    eventually("it runs on", || arrived(&place, "a.out") == ["one"]);

    edit(&place, &running, &good, 2);
    assert!(readiness(&running)["refused"].is_null());
    assert_eq!(running.metric("aqueduct_topology_refused", ""), 0.0);
    assert_eq!(running.metric("aqueduct_restarts_total", ""), 0.0);
    assert!(running.stop().success());
}

#[test]
fn a_file_that_is_gone_for_a_while_changes_nothing() {
    let good = format!("{HEAD}{}", route("a"));
    let place = Place::new(&good);
    let running = place.start();
    healthy(&running);
    std::fs::remove_file(place.path("topology.toml")).unwrap();
    eventually("the refusal", || {
        readiness(&running)["refused"].to_string().contains("there is no such file")
    });
    edit(&place, &running, &good, 2);
    assert!(running.stop().success());
}

#[test]
fn every_way_of_saving_is_noticed_and_no_half_of_a_file_is_applied() {
    let first = format!("{HEAD}{}", route("a"));
    let more = |name: &str| format!("{first}{}", route(name));
    let place = Place::new(&first);
    let port = place.port.to_string();
    let running = place.start();
    healthy(&running);

    // As editors save: another file takes the name.
    std::fs::write(place.path(".new"), more("b").replace("{port}", &port)).unwrap();
    std::fs::rename(place.path(".new"), place.path("topology.toml")).unwrap();
    eventually("a rename", || generation(&running) == 2);

    // By somebody slow: each half of it would be a file without a fault.
    let text = more("c").replace("{port}", &port);
    let half = text.find("[source.c-in]").unwrap();
    let mut file = std::fs::File::create(place.path("topology.toml")).unwrap();
    file.write_all(&text.as_bytes()[..half]).unwrap();
    file.flush().unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(generation(&running), 2, "half of a file was applied");
    file.write_all(&text.as_bytes()[half..]).unwrap();
    drop(file);
    eventually("the whole of it", || generation(&running) == 3);
    assert!(running.get("/streams").1.contains("c-lines"));
    assert!(running.stop().success());
}

#[test]
fn a_link_that_is_turned_is_an_edit() {
    // As Kubernetes has it: topology.toml -> ..data/topology.toml, ..data -> ..1
    let first = format!("{HEAD}{}", route("a"));
    let place = Place::new(&first);
    let version = |name: &str, text: &str| {
        std::fs::create_dir(place.path(name)).unwrap();
        let text = text.replace("{port}", &place.port.to_string());
        std::fs::write(place.path(name).join("topology.toml"), text).unwrap();
    };
    version("..1", &first);
    std::fs::remove_file(place.path("topology.toml")).unwrap();
    symlink("..1", place.path("..data")).unwrap();
    symlink("..data/topology.toml", place.path("topology.toml")).unwrap();
    let running = place.start();
    healthy(&running);
    for (number, name) in ["b", "c"].iter().enumerate() {
        let version_name = format!("..{}", number + 2);
        version(&version_name, &format!("{first}{}", route(name)));
        symlink(&version_name, place.path("..data_tmp")).unwrap();
        std::fs::rename(place.path("..data_tmp"), place.path("..data")).unwrap();
        eventually("the turned link", || generation(&running) == number as u64 + 2);
        assert!(running.get("/streams").1.contains(&format!("{name}-lines")));
    }
    assert!(running.stop().success());
}

#[test]
fn without_watch_it_waits_to_be_asked() {
    let head = HEAD.replace("[http]", "watch = false\n[http]\ntoken = \"sesame\"");
    let first = format!("{head}{}", route("a"));
    let place = Place::new(&first);
    let running = place.start();
    healthy(&running);
    place.write_topology(&format!("{first}{}", route("b")));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(generation(&running), 1);

    let ask = || Request::post("/api/reload");
    assert_eq!(ask().send(place.port).unwrap().status, 401);
    assert_eq!(Request::get("/api/reload").send(place.port).unwrap().status, 405);
    let asked = || ask().header("Authorization", "Bearer sesame").send(place.port).unwrap();
    let answer = asked();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    assert_eq!(answer["generation"], 2);
    assert!(answer["started"].to_string().contains("group.b-group"), "{answer}");

    place.write_topology("[stream]\n");
    let answer = asked();
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(answer.json()["faults"][0].as_str().unwrap().starts_with("topology.toml:"));

    place.write_topology(&first);
    servers::signal(running.pid(), "HUP");
    eventually("SIGHUP", || generation(&running) == 3);
    assert!(running.stop().success());
}

#[test]
fn without_a_token_no_page_of_a_browser_reloads() {
    let place = Place::new(&format!("{HEAD}{}", route("a")));
    let running = place.start();
    healthy(&running);
    let foreign = Request::post("/api/reload").header("Origin", "http://elsewhere.example");
    assert_eq!(foreign.send(place.port).unwrap().status, 403);
    assert_eq!(Request::post("/api/reload").send(place.port).unwrap().status, 200);
    assert!(running.stop().success());
}

#[test]
fn members_come_and_go_and_a_groups_settings_change() {
    let with = |group: &str| {
        let route = route("a").replace("to = \"a-out\"", &format!("to = \"a-out\"\n{group}"));
        format!("{HEAD}{route}")
    };
    let place = Place::new(&with("members = 1"));
    let running = place.start();
    healthy(&running);
    let members = || {
        let metrics = running.get("/metrics").1;
        let up = metrics.lines().filter(|it| it.starts_with("aqueduct_component_up{"));
        up.filter(|line| line.contains("group.a-group")).count()
    };
    edit(&place, &running, &with("members = 4"), 2);
    eventually("four members", || members() == 4);
    edit(&place, &running, &with("members = 2\nbatch = 7"), 3);
    eventually("two members", || members() == 2);
    add(&place, "a.in", "one\n");
    eventually("they work", || arrived(&place, "a.out") == ["one"]);
    assert_eq!(running.metric("aqueduct_restarts_total", ""), 0.0);
    assert!(running.stop().success());
}

#[test]
fn an_edit_that_mends_a_failing_sink_does_not_wait_for_it() {
    let with = |path: &str| format!("{HEAD}{}", route("a").replace("a.out", path));
    let place = Place::new(&with("nowhere/deep/a.out"));
    std::fs::write(place.path("nowhere"), "a file, and no directory").unwrap();
    let running = place.start();
    add(&place, "a.in", "one\n");
    eventually("it fails", || running.get("/healthz").1.contains("sink.a-out"));
    let edited = Instant::now();
    place.write_topology(&with("a.out"));
    eventually("it is mended", || arrived(&place, "a.out") == ["one"]);
    println!("mended after {} ms", edited.elapsed().as_millis());
    healthy(&running);
    assert!(running.stop().success());
}

#[test]
fn an_edit_mends_a_sink_whose_database_does_not_answer() {
    // It accepts and says nothing, as a host behind a bad firewall does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nobody@{}/db", silent.local_addr().unwrap());
    let with = |kind: &str, more: &str| {
        let sink = format!("kind = \"{kind}\"\n{more}");
        format!("{HEAD}{}", route("a").replace("kind = \"file\"\npath = \"a.out\"", &sink))
    };
    let place = Place::new(&with("postgres", &format!("url = \"{url}\"\ntable = \"lines\"")));
    let running = place.start();
    add(&place, "a.in", "one\n");
    std::thread::sleep(Duration::from_millis(500));
    let edited = Instant::now();
    place.write_topology(&with("file", "path = \"a.out\""));
    eventually("it is mended", || arrived(&place, "a.out") == ["one"]);
    println!("mended after {} ms", edited.elapsed().as_millis());
    healthy(&running);
    assert!(running.stop().success());
}

#[test]
fn a_stream_that_moves_leaves_nothing_behind() {
    let with = |path: &str, sink: &str| {
        let route = route("a").replace("[stream.a-lines]", &format!("[stream.a-lines]\n{path}"));
        format!("{HEAD}{}", route.replace("a.out", sink))
    };
    let place = Place::new(&with("", "nowhere/a.out"));
    std::fs::write(place.path("nowhere"), "a file, and no directory").unwrap();
    let running = place.start();
    add(&place, "a.in", "one\ntwo\n");
    eventually("they wait", || running.metric("aqueduct_events_published_total", "") == 2.0);
    place.write_topology(&with("path = \"other.db\"", "nowhere/a.out"));
    eventually("the refusal", || readiness(&running)["refused"].is_object());
    let faults = readiness(&running)["refused"]["faults"].to_string();
    let wanted = ["topology.toml:", "a-group", "2 events", "a-lines", "/streams"];
    assert!(wanted.iter().all(|part| faults.contains(part)), "{faults}");
    assert_eq!(generation(&running), 1);

    edit(&place, &running, &with("", "a.out"), 2);
    eventually("they arrive", || arrived(&place, "a.out").len() == 2);
    edit(&place, &running, &with("path = \"other.db\"", "a.out"), 3);
    add(&place, "a.in", "three\n");
    eventually("the stream's new place", || arrived(&place, "a.out").len() == 3);
    assert!(place.path("other.db").exists());
    assert_eq!(arrived(&place, "a.out"), ["one", "two", "three"]);
    assert!(running.stop().success());
}

#[test]
fn a_stream_moves_while_it_is_written() {
    let with = |key: &str| {
        format!(
            "{HEAD}
[source.numbers]
kind = \"publisher\"
to = \"numbers\"
rate = \"2000/s\"
n = \"1..6000\"
body = {{ number = \"{{n}}\" }}
[stream.numbers]
path = \"{key}\"
[group.writer]
from = \"numbers\"
to = \"db\"
members = 2
[sink.db]
kind = \"sqlite\"
path = \"out.db\"
table = \"numbers\"
columns = {{ id = \"@id\", number = \"number\" }}
"
        )
    };
    let place = Place::new(&with("first.db"));
    let running = place.start();
    healthy(&running);
    eventually("some", || running.metric("aqueduct_events_stored_total", "") > 500.0);
    edit(&place, &running, &with("second.db"), 2);
    edit(&place, &running, &with("third.db"), 3);
    let count = "SELECT count(*) FROM numbers";
    eventually("all", || {
        place.count("out.db", "SELECT max(CAST(number AS INT)) FROM numbers") == 6000
    });
    eventually("each", || place.count("out.db", count) == 6000);
    assert_eq!(place.count("out.db", "SELECT count(DISTINCT number) FROM numbers"), 6000);
    assert!(running.stop().success());
}

#[test]
fn what_only_a_start_can_do_is_said() {
    let text = format!("{HEAD}{}", route("a"));
    let place = Place::new(&text);
    let running = place.start();
    healthy(&running);
    place.write_topology(&text.replace("\"data\"", "\"elsewhere\""));
    eventually("the refusal", || {
        let faults = readiness(&running)["refused"]["faults"].to_string();
        faults.contains("topology.toml:3:12: the data directory cannot change")
    });
    let with = |log: &str| text.replace("[http]", &format!("threads = 7\nlog = \"{log}\"\n[http]"));
    edit(&place, &running, &with("info"), 2);
    eventually("the note", || running.log().contains("`threads` takes effect at the next start"));
    edit(&place, &running, &with("error"), 3);
    edit(&place, &running, &with("info"), 4);
    eventually("the log says it", || running.log().contains("generation=4"));
    assert!(!running.log().contains("generation=3"), "the log's filter is not applied");
    assert!(running.stop().success());
}

#[test]
fn http_changes_with_the_file() {
    let with = |http: &str, more: &str| {
        let http = format!("[http]\n{http}");
        let head = HEAD.replace("[http]\nlisten = \"127.0.0.1:{port}\"", &http);
        format!("{head}{}{more}", route("a"))
    };
    let source = |path: &str| {
        format!("[source.post]\nkind = \"http\"\npath = \"{path}\"\nto = \"a-lines\"\n")
    };
    let listen = "listen = \"127.0.0.1:{port}\"\n";
    let place = Place::new(&with(listen, &source("/log")));
    let running = place.start();
    healthy(&running);
    let post = |port: u16, path: &str, body: &str| {
        Request::post(path).body("text/plain", body).send(port).unwrap().status
    };
    assert_eq!(post(place.port, "/log", "one"), 202);
    edit(&place, &running, &with(listen, &source("/other")), 2);
    assert_eq!(post(place.port, "/log", "lost"), 404);
    eventually("the new path", || post(place.port, "/other", "two") == 202);
    // With another line of the file changed, requests go on without a gap.
    edit(&place, &running, &with(&format!("{listen}token = \"sesame\"\n"), &source("/other")), 3);
    assert_eq!(post(place.port, "/other", "lost"), 401);

    let other = free_port();
    let admin = format!("listen = \"127.0.0.1:{other}\"\nadmin = \"127.0.0.1:{{port}}\"\n");
    edit(&place, &running, &with(&admin, &source("/other")), 4);
    eventually("the new port", || {
        let post = Request::post("/other").body("text/plain", "three").send(other);
        post.is_ok_and(|answer| answer.status == 202)
    });
    assert_eq!(post(place.port, "/other", "lost"), 404);
    assert_eq!(running.get("/metrics").0, 200);
    assert_eq!(process::try_get(other, "/metrics").unwrap().0, 404);

    // Where it cannot listen, nothing changes.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken =
        format!("listen = \"{}\"\nadmin = \"127.0.0.1:{{port}}\"\n", taken.local_addr().unwrap());
    place.write_topology(&with(&taken, &source("/other")));
    eventually("the refusal", || {
        readiness(&running)["refused"].to_string().contains("cannot listen on 127.0.0.1")
    });
    assert_eq!(post(other, "/other", "four"), 202);
    eventually("all that was accepted", || arrived(&place, "a.out").len() == 4);
    assert!(running.stop().success());
}

#[test]
fn a_new_group_of_a_running_stream_misses_nothing_from_then_on() {
    let redis = Redis::start();
    let rabbit = Rabbit::shared();
    let streams = [
        String::new(),
        format!("kind = \"redis\"\nurl = \"{}\"", redis.url()),
        format!("kind = \"postgres\"\nurl = \"{}\"", Postgres::shared().database()),
        format!("kind = \"rabbitmq\"\nurl = \"{}\"", rabbit.vhost()),
    ];
    for stream in streams {
        let first = format!(
            "{HEAD}{}",
            route("a").replace("[stream.a-lines]", &format!("[stream.a-lines]\n{stream}"))
        );
        let more = "[group.b-group]\nfrom = \"a-lines\"\nto = \"b-out\"\n[sink.b-out]\nkind = \
                    \"file\"\npath = \"b.out\"\n";
        let place = Place::new(&first);
        let running = place.start();
        healthy(&running);
        add(&place, "a.in", "one\n");
        eventually("the first line", || arrived(&place, "a.out") == ["one"]);
        edit(&place, &running, &format!("{first}{more}"), 2);
        healthy(&running);
        add(&place, "a.in", "two\n");
        eventually("the old group", || arrived(&place, "a.out") == ["one", "two"]);
        eventually("the new group", || {
            arrived(&place, "b.out").last().is_some_and(|it| it == "two")
        });
        // Gone from the file, it holds what comes, and goes on with it when it is back.
        edit(&place, &running, &first, 3);
        add(&place, "a.in", "three\n");
        eventually("the old group", || arrived(&place, "a.out").len() == 3);
        edit(&place, &running, &format!("{first}{more}"), 4);
        eventually("what it held", || {
            arrived(&place, "b.out").last().is_some_and(|it| it == "three")
        });
        assert_eq!(running.metric("aqueduct_restarts_total", ""), 0.0, "{stream}");
        assert!(running.stop().success());
    }
}

#[test]
fn only_a_part_of_the_file_runs_and_the_rest_is_no_concern_of_it() {
    let first = format!("{HEAD}{}{}", route("a"), route("b"));
    let place = Place::new(&first);
    let running = place.start_with(&["--only", "source.a-in", "--only", "group.a-group"], &[]);
    healthy(&running);
    edit(&place, &running, &first.replace("b.out", "c.out"), 2);
    assert!(!running.get("/streams").1.contains("b-lines"));
    place.write_topology(&format!("{HEAD}{}", route("b")));
    eventually("the refusal", || {
        readiness(&running)["refused"].to_string().contains("--only source.a-in")
    });
    assert!(running.stop().success());
}

#[test]
fn tracing_is_turned_on_and_off_and_to_another_collector() {
    let collectors = [Collector::start(free_port()), Collector::start(free_port())];
    let base = format!(
        "{HEAD}\n[source.numbers]\nkind = \"publisher\"\nto = \"a\"\nrate = \"200/s\"\n[stream.a]\n\
         [group.a]\nfrom = \"a\"\nto = \"out\"\n[sink.out]\nkind = \"file\"\npath = \"a.out\"\n"
    );
    let with = |collector: &Collector, sample: &str| {
        let url = format!("http://127.0.0.1:{}", collector.port);
        format!("{base}[tracing]\notlp = \"{url}\"\nsample = \"{sample}\"\n")
    };
    let place = Place::new(&base);
    let running = place.start();
    healthy(&running);
    edit(&place, &running, &with(&collectors[0], "all"), 2);
    eventually("spans", || !collectors[0].named("write a.out").is_empty());
    edit(&place, &running, &with(&collectors[0], "none"), 3);
    let quiet = || {
        let before = collectors[0].count();
        std::thread::sleep(Duration::from_millis(1500));
        collectors[0].count() == before
    };
    eventually("no more of them", quiet);
    edit(&place, &running, &with(&collectors[1], "all"), 4);
    eventually("spans elsewhere", || !collectors[1].named("send a").is_empty());
    assert!(quiet());
    edit(&place, &running, &base, 5);
    assert_eq!(running.metric("aqueduct_restarts_total", ""), 0.0);
    assert!(running.stop().success());
}
