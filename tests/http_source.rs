//! Events that are posted, and publishers that are triggered, through the real program.

#[path = "support/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::io::Write;

use process::{Answer, Place, Request, Running, eventually, lines};
use serde_json::json;

const FLOW: &str = r#"
[http]
listen = "127.0.0.1:{port}"
max_body = "64KiB"

[source.log]
kind = "http"
path = "/log"
to = "logs"

[source.numbers]
kind = "publisher"
to = "logs"
n = "1..50"
instances = 5
body = "number {n}"
trigger = "http"

[stream.logs]

[group.write]
from = "logs"
to = "table"

[sink.table]
kind = "sqlite"
path = "out.db"
table = "events"
columns = { event_id = "@id", body = "@body", source = "@source" }
"#;

fn started(topology: &str) -> (Place, Running) {
    let place = Place::new(topology);
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    (place, running)
}

fn stored(place: &Place) -> BTreeSet<(String, String)> {
    place.rows("out.db", "SELECT event_id, body FROM events").into_iter().collect()
}

fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 202, "{answer:?}");
    let ids = answer.json()["ids"].as_array().unwrap().clone();
    ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_posted_is_stored_under_the_ids_of_the_answer() {
    let (place, running) = started(FLOW);
    let post = |request: Request| ids(&request.send(place.port).unwrap());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(b"{\"zipped\":true}").unwrap();
    let gzip = gzip.finish().unwrap();
    let zipped = Request::post("/log").header("Content-Encoding", "gzip");
    let ndjson = "{\"n\":1}\n\n{\"n\":2}\r\n";
    let mut expected = BTreeSet::new();
    for (request, bodies) in [
        (Request::post("/log").json(" {\"level\": \"info\"}\n"), vec!["{\"level\": \"info\"}"]),
        (
            Request::post("/log").body("application/x-ndjson", ndjson),
            vec!["{\"n\":1}", "{\"n\":2}"],
        ),
        (Request::post("/log").body("text/plain", "two\nlines"), vec!["two\nlines"]),
        (zipped.body("application/json", gzip), vec!["{\"zipped\":true}"]),
    ] {
        let given = post(request);
        assert_eq!(given.len(), bodies.len());
        expected.extend(given.into_iter().zip(bodies.into_iter().map(str::to_owned)));
    }
    eventually("all are stored", || stored(&place) == expected);
    assert_eq!(running.metric("aqueduct_events_published_total", "source=\"log\""), 5.0);
}

#[test]
fn a_request_that_is_wrong_is_refused_and_says_what_would_be_right() {
    let (place, _running) = started(FLOW);
    let long = format!("[\"{}\"]", "x".repeat(70_000));
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(format!("\"{}\"", " ".repeat(10_000_000)).as_bytes()).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 60_000);
    let post = || Request::post("/log");
    for (request, status, says) in [
        (post().json("{\"a\":}"), 400, "line 1 column 6"),
        (post().json(""), 400, "empty"),
        (post().body("application/x-ndjson", "1\n2\nx\n"), 400, "line 3"),
        (post().body("text/plain", [0xff, 0xfe]), 400, "not UTF-8"),
        (post().header("Idempotency-Key", &"k".repeat(257)).json("1"), 400, "256"),
        (post().header("Content-Encoding", "gzip").json("no gzip"), 400, "gzip"),
        (Request::get("/log"), 405, "POST"),
        (Request::new("DELETE", "/log"), 405, "POST"),
        (Request::get("/publish/numbers"), 405, "POST"),
        (post().json(&long), 413, "65536"),
        (post().header("Content-Encoding", "gzip").body("application/json", bomb), 413, "65536"),
        (post().body("application/x-www-form-urlencoded", "a=b"), 415, "application/json"),
        (post().header("Content-Encoding", "br").json("1"), 415, "gzip"),
        (Request::post("/publish/nambers"), 404, "numbers"),
        (Request::post("/nothing"), 404, "nothing is served here"),
    ] {
        let answer = request.send(place.port).unwrap();
        assert_eq!(answer.status, status, "{says}: {answer:?}");
        assert!(answer.body.contains(says), "{says}: {answer:?}");
    }
    assert_eq!(stored(&place), BTreeSet::new(), "a bad line refuses the whole body");
}

