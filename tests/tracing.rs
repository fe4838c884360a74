//! Every event's journey, as a collector sees it.

#[path = "support/collector.rs"]
mod collector;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use collector::{CLIENT, CONSUMER, Collector, PRODUCER, SERVER, Span};
use process::{Place, Request, Running, eventually, free_port};
use servers::{Postgres, Rabbit, Redis};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const TOKEN: &str = "a-token-nobody-may-see";

/// How long events lie in the stream before a member is there.
const WAIT: Duration = Duration::from_millis(1500);

fn topology(collector: &Collector, stream: &str, sink: &str) -> String {
    format!(
        "[http]\nlisten = \"127.0.0.1:{{port}}\"\ntoken = \"{TOKEN}\"\n[tracing]\notlp = \
         \"http://127.0.0.1:{}\"\nservice = \"plant\"\n[source.log]\nkind = \"http\"\npath = \
         \"/log\"\nto = \"events\"\n[stream.events]\n{stream}\n[group.writer]\nfrom = \
         \"events\"\nto = \"db\"\n[sink.db]\n{sink}\n",
        collector.port
    )
}

fn post(path: &str) -> Request {
    Request::post(path).header("Authorization", &format!("Bearer {TOKEN}"))
}

fn ready(running: &Running) {
    eventually("it is ready", || running.get("/readyz").0 == 200);
}

/// The one span of this name; it comes when its batch is sent.
fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut named = spans.iter().filter(|span| span.name == name);
    let first = named.next().unwrap_or_else(|| panic!("no span {name} in {spans:#?}"));
    assert!(named.next().is_none(), "two spans {name} in {spans:#?}");
    first
}

