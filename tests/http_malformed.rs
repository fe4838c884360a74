//! Requests that are wrong in every way: each is answered with a clear 4xx or its connection is
//! closed, nothing of them is stored, and the process goes on as it was.
//!
//! `scripts/soak malformed` sends 10,000 of them, slow bodies among them.

#[path = "support/process.rs"]
mod process;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use process::{Place, Request, eventually, scale, seed};

/// What the peak may grow by after the first tenth.
const GROWTH_KIB_MAX: u64 = 16 * 1024;
/// No answer and no close within this is a connection forgotten.
const FORGOTTEN: Duration = Duration::from_secs(45);
const THREADS: u64 = 4;

const TOPOLOGY: &str = r#"
[http]
listen = "127.0.0.1:{port}"
max_body = "64KiB"

[source.log]
kind = "http"
path = "/log"
to = "logs"

[stream.logs]

[group.write]
from = "logs"
to = "db"

[sink.db]
kind = "sqlite"
path = "out.db"
table = "logs"

[query.logs]
path = "/logs"
sink = "db"
"#;

/// What has to come of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// This status.
    Status(u16),
    /// Any 4xx, or a close without an answer: it may be no HTTP at all.
    Refused,
}

use Outcome::{Refused, Status};

/// A request that is wrong, byte by byte.
struct Wrong {
    what: &'static str,
    bytes: Vec<u8>,
    /// Nothing more comes, though more was announced.
    ends: bool,
    outcome: Outcome,
}

fn head(path: &str, headers: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").into()
}

fn post(content_type: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let headers = format!("Content-Type: {content_type}\r\nContent-Length: {length}\r\n{more}");
    [head("/log", &headers), body.to_vec()].concat()
}

/// A JSON value that ends too early or too late.
fn broken_json() -> Vec<u8> {
    let value = serde_json::json!({
        "level": "info",
        "number": fastrand::i64(..),
        "nested": [1, {"text": "x".repeat(fastrand::usize(..200))}],
    });
    let mut text = value.to_string().into_bytes();
    match fastrand::u8(..5) {
        // Any prefix of an object is none.
        0 => text.truncate(fastrand::usize(..text.len())),
        1 => text.push(*fastrand::choice(b"}],x\"").unwrap()),
        2 => text.insert(0, *fastrand::choice(b"}],x:").unwrap()),
        3 => text.insert(1, *fastrand::choice(b"]:,x0").unwrap()),
        _ => text = b"[".repeat(fastrand::usize(1..60_000)),
    }
    text
}

fn broken_utf8() -> Vec<u8> {
    let mut text = br#"{"text":"some words"}"#.to_vec();
    let bad: &[u8] = fastrand::choice([
        &[0xff][..],
        &[0xc0, 0x80],
        &[0xe2, 0x82],
        &[0xed, 0xa0, 0x80],
        &[0xf4, 0x90, 0x80, 0x80],
    ])
    .unwrap();
    let at = fastrand::usize(9..19);
    text.splice(at..at, bad.iter().copied());
    text
}

