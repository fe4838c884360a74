//! The data of the status page, as programs ask for it: what it holds, what it hides, and whom it
//! lets do something.

#[path = "support/process.rs"]
mod process;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use process::{Answer, Place, Request, Running, eventually, free_port};
use serde_json::{Value as Json, json};

const TOPOLOGY: &str = r#"
[http]
listen = "127.0.0.1:{port}"
EXTRA

[tracing]
otlp = "http://user:hunter2@127.0.0.1:1"
sample = "all"

[source.intake]
kind = "http"
path = "/log"
to = "events"

[stream.events]
shards = 2

[group.writer]
from = "events"
to = "db"
members = 2
attempts = 1

[sink.db]
kind = "sqlite"
path = "out.db"
table = "rows"
columns = { event_id = "@id", n = { from = "n", type = "bigint" } }

[stream.far]
kind = "redis"
url = "redis://:hunter2@127.0.0.1:1"

[group.far_writer]
from = "far"
to = "file"

[sink.file]
kind = "file"
path = "far.jsonl"

[query.rows]
path = "/rows"
sink = "db"
order = "n"
cache = { url = "redis://:hunter2@127.0.0.1:1", ttl = "1s" }
"#;

fn start(extra: &str) -> (Place, Running) {
    let place = Place::new(&TOPOLOGY.replace("EXTRA", extra));
    let running = place.start();
    eventually("it takes events", || running.get("/readyz").0 != 0);
    (place, running)
}

fn post(place: &Place, body: &str) -> u16 {
    Request::post("/log").json(body).send(place.port).unwrap().status
}

fn state(port: u16) -> Json {
    Request::get("/api/state").send(port).unwrap().json()
}

fn node<'s>(state: &'s Json, id: &str) -> &'s Json {
    let nodes = state["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["id"] == id).unwrap_or_else(|| panic!("no {id} in {state}"))
}

fn edge<'s>(state: &'s Json, from: &str, to: &str) -> &'s Json {
    let edges = state["edges"].as_array().unwrap();
    let id = |end: &Json| state["nodes"][end.as_u64().unwrap() as usize]["id"].clone();
    let found = edges.iter().find(|edge| id(&edge["from"]) == from && id(&edge["to"]) == to);
    found.unwrap_or_else(|| panic!("no way from {from} to {to}"))
}