/// A request with a `traceparent`, to one process; the row, from another one that comes later.
fn followed(stream: &str, system: &str) {
    let collector = Collector::start(free_port());
    let database = Postgres::shared().database();
    let sink = format!("kind = \"postgres\"\nurl = \"{database}\"\ntable = \"rows\"");
    let place = Place::new(&topology(&collector, stream, &sink));
    let taker = place.start_with(&["--only", "source.log"], &[]);
    ready(&taker);
    let request = post("/log")
        .header("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .header("tracestate", "vendor=value")
        .json("{\"n\":1}");
    let answer = request.send(place.port).unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["ids"][0].as_str().unwrap().to_owned();
    std::thread::sleep(WAIT);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let variables = [("AQUEDUCT__HTTP__LISTEN", listen.as_str())];
    let args = ["run", "topology.toml", "--only", "group.writer"];
    let writer = place.start_command(&args, &variables, port);
    eventually("it is stored", || {
        writer.metric("aqueduct_events_stored_total", "group=\"writer\"") == 1.0
    });
    eventually("all spans are there", || collector.trace(TRACE).len() >= 5);
    assert!(taker.stop().success() && writer.stop().success());

    let spans = collector.trace(TRACE);
    let request = only(&spans, "POST /log");
    let send = only(&spans, "send events");
    let process = only(&spans, "process events");
    let insert = only(&spans, "insert rows");
    let batch = only(&spans, "batch db");
    assert_eq!(spans.len(), 5, "{spans:#?}");
    assert_eq!(collector.count(), 5, "other traces: {:#?}", collector.spans());
    let kinds = [request, send, process, insert].map(|span| span.kind);
    assert_eq!(kinds, [SERVER, PRODUCER, CONSUMER, CLIENT]);
    let parents = [request, send, process, insert].map(|span| span.parent.as_str());
    assert_eq!(parents, ["00f067aa0ba902b7", &request.id, &send.id, &process.id]);
    assert_eq!(insert.links, [(TRACE.to_owned(), batch.id.clone())]);
    for span in &spans {
        assert!(span.error.is_none() && span.start_us <= span.end_us, "{span:#?}");
        assert_eq!(span.resource["service.name"], "plant");
        assert_eq!(span.schema, "https://opentelemetry.io/schemas/1.38.0");
        assert!(span.state == "vendor=value" || span.name == "batch db", "{span:#?}");
    }
    assert_ne!(
        send.resource["service.instance.id"], process.resource["service.instance.id"],
        "two processes"
    );
    // Each within its parent; what is in a stream has left the request long ago.
    assert!(request.start_us <= send.start_us && send.end_us <= request.end_us);
    assert!(process.start_us <= insert.start_us && insert.end_us <= process.end_us);
    let wait_ms = process.number("aqueduct.wait_ms");
    let between_ms = (process.start_us - send.start_us) as f64 / 1e3;
    assert!((wait_ms - between_ms).abs() < 50.0, "{wait_ms} in the stream, {between_ms} between");
    assert!(wait_ms >= WAIT.as_secs_f64() * 1e3, "{wait_ms}");

    assert_eq!(request.get("http.request.method"), "POST");
    assert_eq!(request.get("http.route"), "/log");
    assert_eq!(request.get("http.response.status_code"), "202");
    for (span, operation) in [(send, "send"), (process, "process")] {
        assert_eq!(span.get("messaging.system"), system);
        assert_eq!(span.get("messaging.destination.name"), "events");
        assert_eq!(span.get("messaging.operation.type"), operation);
        assert_eq!(span.get("messaging.message.id"), id);
        assert_eq!(span.get("messaging.message.body.size"), "7");
    }
    assert_eq!(process.get("messaging.consumer.group.name"), "writer");
    assert_eq!(insert.get("db.system.name"), "postgresql");
    assert_eq!(insert.get("db.collection.name"), "rows");
    assert_eq!(insert.get("db.operation.batch.size"), "1");
    assert!(!format!("{spans:?}").contains(TOKEN));
}

#[test]
fn a_request_is_followed_through_redis() {
    let server = Redis::start();
    followed(&format!("kind = \"redis\"\nurl = \"{}\"", server.url()), "redis");
}

#[test]
fn a_request_is_followed_through_rabbitmq() {
    let url = Rabbit::shared().vhost();
    followed(&format!("kind = \"rabbitmq\"\nurl = \"{url}\""), "rabbitmq");
}

#[test]
fn a_request_is_followed_through_an_embedded_stream() {
    followed("kind = \"embedded\"", "embedded");
}

#[test]
fn a_request_is_followed_through_postgres() {
    let url = Postgres::shared().database();
    followed(&format!("kind = \"postgres\"\nurl = \"{url}\""), "postgres");
}

#[test]
fn what_is_not_sampled_is_carried_unchanged_and_a_foreign_entry_is_followed() {
    let collector = Collector::start(free_port());
    let server = Redis::start();
    let stream = format!("kind = \"redis\"\nurl = \"{}\"", server.url());
    let sink = "kind = \"sqlite\"\npath = \"out.db\"\ntable = \"rows\"\ncolumns = { event_id = \
                \"@id\", body = \"@body\", trace = \"@trace\" }";
    let place = Place::new(&topology(&collector, &stream, sink));
    let running = place.start();
    ready(&running);
    let unsampled = "00-11112222333344445555666677778888-1111222233334444-00";
    let request = post("/log").header("traceparent", unsampled).json("\"unsampled\"");
    assert_eq!(request.send(place.port).unwrap().status, 202);
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut entry = redis::cmd("XADD");
    entry.arg("events").arg("*").arg("body").arg("\"foreign\"");
    entry.arg("traceparent").arg(format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let _: String = entry.query(&mut connection).unwrap();
    let rows = || {
        let rows = place.rows::<(String, String)>("out.db", "SELECT body, trace FROM rows");
        rows.into_iter().collect::<HashMap<_, _>>()
    };
    eventually("both are stored", || rows().len() == 2);
    let rows = rows();
    assert_eq!(rows["\"unsampled\""], "11112222333344445555666677778888");
    assert_eq!(rows["\"foreign\""], TRACE);
    let all: Vec<redis::Value> = {
        let mut range = redis::cmd("XRANGE");
        range.arg("events").arg("-").arg("+").query(&mut connection).unwrap()
    };
    let kept = all.is_empty() || format!("{all:?}").contains(unsampled);
    assert!(kept, "its traceparent was changed: {all:?}");
    assert!(running.stop().success());
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    assert_eq!(only(&spans, "process events").parent, "00f067aa0ba902b7");
    assert_eq!(only(&spans, "insert rows").get("db.system.name"), "sqlite");
}

#[test]
fn a_trigger_is_one_trace_also_through_two_streams() {
    let collector = Collector::start(free_port());
    let place = Place::new(&format!(
        "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[tracing]\notlp = \
         \"http://127.0.0.1:{}\"\n[source.numbers]\nkind = \"publisher\"\nto = \"first\"\nn = \
         \"1..6\"\ninstances = 2\ntrigger = \"http\"\n[stream.first]\n[stream.second]\n\
         [group.pass]\nfrom = \"first\"\nto = \"second\"\n[group.write]\nfrom = \"second\"\nto = \
         \"out\"\n[sink.out]\nkind = \"file\"\npath = \"out.txt\"\n",
        collector.port
    ));
    let running = place.start();
    ready(&running);
    assert_eq!(Request::post("/publish/numbers").send(place.port).unwrap().status, 200);
    eventually("they are stored", || running.metric("aqueduct_events_stored_total", "") == 12.0);
    assert!(running.stop().success());
    let spans = collector.spans();
    let traces: BTreeSet<&str> = spans.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    let parent = |span: &Span| spans.iter().find(|it| it.id == span.parent).cloned();
    let inserts: Vec<Span> = collector.named("write out.txt");
    assert_eq!(inserts.len(), 6);
    for insert in inserts {
        let mut way = vec![insert.name.clone()];
        let mut at = insert;
        while let Some(above) = parent(&at) {
            way.push(above.name.clone());
            at = above;
        }
        assert_eq!(
            way,
            [
                "write out.txt",
                "process second",
                "send second",
                "process first",
                "send first",
                "POST /publish/numbers"
            ]
        );
        assert!(at.parent.is_empty());
    }
}

#[test]
fn what_fails_is_followed_without_being_sampled() {
    let collector = Collector::start(free_port());
    let place = Place::new(&format!(
        "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[tracing]\notlp = \
         \"http://127.0.0.1:{}\"\nsample = \"none\"\n[source.input]\nkind = \"tail\"\npath = \
         \"in.txt\"\nto = \"events\"\nmax_line = \"1KiB\"\n[stream.events]\n[group.write]\nfrom = \
         \"events\"\nto = \"db\"\nattempts = 3\n[sink.db]\nkind = \"sqlite\"\npath = \
         \"out.db\"\ntable = \"rows\"\ncolumns = {{ id = \"@id\", n = {{ from = \"n\", type = \
         \"bigint\" }} }}\n",
        collector.port
    ));
    let mut lines = String::new();
    for n in 0..500 {
        writeln!(lines, "{{\"n\":{n}}}").unwrap();
    }
    lines.push_str("{\"n\":\"postgres://user:secret@host/x\"}\n");
    writeln!(lines, "{}", "x".repeat(2000)).unwrap();
    std::fs::write(place.path("in.txt"), lines).unwrap();
    let done = place.run_until_idle();
    let spans = collector.spans();
    let letters = collector.named("dead-letter");
    let [long, refused] = {
        let mut letters = letters.clone();
        letters.sort_by_key(|letter| !letter.error.as_ref().unwrap().contains("max_line"));
        <[Span; 2]>::try_from(letters).unwrap_or_else(|it| panic!("{it:#?}"))
    };
    assert!(long.parent.is_empty() && long.kind == PRODUCER, "{long:#?}");
    let process = only(&spans, "process events");
    assert_eq!((&refused.parent, &refused.trace), (&process.id, &process.trace));
    assert_eq!(refused.get("messaging.destination.name"), "events.dead");
    let refusals: Vec<&str> = process.events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(refusals, ["refused"; 4], "once among others, three times alone");
    assert!(process.error.as_ref().is_some_and(|cause| cause.contains("bigint")), "{process:#?}");
    // The first refusal was among unsampled ones: only the three alone were followed.
    let inserts = collector.named("insert rows");
    assert_eq!(inserts.len(), 3);
    assert!(inserts.iter().all(|it| it.error.is_some() && it.parent == process.id));
    assert!(!format!("{spans:?}").contains("secret"), "{spans:#?}");
    let line =
        done.stderr.lines().find(|line| line.contains("a dead letter") && line.contains("bigint"));
    assert!(line.is_some_and(|line| line.contains(&process.trace)), "{}", done.stderr);
    assert_eq!(spans.len(), 2 + 1 + 2 * 3, "{spans:#?}");
}

#[test]
fn a_request_that_cannot_be_answered_is_followed_without_being_sampled() {
    let collector = Collector::start(free_port());
    let stream = format!("kind = \"redis\"\nurl = \"redis://:hidden@127.0.0.1:{}\"", free_port());
    let topology = topology(&collector, &stream, "kind = \"console\"");
    let place = Place::new(&topology.replace("[source", "sample = \"none\"\n[source"));
    let running = place.start();
    eventually("it listens", || running.get("/livez").0 == 200);
    assert_eq!(post("/log").json("1").send(place.port).unwrap().status, 503);
    assert_eq!(post("/log").json("{").send(place.port).unwrap().status, 400);
    eventually("the span is there", || collector.count() > 0);
    assert!(running.stop().success());
    let spans = collector.named("POST /log");
    let span = only(&spans, "POST /log"); // a bad request is not our error
    assert_eq!((span.kind, span.get("http.response.status_code")), (SERVER, "503"));
    assert!(span.error.as_ref().is_some_and(|cause| cause.contains("events")), "{span:#?}");
    assert!(!format!("{:?}", collector.spans()).contains("hidden"));
}

#[test]
fn a_sink_that_is_away_and_a_member_that_is_killed_are_seen() {
    let collector = Collector::start(free_port());
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    let sink = format!("kind = \"postgres\"\nurl = \"{url}\"\ntable = \"rows\"");
    server.psql(database, "CREATE TABLE rows (event_id uuid PRIMARY KEY, data text NOT NULL)");
    server.psql(database, "CREATE FUNCTION away() RETURNS trigger AS 'BEGIN RAISE EXCEPTION USING \
                           ERRCODE = ''53100'', MESSAGE = ''the disk is full''; END' LANGUAGE plpgsql");
    let place = Place::new(&topology(&collector, "", &sink));
    let running = place.start();
    eventually("all is well", || running.get("/healthz").0 == 200);
    let trigger = "CREATE TRIGGER away BEFORE INSERT ON rows EXECUTE FUNCTION away()";
    server.psql(database, trigger);
    let trace = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let request = post("/log").header("traceparent", &trace).json("{\"n\":1}");
    assert_eq!(request.send(place.port).unwrap().status, 202);
    eventually("it is tried", || !collector.named("insert rows").is_empty());
    running.kill();
    server.psql(database, "DROP TRIGGER away ON rows");
    let running = place.start();
    eventually("it is stored", || collector.named("process events").len() == 1);
    assert!(running.stop().success());
    let spans = collector.trace(TRACE);
    let process = only(&spans, "process events");
    let events: Vec<&str> = process.events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(events, ["reclaimed"], "{process:#?}");
    assert_eq!(process.events[0].1["aqueduct.deliveries"], "2");
    let (last, tried): (Vec<&Span>, Vec<&Span>) =
        spans.iter().filter(|it| it.name == "insert rows").partition(|it| it.error.is_none());
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].parent, process.id);
    assert!(tried.iter().all(|it| it.error.as_ref().unwrap().contains("the disk is full")));

    // And without a kill: the same member tries again.
    let running = place.start();
    eventually("all is well", || running.get("/healthz").0 == 200);
    server.psql(database, trigger);
    let again = TRACE.replace('4', "5");
    let request = post("/log").header("traceparent", &trace.replace(TRACE, &again)).json("2");
    assert_eq!(request.send(place.port).unwrap().status, 202);
    eventually("it is tried", || collector.trace(&again).iter().any(|it| it.name == "insert rows"));
    server.psql(database, "DROP TRIGGER away ON rows");
    let process = || only(&collector.trace(&again), "process events").clone();
    let seen = || collector.trace(&again).iter().any(|it| it.name == "process events");
    eventually("it is stored", seen);
    assert_eq!(process().events[0].0, "retry");
    assert!(process().events[0].1["aqueduct.cause"].contains("the disk is full"));
    assert!(running.stop().success());
}

