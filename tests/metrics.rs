//! What `/metrics` serves: in both formats, as documented, and as `promtool` likes it.

#[path = "support/process.rs"]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use aqueduct::telemetry::metrics::{Described, Metrics};
use process::{Answer, Place, Request, Running, eventually};

const TOPOLOGY: &str = r#"
[http]
listen = "127.0.0.1:{port}"

[tracing]
otlp = "http://127.0.0.1:1"
sample = "none"

[source.log]
kind = "http"
path = "/log"
to = "events"
counter = "lines_taken_total"

[stream.events]

[group.writer]
from = "events"
to = "db"
attempts = 1

[sink.db]
kind = "sqlite"
path = "out.db"
table = "rows"
columns = { event_id = "@id", n = { from = "n", type = "bigint" } }

[query.rows]
path = "/rows"
sink = "db"
order = "n"
cache = { url = "redis://127.0.0.1:1", ttl = "1s" }
"#;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";

/// A process in which everything has happened that is counted.
fn busy() -> (Place, Running) {
    let place = Place::new(TOPOLOGY);
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let post = |body: &str| {
        let trace = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let request = Request::post("/log").header("traceparent", &trace).json(body);
        assert_eq!(request.send(place.port).unwrap().status, 202);
    };
    post("{\"n\":1}");
    post("{\"n\":\"none\"}");
    assert_eq!(Request::get("/rows").send(place.port).unwrap().status, 200);
    eventually("all is counted", || {
        running.metric("aqueduct_dead_letters_total", "") == 1.0
            && running.metric("aqueduct_events_stored_total", "") == 1.0
            && running.metric("aqueduct_spans_dropped_total", "collector") > 0.0
    });
    (place, running)
}

fn metrics(place: &Place, accept: &str) -> Answer {
    let answer = Request::get("/metrics").header("Accept", accept).send(place.port).unwrap();
    assert_eq!(answer.status, 200);
    answer
}

/// The families of a text: kind, and the labels of their samples.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap();
            current = name.to_owned();
            families.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&current), "{line} is no sample of {current}");
            let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
            let names = labels.map(|(labels, _)| labels.split(',')).into_iter().flatten();
            let names = names.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            let known = &mut families.get_mut(&current).unwrap().1;
            known.extend(names.filter(|name| name != "le"));
        }
    }
    families
}

#[test]
fn the_documented_table_is_made_from_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mark = "-->\n";
    let head = &text[..text.find(mark).unwrap() + mark.len()];
    let wanted = format!("{head}\n{}", Metrics::default().table());
    if std::env::var("AQUEDUCT_DOCS").is_ok_and(|it| it == "write") {
        std::fs::write(path, &wanted).unwrap();
    }
    let is = std::fs::read_to_string(path).unwrap();
    assert!(is == wanted, "docs/metrics.md is old (AQUEDUCT_DOCS=write cargo test --test metrics)");
    for word in text.split('`').filter(|word| word.starts_with("aqueduct_")) {
        let metrics = Metrics::default();
        let known = |metric: &Described| word.trim_end_matches("_sum") == metric.shown();
        assert!(metrics.described().iter().any(known), "{word} is none");
    }
}

#[test]
fn what_is_served_is_what_is_documented() {
    let (place, running) = busy();
    let served = families(&metrics(&place, "").body);
    let mut documented = BTreeMap::new();
    for metric in Metrics::default().described() {
        let labels = metric.labels.iter().map(|label| (*label).to_owned()).collect();
        documented.insert(metric.shown(), (metric.kind.to_owned(), labels));
    }
    documented.insert("lines_taken_total".into(), ("counter".into(), BTreeSet::new()));
    assert_eq!(served, documented);
    assert!(running.metric("process_resident_memory_bytes", "") > 1e6);
    assert!(running.metric("process_cpu_seconds_total", "") > 0.0);
    assert!(running.metric("process_open_fds", "") > 3.0);
    assert!(running.metric("aqueduct_component_up", "component=\"sink.db\"") == 1.0);
}

#[test]
fn who_asks_for_openmetrics_sees_the_trace_of_an_event() {
    let (place, _running) = busy();
    let answer = metrics(&place, OPENMETRICS);
    assert!(answer.head.contains("application/openmetrics-text; version=1.0.0"), "{answer:?}");
    assert!(answer.body.ends_with("# EOF\n"));
    let exemplar = format!("# {{trace_id=\"{TRACE}\"}}");
    let with = answer.body.lines().find(|line| line.contains(&exemplar));
    assert!(with.is_some_and(|it| it.starts_with("aqueduct_storage_seconds_bucket")), "{answer:?}");
    for accept in ["", "*/*", "text/plain"] {
        let answer = metrics(&place, accept);
        assert!(answer.head.contains("text/plain; version=0.0.4"), "{answer:?}");
        assert!(!answer.body.contains(TRACE) && !answer.body.contains("# EOF"));
    }
}

#[test]
fn promtool_finds_nothing_to_say() {
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        println!("promtool is not installed (Debian: prometheus)");
        return;
    };
    let (place, _running) = busy();
    let text = metrics(&place, "").body;
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let says = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && says.is_empty(), "{says}\n{text}");
}