#[test]
fn the_state_tells_everything_but_secrets() {
    let (place, _running) = start("");
    eventually("it stores", || post(&place, r#"{"n":1}"#) == 202);
    eventually("a refusal", || post(&place, r#"{"n":"none"}"#) == 202);
    eventually("all is counted", || {
        let state = state(place.port);
        node(&state, "group.writer")["now"]["dead"] == 1
            && edge(&state, "group.writer", "sink.db")["now"]["total"] == 1
            && edge(&state, "source.intake", "stream.events")["history"].as_array().unwrap().len()
                > 2
    });
    let state = state(place.port);
    assert!(!state.to_string().contains("hunter2"), "{state}");
    let about = &state["about"];
    assert_eq!((&about["generation"], &about["refused"]), (&json!(1), &Json::Null));
    assert_eq!((&about["token"], &about["service"]), (&json!(false), &json!("aqueduct")));
    assert_eq!(about["jaeger"], "http://{host}:16686");
    assert!(about["promises"][0].as_str().unwrap().contains("exactly once"));

    let stream = &node(&state, "stream.events")["now"];
    assert_eq!(stream["state"], "up");
    assert_eq!(stream["shards"].as_array().unwrap().len(), 2);
    let group = &node(&state, "group.writer")["now"];
    assert_eq!(
        (&group["lag"], &group["pending"], &group["actors"]),
        (&json!(0), &json!(0), &json!([2, 2]))
    );
    assert_eq!(group["members"].as_array().unwrap().len(), 2);
    assert_eq!(group["oldest_us"], Json::Null);
    let far = &node(&state, "stream.far")["now"];
    assert_eq!((&far["state"], &far["length"]), (&json!("down"), &Json::Null));
    assert!(far["cause"].as_str().unwrap().contains("127.0.0.1:1"));
    assert!(far["last_error"]["time_us"].as_i64().unwrap() > about["started_us"].as_i64().unwrap());
    assert!(far["restarts"].as_u64().unwrap() > 0);
    assert_eq!(node(&state, "query.rows")["now"]["state"], "up");
    let settings = node(&state, "stream.far")["settings"].to_string();
    assert!(settings.contains("redis://:***@127.0.0.1:1"), "{settings}");

    let now = &state["now"];
    assert_eq!(
        (&now["published"], &now["stored"], &now["dead"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert_eq!(now["healthy"], false);
    assert!(now["memory_bytes"].as_u64().unwrap() > 1_000_000);
}

#[test]
fn what_waits_has_an_age_and_what_needs_something_that_is_down_waits() {
    let text = TOPOLOGY.replace("EXTRA", "").replace("out.db", "away/out.db");
    let place = Place::new(&text);
    std::fs::write(place.path("away"), "a file where a folder is needed").unwrap();
    let running = place.start();
    eventually("it takes events", || running.get("/livez").0 == 200);
    eventually("it takes them", || post(&place, r#"{"n":1}"#) == 202);
    eventually("it is seen to wait", || {
        let state = state(place.port);
        let group = &node(&state, "group.writer")["now"];
        let age =
            state["now"]["time_us"].as_i64().unwrap() - group["oldest_us"].as_i64().unwrap_or(0);
        let cause = group["cause"].as_str().unwrap_or_default();
        node(&state, "sink.db")["now"]["state"] == "down"
            && group["state"] == "waiting"
            && cause.starts_with("waits for sink.db: ")
            && group["lag"].as_u64().unwrap() + group["pending"].as_u64().unwrap() == 1
            && (1_000_000..60_000_000).contains(&age)
    });
}

/// Reads server-sent events.
struct Events(BufReader<TcpStream>);

impl Events {
    fn of(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /api/live HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        Self(BufReader::new(stream))
    }

    fn next(&mut self) -> (String, Json) {
        let (mut kind, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some(event) = line.strip_prefix("event: ") {
                kind = event.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (kind, serde_json::from_str(data).unwrap());
            }
        }
    }
}

#[test]
fn changes_come_every_second_to_a_bounded_number_of_viewers() {
    let (place, running) = start("");
    let mut viewers: Vec<Events> = (0..64).map(|_| Events::of(place.port)).collect();
    for viewer in &mut viewers {
        assert_eq!(viewer.next().0, "state");
    }
    assert_eq!(Request::get("/api/live").send(place.port).unwrap().status, 503);
    let (first, second) = (viewers[0].next(), viewers[0].next());
    assert_eq!((&*first.0, &*second.0), ("tick", "tick"));
    assert!(second.1["now"]["time_us"].as_i64() > first.1["now"]["time_us"].as_i64());
    assert_eq!(first.1["nodes"].as_array().unwrap().len(), 8);
    drop(viewers);
    eventually("there is room again", || {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
        stream.write_all(b"GET /api/live HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).is_ok() && answer.ends_with(b"200")
    });
    let mut last = Events::of(place.port);
    assert_eq!(last.next().0, "state");
    let asked = std::time::Instant::now();
    assert!(running.stop().success(), "a viewer does not hold up a stop");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

fn replay(path: &str) -> Request {
    Request::post(path)
}

#[test]
fn events_and_actions_ask_for_the_token_and_the_state_does_not() {
    let (place, _running) = start(r#"token = "correct-horse""#);
    let paths = ["/api/events?node=stream.events", "/api/streams/events/dead"];
    for path in paths {
        assert_eq!(Request::get(path).send(place.port).unwrap().status, 401, "{path}");
        let asked = Request::get(path).header("Authorization", "Bearer correct-horse");
        assert_eq!(asked.send(place.port).unwrap().status, 200, "{path}");
    }
    for action in ["replay", "drop"] {
        let path = format!("/api/streams/events/dead/{action}");
        let answer = replay(&path).json(r#"{"all":true}"#).send(place.port).unwrap();
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    assert_eq!(state(place.port)["about"]["token"], true);
    assert!(!state(place.port).to_string().contains("correct-horse"));
}

/// A request as a browser sends it that shows a page of somebody else's.
fn sent(request: Request, port: u16) -> Answer {
    request.send(port).unwrap()
}

#[test]
fn another_site_s_page_can_do_nothing() {
    let (place, _running) = start("");
    let path = "/api/streams/events/dead/drop";
    let all = r#"{"all":true}"#;
    assert_eq!(sent(replay(path).json(all), place.port).status, 200);
    for (header, value) in [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        let answer = sent(replay(path).header(header, value).json(all), place.port);
        assert_eq!(answer.status, 403, "{header}: {value}");
        let answer = sent(Request::get("/api/events?node=x").header(header, value), place.port);
        assert_eq!(answer.status, 403, "{header}: {value}");
    }
    // What a form can send.
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        assert_eq!(sent(replay(path).body(kind, all), place.port).status, 415, "{kind}");
    }
    // A name of somebody else's that now means this machine.
    let mut stream = TcpStream::connect(("127.0.0.1", place.port)).unwrap();
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{all}",
        all.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 403 ") && answer.contains("token"), "{answer}");
}

#[test]
fn a_request_that_does_not_say_which_letters_changes_nothing() {
    let (place, _running) = start("");
    let path = "/api/streams/events/dead/drop";
    for body in [
        "",
        "{}",
        "[]",
        r#"{"ids":[]}"#,
        r#"{"ids":["x"]}"#,
        r#"{"ids":["x"],"all":true}"#,
        r#"{"al":true}"#,
    ] {
        let answer = replay(path).json(body).send(place.port).unwrap();
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
    }
    let answer = replay("/api/streams/none/dead/drop").json(r#"{"all":true}"#);
    assert_eq!(answer.send(place.port).unwrap().status, 404);
    assert_eq!(Request::get(path).send(place.port).unwrap().status, 405);
    let far = Request::get("/api/streams/far/dead").send(place.port).unwrap();
    assert_eq!(far.status, 503);
    assert!(far.body.contains("127.0.0.1:1") && !far.body.contains("hunter2"), "{far:?}");
}

#[test]
fn events_that_pass_are_seen_by_who_looks() {
    let (place, running) = start("");
    let look = |node: &str| {
        let answer = Request::get(&format!("/api/events?node={node}")).send(place.port).unwrap();
        answer.json()["events"].as_array().unwrap().clone()
    };
    eventually("it takes events", || post(&place, r#"{"n":1}"#) == 202);
    eventually("it is stored", || running.metric("aqueduct_events_stored", "") >= 1.0);
    assert_eq!(look("stream.events"), [] as [Json; 0], "nobody looked");
    let long = "x".repeat(2000);
    let body = format!("{{\"n\":2,\"text\":\"{long}\"}}");
    assert_eq!(post(&place, &body), 202);
    for node in ["source.intake", "stream.events", "group.writer", "sink.db"] {
        eventually(node, || look(node).len() == 1);
        let seen = &look(node)[0];
        assert_eq!((&seen["source"], &seen["bytes"]), (&json!("intake"), &json!(body.len())));
        assert_eq!(seen["body"].as_str().unwrap().len(), 500);
        assert_eq!(seen["trace_id"].as_str().unwrap().len(), 32);
    }
}

#[test]
fn the_page_is_served_where_the_inside_is() {
    let admin = free_port();
    let (place, _running) = start(&format!("admin = \"127.0.0.1:{admin}\""));
    for path in ["/", "/api/state", "/api/live", "/api/page/page.js", "/api/streams/events/dead"] {
        assert_eq!(Request::get(path).send(place.port).unwrap().status, 404, "{path}");
    }
    let page = Request::get("/").send(admin).unwrap();
    assert_eq!(page.status, 200);
    let head = page.head.to_ascii_lowercase();
    for header in ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff"]
    {
        assert!(head.contains(header), "{head}");
    }
    assert!(!head.contains("unsafe"), "{head}");
    for foreign in ["http://", "https://", "style=", "<script>"] {
        assert!(!page.body.contains(foreign), "{foreign}");
    }
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let again =
        Request::get("/").header("If-None-Match", &etag.replace("w/", "W/")).send(admin).unwrap();
    assert_eq!((again.status, &*again.body), (304, ""));
    let script =
        Request::get("/api/page/page.js").header("Accept-Encoding", "gzip").send(admin).unwrap();
    assert!(script.head.to_ascii_lowercase().contains("content-encoding: gzip"), "{script:?}");
    assert_eq!(Request::get("/api/page/none.js").send(admin).unwrap().status, 404);
    assert_eq!(state(admin)["nodes"].as_array().unwrap().len(), 8);
}