#[test]
fn no_second_begins_more_traces_than_the_rate() {
    let collector = Collector::start(free_port());
    let place = Place::new(&format!(
        "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[tracing]\notlp = \
         \"http://127.0.0.1:{}\"\n[source.fast]\nkind = \"publisher\"\nto = \"events\"\ninstances \
         = 3\n[source.log]\nkind = \"http\"\npath = \"/log\"\nto = \"events\"\n[stream.events]\n\
         max_backlog = 1000000000\n",
        collector.port
    ));
    let running = place.start();
    ready(&running);
    let until = Instant::now() + Duration::from_secs(4);
    let mut posted = 0;
    while Instant::now() < until || posted < 100 {
        posted += 1;
        assert_eq!(Request::post("/log").json("1").send(place.port).unwrap().status, 202);
    }
    let published = running.metric("aqueduct_events_published_total", "source=\"fast\"");
    assert!(running.stop().success());
    assert!(published > 20_000.0, "{published}");
    let mut fast = collector.named("send events");
    let sends = fast.len();
    fast.retain(|span| span.parent.is_empty());
    let requests = collector.named("POST /log");
    assert_eq!(sends, fast.len() + requests.len(), "each request has its send");
    for mut begun in [fast, requests] {
        begun.sort_by_key(|span| span.start_us);
        // All but the first second are full of them, and none is fuller.
        assert!(begun.len() >= 30, "{}", begun.len());
        for window in begun.windows(11) {
            let us = window[10].start_us - window[0].start_us;
            assert!(us >= 1_000_000, "eleven traces of one source within {us} µs");
        }
    }
}