#[test]
fn a_repeated_idempotency_key_is_the_same_event_also_after_a_kill() {
    let (place, running) = started(FLOW);
    let post = |key: &str, body: &str| {
        ids(&Request::post("/log")
            .header("Idempotency-Key", key)
            .json(body)
            .send(place.port)
            .unwrap())
    };
    let first = post("a", "[1]");
    assert_eq!(post("a", "[1]"), first);
    assert_ne!(post("a", "[2]"), first, "another body is another event");
    assert_ne!(post("b", "[1]"), first);
    running.kill();
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    assert_eq!(post("a", "[1]"), first);
    let marker = post("last", "[3]");
    let is_stored = |id: &str| stored(&place).iter().any(|(stored, _)| stored == id);
    eventually("all are stored", || is_stored(&marker[0]));
    assert_eq!(stored(&place).len(), 4);
}

#[test]
fn a_token_is_asked_of_whoever_makes_events_and_of_nobody_else() {
    let http = "[http]\ntoken = [\"one-token\", \"${OTHER:-other-token}\"]";
    let (place, running) = started(&FLOW.replace("[http]", http));
    let with = |token: &str| {
        let header = format!("{token} ");
        Request::post("/log").header("Authorization", header.trim()).json("1")
    };
    let status = |request: Request| request.send(place.port).unwrap().status;
    assert_eq!(status(with("Bearer one-token")), 202);
    assert_eq!(status(with("bearer other-token")), 202);
    for wrong in ["Bearer one-toke", "Bearer one-tokenn", "Bearer", "Basic one-token", "one-token"]
    {
        let answer = with(wrong).send(place.port).unwrap();
        assert_eq!(answer.status, 401, "{wrong}");
        assert!(answer.head.to_lowercase().contains("www-authenticate: bearer"), "{answer:?}");
        assert!(!answer.body.contains("one-token"), "{answer:?}");
    }
    assert_eq!(status(Request::post("/log").json("1")), 401);
    assert_eq!(status(Request::post("/publish/numbers")), 401);
    assert_eq!(status(Request::post("/publish")), 401);
    assert_eq!(status(Request::get("/healthz")), 200);
    assert_eq!(status(Request::get("/metrics")), 200);
    assert!(!running.log().contains("one-token"));
}