fn bad_chunks() -> Wrong {
    let head = head("/log", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n");
    let (ends, chunks): (bool, Vec<u8>) = match fastrand::u8(..7) {
        0 => (false, b"zz\r\n1\r\n0\r\n\r\n".into()),
        1 => (false, b"-1\r\n1\r\n0\r\n\r\n".into()),
        2 => (false, b"ffffffffffffffffff\r\n1\r\n0\r\n\r\n".into()),
        3 => (false, b"1\r\n1234567\r\n0\r\n\r\n".into()),
        4 => (true, b"5\r\n{\"a\"".into()),
        5 => (true, b"1\r\n{\r\n".into()),
        _ => (false, (0..fastrand::usize(8..200)).map(|_| fastrand::u8(b'g'..b'z')).collect()),
    };
    let bytes = [head, chunks].concat();
    Wrong { what: "chunks", bytes, ends, outcome: Refused }
}

fn bad_length() -> Wrong {
    let (ends, length, outcome) = match fastrand::u8(..6) {
        0 => (true, "500".to_owned(), Refused),
        1 => (false, "-5".to_owned(), Refused),
        2 => (false, "abc".to_owned(), Refused),
        3 => (false, "99999999999999999999999".to_owned(), Refused),
        4 => (false, format!("{}", fastrand::u64(70_000..1 << 40)), Status(413)),
        // What follows is no request.
        _ => (true, format!("{}", fastrand::u64(1..8)), Refused),
    };
    let headers = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
    let bytes = [head("/log", &headers), br#"{"a":"b"}"#.to_vec()].concat();
    Wrong { what: "length", bytes, ends, outcome }
}

fn bad_head() -> Wrong {
    let noise = |bytes: usize| -> Vec<u8> { (0..bytes).map(|_| fastrand::u8(..)).collect() };
    let long = |bytes: usize| "x".repeat(bytes);
    let bytes = match fastrand::u8(..9) {
        0 => head("/log", &format!("X-Long: {}\r\n", long(fastrand::usize(200_000..2_000_000)))),
        1 => head("/log", &"X-Many: 1\r\n".repeat(fastrand::usize(200..20_000))),
        2 => head(&format!("/{}", long(fastrand::usize(100_000..500_000))), ""),
        3 => head("/log", "Content-Length: 1\r\nContent-Length: 2\r\n"),
        4 => head("/log", "no colon here\r\n"),
        5 => b"POST /log HTTP/9.9\r\n\r\n".into(),
        6 => b"POST\r\n\r\n".into(),
        7 => [b"POST /log HTTP/1.1\r\nX: ".to_vec(), noise(40), b"\0\r\n\r\n".to_vec()].concat(),
        _ => [vec![0x16, 3, 1], noise(fastrand::usize(10..3000)), b"\r\n\r\n".to_vec()].concat(),
    };
    Wrong { what: "head", bytes, ends: true, outcome: Refused }
}

fn bad_gzip() -> Wrong {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let (mut bytes, outcome) = match fastrand::bool() {
        true => {
            gzip.write_all(" ".repeat(fastrand::usize(1_000_000..20_000_000)).as_bytes()).unwrap();
            (gzip.finish().unwrap(), Status(413))
        }
        false => {
            gzip.write_all(br#"{"a":"some words"}"#).unwrap();
            (gzip.finish().unwrap(), Status(400))
        }
    };
    if outcome == Status(400) {
        let at = fastrand::usize(..10);
        bytes[at] ^= 0xff;
        bytes.truncate(fastrand::usize(12..20));
    }
    let bytes = post("application/json", "Content-Encoding: gzip\r\n", &bytes);
    Wrong { what: "gzip", bytes, ends: false, outcome }
}

fn wrong() -> Wrong {
    let well_formed = |what, bytes, status| {
        let outcome = Status(status);
        Wrong { what, bytes, ends: false, outcome }
    };
    match fastrand::u8(..10) {
        0 | 1 => well_formed("json", post("application/json", "", &broken_json()), 400),
        2 => {
            let kinds = ["application/json", "text/plain", "application/x-ndjson"];
            let kind = fastrand::choice(kinds).unwrap();
            well_formed("utf-8", post(kind, "", &broken_utf8()), 400)
        }
        3 => {
            let mut lines = vec![b"{\"n\":1}".to_vec(); fastrand::usize(1..50)];
            lines.insert(fastrand::usize(..lines.len()), b"{\"n\":".to_vec());
            well_formed("ndjson", post("application/x-ndjson", "", &lines.join(&b'\n')), 400)
        }
        4 => {
            let question: String =
                (0..fastrand::usize(1..60)).map(|_| format!("%{:02X}", fastrand::u8(..))).collect();
            let bytes = format!(
                "GET /logs?limit={question} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            );
            // It may be a number by chance, or end the parameter.
            Wrong { what: "question", bytes: bytes.into(), ends: false, outcome: Refused }
        }
        5 => bad_chunks(),
        6 => bad_length(),
        7 | 8 => bad_head(),
        _ => bad_gzip(),
    }
}

/// The statuses of all answers on a connection.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let heads = text.split("HTTP/1.1 ").skip(1);
    heads.map(|head| head.get(..3).and_then(|it| it.parse().ok()).unwrap_or(0)).collect()
}

fn send(port: u16, wrong: &Wrong) -> Vec<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(FORGOTTEN)).unwrap();
    stream.set_write_timeout(Some(FORGOTTEN)).unwrap();
    // Who refuses early may have closed the connection by now.
    let _ = stream.write_all(&wrong.bytes);
    if wrong.ends {
        let _ = stream.shutdown(Shutdown::Write);
    }
    answers(&mut stream, wrong.what)
}

fn answers(stream: &mut TcpStream, what: &str) -> Vec<u16> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("{what}: neither an answer nor a close within {FORGOTTEN:?}")
        }
        _ => statuses(&answer),
    }
}