#[test]
fn a_stop_sends_what_is_left() {
    let collector = Collector::start(free_port());
    let place = Place::new(&format!(
        "[tracing]\notlp = \"http://127.0.0.1:{}\"\nsample = \"all\"\n[source.numbers]\nkind = \
         \"publisher\"\nto = \"events\"\nn = \"1..2000\"\n[stream.events]\n[group.write]\nfrom = \
         \"events\"\nto = \"out\"\n[sink.out]\nkind = \"file\"\npath = \"out.txt\"\n",
        collector.port
    ));
    place.run_until_idle();
    for name in ["send events", "process events", "write out.txt"] {
        let traces: BTreeSet<String> =
            collector.named(name).into_iter().map(|span| span.trace).collect();
        assert_eq!(traces.len(), 2000, "{name}");
    }
}

#[test]
fn a_collector_that_is_away_holds_nobody_up() {
    let mut collector = Collector::start(free_port());
    let place = Place::new(&format!(
        "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[tracing]\notlp = \
         \"http://127.0.0.1:{}\"\nsample = \"all\"\n[source.fast]\nkind = \"publisher\"\nto = \
         \"events\"\nrate = \"5000/s\"\n[stream.events]\n[group.write]\nfrom = \"events\"\nto = \
         \"out\"\n[sink.out]\nkind = \"file\"\npath = \"out.txt\"\n",
        collector.port
    ));
    let running = place.start();
    let stored = || running.metric("aqueduct_events_stored_total", "");
    let dropped = || running.metric("aqueduct_spans_dropped_total", "");
    eventually("spans come", || collector.count() > 2000);
    collector.kill();
    eventually("spans are dropped", || dropped() > 20_000.0);
    let (before, peak) = (stored(), running.peak_kib());
    let since = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    let rate = (stored() - before) / since.elapsed().as_secs_f64();
    assert!(rate > 2500.0, "{rate} events/s while the collector is away");
    let grown = running.peak_kib().saturating_sub(peak);
    assert!(grown < 8 * 1024, "memory grew by {grown} KiB while the collector was away");
    let seen = collector.count();
    collector.up();
    eventually("spans come again", || collector.count() > seen + 2000);
    assert!(running.metric("aqueduct_spans_exported_total", "") > 0.0);
    let log = running.log();
    assert_eq!(log.matches("spans cannot be sent").count(), 1, "{log}");
    eventually("it says so", || running.log().contains("spans are sent again"));
    assert!(running.stop().success());
}

