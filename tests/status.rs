//! `aqueduct status`: what the status page shows, in a terminal.

#[path = "support/process.rs"]
mod process;

use std::process::{Command, Stdio};
use std::time::Duration;

use process::{Place, Running, eventually, free_port};

const TOPOLOGY: &str = r#"
[http]
listen = "127.0.0.1:{port}"
HTTP

[source.visits]
kind = "publisher"
to = "events"
every = "20ms"

[stream.events]

[group.writer]
from = "events"
to = "out"

[sink.out]
kind = "file"
path = "out.jsonl"

[stream.far]
kind = "redis"
url = "redis://:hunter2@127.0.0.1:1"

[group.far_writer]
from = "far"
to = "out"
"#;

fn place(http: &str) -> Place {
    Place::new(&TOPOLOGY.replace("HTTP", http))
}

fn stores(place: &Place, running: &Running) {
    eventually("it stores", || {
        assert!(!running.log().contains("cannot listen"), "{}", running.log());
        std::fs::read_to_string(place.path("out.jsonl")).is_ok_and(|text| text.lines().count() > 3)
    });
}

fn status(place: &Place) -> String {
    let done = place.done(&["status", "topology.toml"]);
    assert!(done.status.success(), "{}", done.stderr);
    assert!(!done.stdout.contains('\x1b'), "it goes to no terminal: {:?}", done.stdout);
    assert!(!done.stdout.contains("hunter2"), "{}", done.stdout);
    assert!(done.stdout.lines().all(|line| line.chars().count() <= 120), "{}", done.stdout);
    done.stdout
}

/// The line of a component.
fn line<'t>(text: &'t str, room: &str, name: &str) -> &'t str {
    let line = text.lines().find(|line| line.starts_with(room) && line.contains(name));
    line.unwrap_or_else(|| panic!("no {room} {name} in:\n{text}"))
}

#[test]
fn it_shows_what_the_process_says_and_without_one_what_the_streams_say() {
    let place = place("");
    let running = place.start();
    stores(&place, &running);
    eventually("rates", || {
        let text = status(&place);
        line(&text, "source", "visits").contains("/s")
            && !line(&text, "source", "visits").contains(" 0/s")
    });
    let text = status(&place);
    assert!(text.contains("topology.toml") && text.contains("generation 1"), "{text}");
    assert!(line(&text, "source", "visits").contains("● working"), "{text}");
    assert!(line(&text, "group", "writer").contains("lag"), "{text}");
    assert!(line(&text, "sink", "out").contains("stored"), "{text}");
    assert!(line(&text, "stream", "far").contains("✕ down"), "{text}");
    assert!(
        text.contains("redis://127.0.0.1:1") || text.contains("redis://:***@127.0.0.1:1"),
        "{text}"
    );
    assert!(text.contains("not working"), "{text}");
    assert!(running.stop().success());

    let text = status(&place);
    assert!(text.contains("no process answers"), "{text}");
    assert!(text.contains("stream events: holds") && text.contains("group writer: lag"), "{text}");
    assert!(text.contains("stream far") && text.contains("✕"), "{text}");
}

#[test]
fn json_has_the_shape_of_streams_from_either() {
    let text = TOPOLOGY.replace("HTTP", "");
    let place = Place::new(&text[..text.find("[stream.far]").unwrap()]);
    let running = place.start();
    stores(&place, &running);
    let streams = |place: &Place| -> serde_json::Value {
        let done = place.done(&["status", "topology.toml", "--json"]);
        serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}", done.stderr))
    };
    let from_process = streams(&place);
    assert_eq!(from_process[0]["stream"], "events");
    assert!(running.stop().success());
    let from_streams = streams(&place);
    assert_eq!(from_streams[0]["groups"][0]["name"], "writer");
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(&from_process[0]), keys(&from_streams[0]));
    assert_eq!(keys(&from_process[0]["groups"][0]), ["name", "lag", "pending", "consumers"]);
}

#[test]
fn it_finds_the_process_behind_tls_and_at_its_own_address() {
    let admin = free_port();
    let http = format!(
        "tls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\nadmin = \"0.0.0.0:{admin}\"\n\
         token = \"correct-horse\""
    );
    let place = place(&http);
    let made = |cert: &str, key: &str| {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-subj", "/CN=somewhere.example", "-days", "1"])
            .args(["-keyout", key, "-out", cert])
            .current_dir(place.dir.path())
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success());
    };
    made("cert.pem", "key.pem");
    let running = place.start();
    stores(&place, &running);
    eventually("it answers", || status(&place).contains("● working"));
    // A process with another certificate is another one.
    made("cert.pem", "key.pem");
    let text = status(&place);
    assert!(text.contains("no process answers at 0.0.0.0"), "{text}");
}

#[test]
fn a_terminal_is_left_as_it_was() {
    let place = place("");
    let running = place.start();
    stores(&place, &running);
    let program = env!("CARGO_BIN_EXE_aqueduct");
    let shown = |variables: &[(&str, &str)], command: &str| {
        let done = Command::new("script")
            .args(["-qec", &format!("stty cols 100 rows 8; {command}"), "/dev/null"])
            .current_dir(place.dir.path())
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let seconds = Duration::from_secs(3).as_secs();
    let looked = format!(
        "timeout --preserve-status -s INT {seconds} {program} status topology.toml; echo \"ended with $?\""
    );
    let text = shown(&[], &looked);
    assert!(text.starts_with("\x1b[?1049h\x1b[?25l"), "{text:?}");
    assert!(text.contains("\x1b[?25h\x1b[?1049l") && text.contains("ended with 0"), "{text:?}");
    assert!(text.matches("generation 1").count() >= 2, "it is refreshed: {text:?}");
    assert!(text.contains("more lines"), "8 lines are few: {text:?}");
    assert!(text.contains("\x1b[32m"), "{text:?}");
    let plain = shown(&[("NO_COLOR", "1")], &format!("{program} status topology.toml --once"));
    assert!(plain.contains("● working") && !plain.contains('\x1b'), "{plain:?}");
}
