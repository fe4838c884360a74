//! The status page in a browser: what a person sees, and what happens at a click.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::path::PathBuf;
use std::time::Duration;

use browser::Browser;
use process::{Place, Request, Running, eventually};
use serde_json::json;
use servers::Redis;

/// What a page that is drawn has.
const DRAWN: &str = "document.querySelectorAll('.node').length > 0 && \
                     !document.body.classList.contains('lost')";

fn url(place: &Place) -> String {
    format!("http://127.0.0.1:{}/", place.port)
}

/// A node's button.
fn node(id: &str) -> String {
    format!("[data-id=\"{id}\"]")
}

fn state_is(id: &str, state: &str) -> String {
    let node = json!(node(id));
    format!("document.querySelector({node})?.dataset.state === '{state}'")
}

fn see(place: &Place) -> Browser {
    let mut browser = Browser::start();
    browser.look(1440, 900, "light");
    browser.open(&url(place));
    browser.wait("the topology", DRAWN);
    browser
}

/// A topology as it is shipped, listening here; its servers are away.
fn shipped(place: &Place, name: &str) -> Running {
    let file = format!("{}/config/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let listen = format!("127.0.0.1:{}", place.port);
    std::fs::write(place.path("in.txt"), "one\n").unwrap();
    let variables = [
        ("AQUEDUCT__HTTP__LISTEN", listen.as_str()),
        ("REDIS_ADDR", "127.0.0.1:1"),
        ("REDIS_PORT", "1"),
        ("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:1/"),
        ("POSTGRES_URL", "postgres://postgres:hunter2@127.0.0.1:1/logs"),
        ("DB_PORT", "1"),
        ("DB_PASS", "hunter2"),
        ("INPUT_FILE", "in.txt"),
        ("OUTPUT_FILE", "out.txt"),
    ];
    let running = place.start_command(&["run", &file], &variables, place.port);
    eventually("it listens", || running.get("/livez").0 == 200);
    running
}

/// Where screenshots go, if they are to be made anew (`scripts/screenshots`).
fn pictures() -> Option<PathBuf> {
    std::env::var_os("AQUEDUCT_SCREENSHOTS").map(PathBuf::from)
}

#[test]
fn every_component_of_every_shipped_topology_is_drawn_on_any_screen() {
    let mut browser = Browser::start();
    for name in ["quickstart", "lines", "numbers", "events", "logs"] {
        let place = Place::new("");
        let _running = shipped(&place, name);
        let text =
            std::fs::read_to_string(format!("{}/config/{name}.toml", env!("CARGO_MANIFEST_DIR")))
                .unwrap();
        let table: toml::Table = text.parse().unwrap();
        let mut wanted: Vec<String> = Vec::new();
        for room in ["source", "stream", "group", "sink", "query"] {
            let named = table.get(room).and_then(|it| it.as_table()).into_iter().flatten();
            wanted.extend(named.map(|(name, _)| format!("{room}.{name}")));
        }
        assert!(wanted.len() >= 4, "{wanted:?}");
        for (width, scheme) in [(1440, "light"), (800, "dark"), (390, "light")] {
            browser.look(width, 844, scheme);
            browser.open(&url(&place));
            browser.wait("the topology", DRAWN);
            for id in &wanted {
                let seen = format!(
                    "(() => {{ const it = document.querySelector({})?.getBoundingClientRect(); \
                       return !!it && it.width > 100 && it.height > 40; }})()",
                    json!(node(id))
                );
                assert_eq!(browser.eval(&seen), json!(true), "{name} at {width}: {id}");
            }
            let over = "document.documentElement.scrollWidth - innerWidth";
            assert_eq!(browser.eval(over), json!(0), "{name} at {width} is wider than the screen");
            let nodes = browser.eval("document.querySelectorAll('.node').length");
            assert_eq!(nodes, json!(wanted.len()), "{name}");
            let page = browser.eval("document.documentElement.outerHTML");
            assert!(!page.as_str().unwrap().contains("hunter2"), "{name} shows a password");
        }
        assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}");
        browser.open("about:blank"); // before the process goes
    }
}