/// As in the shipped topologies, where `OTLP_URL` is not set; and with `sample = "none"` as long as
/// nothing goes wrong and nobody brings a trace.
#[test]
fn what_is_off_connects_to_nobody_and_says_nothing() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.set_nonblocking(true).unwrap();
    let none = format!("otlp = \"http://{}\"\nsample = \"none\"", nobody.local_addr().unwrap());
    for (tracing, threads) in [("otlp = \"${NOT_SET:-}\"", 0), (&*none, 1)] {
        let place = Place::new(&format!(
            "[http]\nlisten = \"127.0.0.1:{{port}}\"\n[tracing]\n{tracing}\n[source.fast]\nkind = \
             \"publisher\"\nto = \"events\"\nrate = \"5000/s\"\n[stream.events]\n[group.write]\nfrom = \
             \"events\"\nto = \"out\"\n[sink.out]\nkind = \"file\"\npath = \"out.txt\"\n"
        ));
        let running = place.start();
        eventually("events flow", || running.metric("aqueduct_events_stored_total", "") > 5000.0);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap();
        let names =
            tasks.filter_map(|it| std::fs::read_to_string(it.ok()?.path().join("comm")).ok());
        assert_eq!(names.filter(|name| name.trim() == "spans").count(), threads, "{tracing}");
        assert!(nobody.accept().is_err(), "{tracing}: somebody connected");
        assert_eq!(running.metric("aqueduct_spans_", ""), 0.0, "{tracing}");
        assert!(!running.log().contains("spans"), "{}", running.log());
        assert!(running.stop().success());
    }
}