/// A request that comes a byte at a time, and never whole.
fn send_slowly(port: u16, head_only: bool) -> Vec<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let headers = "Content-Type: application/json\r\nContent-Length: 60000\r\n";
    let whole = head("/log", headers);
    let sent = if head_only { &whole[..whole.len() - 5] } else { &whole[..] };
    stream.write_all(sent).unwrap();
    let begun = Instant::now();
    let mut answer = [0; 4096];
    loop {
        assert!(begun.elapsed() < FORGOTTEN, "a slow request is never given up");
        match stream.read(&mut answer) {
            Ok(count) => return statuses(&answer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let _ = stream.write_all(b" ");
            }
            Err(_) => return Vec::new(),
        }
    }
}

#[test]
fn what_is_malformed_is_refused_and_harms_nobody() {
    let requests = scale("AQUEDUCT_MALFORMED", 400);
    let slow = scale("AQUEDUCT_MALFORMED_SLOW", 0);
    let seed = seed();
    let place = Place::new(TOPOLOGY);
    let mut running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let (closed, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let count = |what: &str, outcome: Outcome, got: &[u16]| {
        match outcome {
            Status(status) => assert_eq!(got, [status], "{what}"),
            // The question may be right by chance.
            Refused => {
                let fits = |it: &u16| (400..500).contains(it) || *it == 200 && what == "question";
                assert!(got.iter().all(fits), "{what}: {got:?}");
            }
        }
        let counter = if got.is_empty() { &closed } else { &refused };
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let port = place.port;
    let send_many = |requests: u64, salt: u64| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let count = &count;
                scope.spawn(move || {
                    fastrand::seed(seed ^ salt << 8 ^ thread);
                    for _ in 0..requests.div_ceil(THREADS) {
                        let wrong = wrong();
                        let got = send(port, &wrong);
                        count(wrong.what, wrong.outcome, &got);
                    }
                });
            }
        });
    };
    send_many(requests / 10, 1);
    let before_kib = running.peak_kib();
    std::thread::scope(|scope| {
        let slowly: Vec<_> =
            (0..slow + 2).map(|n| scope.spawn(move || send_slowly(port, n < 2))).collect();
        send_many(requests - requests / 10, 2);
        for got in slowly {
            count("slow", Refused, &got.join().unwrap());
        }
    });
    let grown_kib = running.peak_kib() - before_kib;
    println!(
        "{} refused, {} closed; peak {before_kib} KiB, and {grown_kib} KiB more",
        refused.into_inner(),
        closed.into_inner()
    );
    assert!(grown_kib < GROWTH_KIB_MAX, "the peak grew by {grown_kib} KiB");
    assert!(running.exited().is_none());
    for word in ["panic", "ERROR", "WARN"] {
        assert!(!running.log().contains(word), "{}", running.log());
    }
    assert_eq!(running.metric("aqueduct_restarts_total", ""), 0.0);
    assert_eq!(running.get("/healthz").0, 200);
    let good = Request::post("/log").json("{\"good\":1}").send(place.port).unwrap();
    assert_eq!(good.status, 202, "{good:?}");
    eventually("the good one is stored", || {
        place.count("out.db", "SELECT count(*) FROM logs") == 1
    });
}