#[test]
fn numbers_move_and_colours_follow_the_reader() {
    let place = Place::new("");
    let _running = shipped(&place, "quickstart");
    let mut browser = see(&place);
    let (first, stored) = ("#f-stored", "document.querySelector('#f-stored').innerText");
    browser.wait("an event is stored", &format!("+{stored} > 0"));
    let before = browser.text(first);
    browser.wait("more are", &format!("{stored} !== {}", json!(before)));
    browser.wait(
        "an edge moves, and has a history",
        "!!document.querySelector('.edge[data-speed=\"1\"] .line[d^=M]')",
    );
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.eval(ground);
    browser.look(1440, 900, "dark");
    let dark = browser.eval(ground);
    assert_ne!(light, dark);
    browser.click("#theme");
    assert_eq!(browser.eval(ground), light, "the switch wins over the system");
    browser.open(&url(&place));
    browser.wait("the topology", DRAWN);
    assert_eq!(browser.eval(ground), light, "and is remembered");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_node_is_opened_and_left_by_keys() {
    let place = Place::new("");
    let _running = shipped(&place, "quickstart");
    let mut browser = see(&place);
    browser.eval("document.querySelector('.node').focus()");
    let focus = "document.activeElement?.dataset?.id";
    assert_eq!(browser.eval(focus), json!("source.visits"));
    browser.press("ArrowRight");
    assert_eq!(browser.eval(focus), json!("stream.visits"));
    browser.press("Enter");
    browser.wait("the panel", "!document.querySelector('#panel').hidden");
    assert_eq!(browser.text("#panel-name"), "visits");
    browser.wait("its events", "!!document.querySelector('.passed pre')");
    assert!(browser.text(".passed pre").contains("/page/"), "{}", browser.text(".passed"));
    let settings = browser.text(".settings");
    for setting in ["kind", "embedded", "max_backlog", "10000000"] {
        assert!(settings.contains(setting), "{settings}");
    }
    browser.press("Escape");
    assert_eq!(browser.eval("document.querySelector('#panel').hidden"), json!(true));
    assert_eq!(browser.eval(focus), json!("stream.visits"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

const REDIS: &str = r#"
[http]
listen = "127.0.0.1:{port}"

[source.orders]
kind = "publisher"
to = "orders"
every = "50ms"

[source.visits]
kind = "publisher"
to = "visits"
every = "50ms"

[stream.orders]
kind = "redis"
url = "URL"

[stream.visits]

[group.orders_to_file]
from = "orders"
to = "orders_file"
members = 2

[group.visits_to_file]
from = "visits"
to = "visits_file"

[sink.orders_file]
kind = "file"
path = "orders.jsonl"

[sink.visits_file]
kind = "file"
path = "visits.jsonl"
"#;

// What the page promises is 2 s. Machines that run tests are slow, so that is printed, and only
// several times as much is a failure.
#[test]
fn killing_redis_turns_what_needs_it_red_and_it_comes_back_by_itself() {
    let bound = Duration::from_secs(2) * 8;
    let mut redis = Redis::start();
    let place = Place::new(&REDIS.replace("URL", &redis.url()));
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let mut browser = see(&place);
    let red = ["stream.orders", "group.orders_to_file"];
    let others = ["source.visits", "stream.visits", "group.visits_to_file", "sink.visits_file"];
    browser.wait("all is well", "document.querySelector('#health').innerText === 'all is well'");
    redis.kill();
    let all: Vec<String> = red.iter().map(|id| state_is(id, "down")).collect();
    let took = browser.wait("they are red", &all.join(" && "));
    println!("red {took:.2?} after the kill");
    assert!(took < bound, "{took:?}");
    let waits = state_is("source.orders", "waiting");
    browser.wait("the source waits", &waits);
    for id in red {
        let shown = browser.text(&format!("{} .detail", node(id)));
        assert!(shown.contains("redis://127.0.0.1"), "{id}: {shown}");
        let border = format!(
            "getComputedStyle(document.querySelector({})).borderTopColor === 'rgb(198, 40, 29)'",
            json!(node(id))
        );
        browser.wait("its border is red", &border);
    }
    for id in others {
        assert_eq!(browser.eval(&state_is(id, "up")), json!(true), "{id}");
    }
    assert!(browser.text("#notes").contains("stream.orders"), "{}", browser.text("#notes"));
    let restarts = browser.text(&format!("{} .restarts", node(red[0])));
    assert!(restarts.contains('↻') && restarts.contains("down"), "{restarts}");
    redis.up();
    let all = red.iter().chain(&others).chain(&["source.orders"]).map(|id| state_is(id, "up"));
    let took = browser.wait("all are back", &all.collect::<Vec<_>>().join(" && "));
    println!("back {took:.2?} after the start");
    assert!(took < bound, "{took:?}");
    browser.wait("all is well", "document.querySelector('#health').innerText === 'all is well'");
    browser.click(&node(red[0]));
    browser.wait("its last error", "!!document.querySelector('.trouble .past')");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

const LETTERS: &str = r#"
[http]
listen = "127.0.0.1:{port}"
token = "correct-horse"

[source.intake]
kind = "http"
path = "/log"
to = "events"

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
"#;

/// Three events that the sink would not take, which it would now.
fn letters() -> (Place, Running) {
    let place = Place::new(LETTERS);
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    for n in ["first", "second", "third"] {
        let post = Request::post("/log").header("Authorization", "Bearer correct-horse");
        let post = post.json(&format!("{{\"n\":\"{n}\"}}"));
        assert_eq!(post.send(place.port).unwrap().status, 202);
    }
    eventually("dead letters", || running.metric("aqueduct_dead_letters", "") >= 3.0);
    assert!(running.stop().success());
    place.write_topology(&LETTERS.replace("bigint", "text"));
    let running = place.start();
    eventually("it is ready again", || running.get("/readyz").0 == 200);
    (place, running)
}

fn rows(place: &Place) -> Vec<String> {
    if !place.path("out.db").exists() {
        return Vec::new();
    }
    let rows = place.rows::<(String,)>("out.db", "SELECT CAST(n AS TEXT) FROM rows ORDER BY n");
    rows.into_iter().map(|(n,)| n).collect()
}

#[test]
fn a_token_is_asked_for_once_and_a_dead_letter_is_stored_at_a_click() {
    let (place, _running) = letters();
    let mut browser = see(&place);
    let shown = browser.eval("document.documentElement.outerHTML");
    assert!(!shown.as_str().unwrap().contains("correct-horse"));
    browser.click(&node("group.writer"));
    browser.wait("it asks", "!document.querySelector('.token').hidden");
    assert_eq!(browser.text(".letters div"), "Locked.");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    browser.click("#token");
    browser.write("wrong");
    browser.press("Enter");
    browser.wait("it says so", "!!document.querySelector('.token .bad').innerText");
    let said = browser.complaints();
    assert!(said.iter().all(|it| it.contains("401")), "the browser tells of the answer: {said:?}");
    browser.click("#token");
    browser.write("correct-horse");
    browser.press("Enter");
    browser.wait("the letters", "document.querySelectorAll('.letters li').length === 3");
    assert!(browser.text(".letters li .cause").contains("does not read as one"));
    assert_eq!(browser.eval("document.querySelector('.token').hidden"), json!(true));

    browser.click(".letters li:nth-child(1) .main");
    browser.wait("it is put back", "document.querySelectorAll('.letters li').length === 2");
    assert!(browser.text(".said").contains("1 letter put back"), "{}", browser.text(".said"));
    eventually("it is stored", || rows(&place) == ["first"]);

    browser.click(".letters li:nth-child(1) .danger");
    browser.wait("it asks again", "document.activeElement?.innerText === 'Keep'");
    browser.press("Enter");
    assert_eq!(browser.eval("document.querySelectorAll('.letters li').length"), json!(2));
    browser.click(".letters li:nth-child(1) .danger");
    browser.wait("it asks", "document.activeElement?.innerText === 'Keep'");
    browser.click(".letters li:nth-child(1) .danger");
    browser.wait("it is gone", "document.querySelectorAll('.letters li').length === 1");

    // The token is kept for this tab: another node asks no more.
    browser.open(&url(&place));
    browser.wait("the topology", DRAWN);
    browser.click(&node("stream.events"));
    browser.wait("the letter", "document.querySelectorAll('.letters li').length === 1");
    browser.click(".letters li .main");
    browser
        .wait("none is left", "document.querySelector('.letters div').innerText.includes('None')");
    eventually("it is stored", || rows(&place) == ["first", "third"]);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_server_that_is_away_is_said_to_be_and_comes_back_by_itself() {
    let place = Place::new(&REDIS.replace("kind = \"redis\"\nurl = \"URL\"", ""));
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let mut browser = see(&place);
    browser.wait("all is well", "document.querySelector('#health').innerText === 'all is well'");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let file = browser.text("#instance");
    running.kill();
    let took = browser.wait("it says so", "document.body.classList.contains('lost')");
    println!("said {took:.2?} after the kill");
    let notes = browser.text("#notes");
    assert!(notes.contains("does not answer") && notes.contains("last seen at"), "{notes}");
    assert_eq!(browser.text("#health"), "no connection");
    assert!(browser.eval("document.title").as_str().unwrap().contains("no connection"));
    let running = place.start();
    eventually("it is ready again", || running.get("/readyz").0 == 200);
    let took = browser.wait("it is back", "!document.body.classList.contains('lost')");
    println!("back {took:.2?} after the start");
    browser.wait("all is well", "document.querySelector('#health').innerText === 'all is well'");
    assert_ne!(browser.text("#instance"), file, "it is another process");
    let said = browser.complaints();
    let expected = |it: &String| it.contains("net::ERR_") || it.contains("/api/live");
    assert!(said.iter().all(expected), "{said:?}");
    assert!(running.stop().success());
}

#[test]
fn an_edit_is_drawn_and_one_that_is_refused_cannot_be_overlooked() {
    let text = REDIS.replace("kind = \"redis\"\nurl = \"URL\"", "");
    let place = Place::new(&text);
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let mut browser = see(&place);
    let nodes = "document.querySelectorAll('.node').length";
    assert_eq!(browser.eval(nodes), json!(8));
    browser.click(&node("stream.orders"));
    let more = "\n[group.copy]\nfrom = \"orders\"\nto = \"copied\"\n\n[sink.copied]\nkind = \"file\"\npath = \"copied.jsonl\"\n";
    place.write_topology(&format!("{text}{more}"));
    let took = browser.wait("what is new is drawn", &state_is("sink.copied", "up"));
    println!("drawn {took:.2?} after the edit");
    assert_eq!(browser.eval(nodes), json!(10));
    assert_eq!(browser.text("#f-generation"), "2");
    browser.wait("the old ones know their past", "!!document.querySelector('.line[d^=M]')");
    assert_eq!(browser.text("#panel-name"), "orders", "what is open stays open");

    place.write_topology(
        &format!("{text}{more}").replace("kind = \"publisher\"", "kind = \"publishr\""),
    );
    browser.wait("it is said", "document.querySelector('#notes').innerText.includes('publishr')");
    let notes = browser.text("#notes");
    for part in ["refused", "generation 2 runs on", "topology.toml:6:", "did you mean"] {
        assert!(notes.contains(part), "no {part:?} in {notes}");
    }
    assert_eq!(browser.text("#health"), "✕ edit refused".trim_start_matches("✕ "));
    place.write_topology(&text);
    browser.wait("all is well", "document.querySelector('#health').innerText === 'all is well'");
    assert_eq!(browser.text("#notes"), "");
    assert_eq!(browser.eval(nodes), json!(8));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Screenshots for the documentation, looked at by people.
#[test]
#[ignore = "scripts/screenshots runs it"]
fn screenshots() {
    let Some(folder) = pictures() else { return };
    let mut redis = Redis::start();
    let text = include_str!("support/pictured.toml");
    let place = Place::new(&text.replace("{redis}", &redis.url()));
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    for n in 0..3 {
        let body =
            format!("{{\"level\":\"error\",\"message\":\"card refused\",\"ms\":\"slow {n}\"}}");
        let post = Request::post("/log").header("Authorization", "Bearer t").json(&body);
        assert_eq!(post.send(place.port).unwrap().status, 202);
    }
    let mut browser = Browser::start();
    browser.look(1440, 900, "light");
    browser.open(&url(&place));
    browser.wait("the topology", DRAWN);
    browser.eval("sessionStorage.setItem('aqueduct-token', 't')");
    // A minute's history.
    std::thread::sleep(Duration::from_secs(75));
    for scheme in ["light", "dark"] {
        for (name, width, height) in
            [("wide", 1440, 900), ("middle", 1024, 768), ("phone", 390, 844)]
        {
            browser.look(width, height, scheme);
            browser.eval("scrollTo(0, 0)");
            std::thread::sleep(Duration::from_millis(1500));
            browser.picture(&folder.join(format!("page-{name}-{scheme}.png")));
        }
    }
    browser.look(1440, 900, "light");
    std::thread::sleep(Duration::from_secs(1));
    browser.click(&node("group.logs_to_db"));
    std::thread::sleep(Duration::from_secs(4));
    browser.picture(&folder.join("page-node-light.png"));
    browser.press("Escape");
    redis.kill();
    browser.wait("red", &state_is("stream.orders", "down"));
    std::thread::sleep(Duration::from_secs(3));
    browser.look(1440, 900, "dark");
    std::thread::sleep(Duration::from_secs(1));
    browser.picture(&folder.join("page-down-dark.png"));
}