#[test]
fn a_trigger_sends_the_range_anew_and_a_repeated_one_does_not() {
    let (place, _running) = started(FLOW);
    let trigger = |path: &str, key: Option<&str>| {
        let request =
            key.iter().fold(Request::post(path), |it, key| it.header("Idempotency-Key", key));
        let answer = request.send(place.port).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let numbers: Vec<u64> = (1..=50).collect();
    let all = json!({ "source": "numbers", "published": 50, "numbers": numbers });
    let count = |times: i64| {
        eventually("all are stored", || {
            place.count("out.db", "SELECT count(*) FROM events") == 50 * times
        });
    };
    assert_eq!(trigger("/publish/numbers", None), all);
    count(1);
    assert_eq!(trigger("/publish/numbers", None), all);
    count(2);
    assert_eq!(trigger("/publish/numbers", Some("once")), all);
    assert_eq!(trigger("/publish/numbers", Some("once")), all);
    assert_eq!(trigger("/publish", None), json!([all]));
    count(4);
    let each = "SELECT count(*) FROM (SELECT body FROM events GROUP BY body HAVING count(*) = 4)";
    assert_eq!(place.count("out.db", each), 50);
}

#[test]
fn a_full_stream_is_503_and_takes_events_again_when_there_is_room() {
    let file = FLOW.replace("[stream.logs]", "[stream.logs]\nmax_backlog = 20");
    // Nobody can write there yet.
    let file = file.replace("path = \"out.db\"", "path = \"blocked/out.db\"");
    let place = Place::new(&file);
    std::fs::write(place.path("blocked"), "a file where a directory is to be").unwrap();
    let running = place.start();
    eventually("it takes requests, though its sink is away", || running.get("/readyz").0 == 200);
    assert_eq!(running.get("/healthz").0, 503);
    let post = |n: usize| Request::post("/log").json(&n.to_string()).send(place.port).unwrap();
    let mut given = BTreeSet::new();
    let mut refused = None;
    eventually("the stream is full", || {
        let answer = post(given.len());
        match answer.status {
            202 => given.extend(ids(&answer)),
            _ => refused = Some(answer),
        }
        refused.is_some()
    });
    let refused = refused.unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{refused:?}");
    assert!(refused.body.contains("stream `logs` is full"), "{refused:?}");
    assert_eq!(Request::post("/publish/numbers").send(place.port).unwrap().status, 503);

    std::fs::remove_file(place.path("blocked")).unwrap();
    eventually("it takes events again", || {
        let answer = post(1000);
        let taken = answer.status == 202;
        if taken {
            given.extend(ids(&answer));
        }
        taken
    });
    let stored = || {
        let rows = place.rows::<(String,)>("blocked/out.db", "SELECT event_id FROM events");
        rows.into_iter().map(|row| row.0).collect::<BTreeSet<_>>()
    };
    eventually("the table is there", || place.path("blocked/out.db").exists());
    eventually("what was accepted is stored", || stored().is_superset(&given));
}

#[test]
fn too_many_requests_at_once_are_429() {
    let (place, running) = started(&FLOW.replace("[http]", "[http]\nmax_in_flight = 2"));
    // It does not end: it never sends the body it promises.
    let hold = || {
        let mut held = std::net::TcpStream::connect(("127.0.0.1", place.port)).unwrap();
        held.write_all(
            b"POST /log HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
              Content-Length: 10\r\n\r\n1",
        )
        .unwrap();
        held
    };
    let post = || Request::post("/log").json("1").send(place.port).unwrap();
    let mut held = Vec::new();
    eventually("there is no room", || {
        // One that came while a post was under way may have been refused itself.
        held.push(hold());
        post().status == 429
    });
    assert!(post().head.to_lowercase().contains("retry-after"));
    assert_eq!(running.get("/healthz").0, 200);
    drop(held);
    eventually("there is room again", || post().status == 202);
}

#[test]
fn what_was_answered_before_a_kill_is_in_the_file_once() {
    let seed = process::seed();
    println!("seed {seed}");
    let file = FLOW.replace("kind = \"sqlite\"\npath = \"out.db\"\ntable = \"events\"\ncolumns = { event_id = \"@id\", body = \"@body\", source = \"@source\" }", "kind = \"file\"\npath = \"out.log\"");
    let place = Place::new(&file);
    let rounds = process::scale("AQUEDUCT_KILLS", 4);
    let mut accepted = BTreeSet::new();
    for round in 0..rounds {
        let running = place.start();
        eventually("it is ready", || running.get("/readyz").0 == 200);
        let until =
            std::time::Instant::now() + std::time::Duration::from_millis(fastrand::u64(100..600));
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let port = place.port;
                std::thread::spawn(move || {
                    let mut done = Vec::new();
                    let mut n = 0;
                    while std::time::Instant::now() < until + std::time::Duration::from_millis(100)
                    {
                        let body = format!("{{\"round\":{round},\"client\":{client},\"n\":{n}}}");
                        let key = format!("{round}-{client}-{n}");
                        let post = Request::post("/log").header("Idempotency-Key", &key);
                        match post.json(&body).send(port) {
                            Ok(answer) if answer.status == 202 => done.push(body),
                            _ => break,
                        }
                        n += 1;
                    }
                    done
                })
            })
            .collect();
        while std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        running.kill();
        for client in clients {
            accepted.extend(client.join().unwrap());
        }
    }
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let read = || {
        let stored = lines(&place.path("out.log")).into_iter();
        stored.map(|line| String::from_utf8(line).unwrap()).collect::<Vec<_>>()
    };
    eventually("what was accepted is stored", || {
        read().into_iter().collect::<BTreeSet<_>>().is_superset(&accepted)
    });
    assert!(running.stop().success());
    let stored = read();
    assert_eq!(stored.iter().collect::<BTreeSet<_>>().len(), stored.len(), "some line is doubled");
    println!("{} accepted, {} stored", accepted.len(), stored.len());
    assert!(accepted.len() > 20);
}

#[test]
fn the_description_tells_what_is_served() {
    let (place, _running) = started(&FLOW.replace("[http]", "[http]\ntoken = \"secret\""));
    let answer = Request::get("/openapi.json").send(place.port).unwrap();
    let api = answer.json();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, method, status) in [
        ("/log", "post", "202"),
        ("/log", "post", "401"),
        ("/publish", "post", "200"),
        ("/publish/numbers", "post", "200"),
        ("/healthz", "get", "503"),
        ("/streams", "get", "200"),
    ] {
        let told = &api["paths"][path][method]["responses"][status];
        assert!(told["description"].is_string(), "{path} {method} {status}: {api}");
    }
    assert!(!answer.body.contains("secret"));
}
