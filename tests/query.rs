//! Queries: rows of a database over HTTP, through the real program. What holds of every database
//! is tried on each.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use process::{Answer, Place, Request, Running, eventually};
use serde_json::{Value as Json, json};
use servers::{Postgres, Redis, binary};

const QUERY: &str = r#"
[http]
listen = "127.0.0.1:{port}"

[sink.db]
SINK

[query.logs]
path = "/logs"
sink = "db"
"#;

const FLOW: &str = r#"
[source.log]
kind = "http"
path = "/log"
to = "logs"

[stream.logs]

[group.write]
from = "logs"
to = "db"
"#;

/// A database of a test's own.
enum Db {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

impl Db {
    fn both() -> [Self; 2] {
        let postgres = Postgres::shared().database();
        [Self::sqlite(), Self::Postgres(postgres.rsplit_once('/').unwrap().1.to_owned())]
    }

    fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// The keys of a sink of this table.
    fn sink(&self, table: &str) -> String {
        let of = match self {
            Self::Sqlite(dir) => {
                format!("kind = \"sqlite\"\npath = {:?}", dir.path().join("out.db"))
            }
            Self::Postgres(name) => {
                format!("kind = \"postgres\"\nurl = \"{}\"", Postgres::shared().url(name))
            }
        };
        format!("{of}\ntable = \"{table}\"")
    }

    /// Has statements done: what they answer.
    fn sql(&self, sql: &str) -> String {
        match self {
            Self::Sqlite(dir) => sqlite(&dir.path().join("out.db"), sql),
            Self::Postgres(name) => Postgres::shared().psql(name, sql),
        }
    }

    fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }
}

fn sqlite(path: &std::path::Path, sql: &str) -> String {
    use sqlx::{Connection, Row};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
            .busy_timeout(std::time::Duration::from_secs(10));
        let mut connection = sqlx::sqlite::SqliteConnection::connect_with(&options).await.unwrap();
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        let rows = sqlx::raw_sql(sql).fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let texts = rows.iter().map(|row| row.try_get::<String, _>(0).unwrap());
        texts.collect::<Vec<_>>().join("\n")
    })
}

/// `QUERY` on this database, and more of a topology.
fn place(db: &Db, table: &str, more: &str) -> Place {
    Place::new(&(QUERY.replace("SINK", &db.sink(table)) + more))
}

fn ready(running: &Running) {
    eventually("it is ready", || running.get("/readyz").0 == 200);
}

fn ask(place: &Place, path: &str) -> Answer {
    Request::get(path).send(place.port).unwrap()
}

/// The rows of an answer that has to be one.
fn rows(place: &Place, path: &str) -> Vec<Json> {
    let answer = ask(place, path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()["rows"].as_array().unwrap().clone()
}

fn header(answer: &Answer, name: &str) -> Option<String> {
    let mut lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
}

#[test]
fn what_is_posted_is_found_by_column_and_by_member() {
    for db in Db::both() {
        let place = place(&db, "logs", FLOW);
        let running = place.start();
        ready(&running);
        for body in [
            r#"{"level":"info","n":5,"ok":true,"nil":null,"http":{"status":200}}"#,
            r#"{"level":"warn","n":"5","ok":"true","nil":"null","http":{"status":404}}"#,
            r#"{"level":"info","n":5.0,"a\"b":1,"http":{"status":[200]}}"#,
            r#""only text""#,
        ] {
            let answer = Request::post("/log").json(body).send(place.port).unwrap();
            assert_eq!(answer.status, 202, "{answer:?}");
            let id = answer.json()["ids"][0].as_str().unwrap().to_owned();
            let path = format!("/logs?event_id={id}");
            eventually("it is stored", || rows(&place, &path).len() == 1);
            let row = &rows(&place, &path)[0];
            assert_eq!(row["data"], serde_json::from_str::<Json>(body).unwrap());
            assert_eq!(row["event_id"], id);
            let time = row["inserted_at"].as_str().unwrap();
            chrono::DateTime::parse_from_rfc3339(time).unwrap();
        }
        for (question, found) in [
            ("", 4),
            ("level=info", 2),
            ("level=INFO", 0),
            ("n=5", 3),
            ("ok=true", 2),
            ("nil=null", 2),
            ("http.status=200", 1),
            ("http.status=404&level=warn", 1),
            ("http.status=404&level=info", 0),
            ("level=info&level=warn", 0),
            ("nothing=1", 0),
            ("n=", 0),
            ("=x", 0),
            ("a..b=1", 0),
            ("level.x=info", 0),
            ("limit=2", 2),
        ] {
            assert_eq!(rows(&place, &format!("/logs?{question}")).len(), found, "{question}");
        }
        let newest = rows(&place, "/logs?limit=1");
        assert_eq!(newest[0]["data"], json!("only text"), "the newest is the first");
        assert_eq!(
            running.metric("aqueduct_query_requests_total", "status=\"200\"") as u64 / 21,
            1
        );
        assert!(running.metric("aqueduct_query_seconds_count", "query=\"logs\"") > 16.0);
    }
}

#[test]
fn a_question_that_is_wrong_is_refused_and_says_what_would_be_right() {
    for db in Db::both() {
        let (json, blob) = match db.is_sqlite() {
            true => ("TEXT", "BLOB"),
            false => ("text", "bytea"),
        };
        db.sql(&format!(
            "CREATE TABLE t (id bigint PRIMARY KEY NOT NULL, name {json}, flag boolean, b {blob})"
        ));
        let place = place(&db, "t", "");
        let running = place.start();
        ready(&running);
        for (question, says) in [
            ("limit=0", "1 to 1000"),
            ("limit=1001", "1 to 1000"),
            ("limit=ten", "`ten`"),
            ("limit=-1", "1 to 1000"),
            ("after=nonsense", "`next`"),
            ("after=", "`next`"),
            ("nam=x", "did you mean `name`?"),
            ("level=info", "`id`, `name`, `flag` and `b`"),
            ("id=x", "no value of column `id`"),
            ("id=99999999999999999999", "no value of column `id`"),
            ("flag=perhaps", "no value of column `flag`"),
            ("name=%00", "NUL"),
            ("name=%FF", "cannot be read"),
        ] {
            let answer = ask(&place, &format!("/logs?{question}"));
            if question == "name=%FF" && answer.status == 200 {
                continue; // read with a replacement character: a text like any other
            }
            assert_eq!(answer.status, 400, "{question}: {answer:?}");
            assert!(answer.body.contains(says), "{question}: {answer:?}");
            assert!(!answer.body.to_lowercase().contains("select"), "{question}: {answer:?}");
        }
        let many: String = (0..33).map(|n| format!("name={n}&")).collect();
        assert_eq!(ask(&place, &format!("/logs?{many}")).status, 400);
        assert_eq!(Request::post("/logs").json("{}").send(place.port).unwrap().status, 405);
        assert_eq!(rows(&place, "/logs?limit=1000"), [] as [Json; 0]);
    }
}

#[test]
fn what_looks_like_sql_is_a_name_or_a_value() {
    for db in Db::both() {
        let place = place(&db, "logs", FLOW);
        let running = place.start();
        ready(&running);
        let evil = r#"'; DROP TABLE logs; --"#;
        let body = json!({ "a": evil, (evil): "x", "b\\": "' OR 1=1", "c'": "\"", "d\"e\n": 1 })
            .to_string();
        assert_eq!(Request::post("/log").json(&body).send(place.port).unwrap().status, 202);
        eventually("it is stored", || rows(&place, "/logs").len() == 1);
        let encode =
            |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
        for (name, value, found) in [
            ("a", evil, 1),
            (evil, "x", 1),
            ("a", "' OR '1'='1", 0),
            ("' OR 1=1 --", "x", 0),
            ("b\\", "' OR 1=1", 1),
            ("c'", "\"", 1),
            ("d\"e\n", "1", 1),
            ("data) OR (1=1", "x", 0),
            ("a) OR 1=1; DROP TABLE logs; --", "1", 0),
            ("$1", "$2", 0),
            ("?1", "?2", 0),
        ] {
            let path = format!("/logs?{}={}", encode(name), encode(value));
            assert_eq!(rows(&place, &path).len(), found, "{name}={value}");
        }
        for name in ["inserted_at", "event_id"] {
            let path = format!("/logs?{name}={}", encode("x' OR '1'='1"));
            let answer = ask(&place, &path);
            assert!(matches!(answer.status, 200 | 400), "{answer:?}");
            assert!(answer.status == 400 || answer.json()["rows"] == json!([]), "{answer:?}");
        }
        assert_eq!(rows(&place, "/logs").len(), 1);
    }
}

#[test]
fn pages_hold_every_old_row_once_while_rows_come_in() {
    for db in Db::both() {
        // A tenth has no time; all others share seven of them.
        let numbers = match db.is_sqlite() {
            true => {
                "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2500) \
                 SELECT CASE WHEN n % 10 > 0 THEN n % 7 * 5 END, printf('old %05d', n) FROM n"
            }
            false => {
                "SELECT CASE WHEN n % 10 > 0 THEN n % 7 * 5 END, 'old ' || lpad(n::text, 5, '0') \
                 FROM generate_series(1, 2500) n"
            }
        };
        db.sql("CREATE TABLE t (at bigint, id text PRIMARY KEY NOT NULL)");
        db.sql(&format!("INSERT INTO t {numbers}"));
        let place = place(&db, "t", "order = \"at\"\n");
        let running = place.start();
        ready(&running);
        let seed = process::seed();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                fastrand::seed(seed);
                for n in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    let at = ["NULL", "0", "15", "30", "45"][fastrand::usize(..5)];
                    let id = fastrand::u64(..);
                    db.sql(&format!("INSERT INTO t VALUES ({at}, '{id:x} new {n}')"));
                }
            });
            for limit in [1000, 97] {
                let all = pages(&place, &format!("/logs?limit={limit}"));
                let ids: Vec<&str> = all.iter().map(|row| row["id"].as_str().unwrap()).collect();
                let unique: BTreeSet<&str> = ids.iter().copied().collect();
                assert_eq!(unique.len(), ids.len(), "no row twice");
                let old = unique.iter().filter(|id| id.starts_with("old")).count();
                assert_eq!(old, 2500, "none is missing");
                let times: Vec<i64> =
                    all.iter().map(|row| row["at"].as_i64().unwrap_or(-1)).collect();
                assert!(times.is_sorted_by(|a, b| a >= b), "newest first, those without last");
            }
            done.store(true, Ordering::Relaxed);
        });
        let filtered = pages(&place, "/logs?limit=100&at=15");
        let old = filtered.iter().filter(|row| row["id"].as_str().unwrap().starts_with("old"));
        assert_eq!(old.count(), (1..=2500).filter(|n| n % 7 == 3 && n % 10 > 0).count());
    }
}

/// The rows of all pages.
fn pages(place: &Place, path: &str) -> Vec<Json> {
    let mut all = Vec::new();
    let mut next = String::new();
    loop {
        let answer = ask(place, &format!("{path}{next}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        all.extend(page["rows"].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(mark) => next = format!("&after={mark}"),
            None => return all,
        }
    }
}

#[test]
fn a_table_without_a_key_is_read_in_pages_too() {
    for db in Db::both() {
        db.sql("CREATE TABLE t (n double precision)");
        for n in 0..10 {
            db.sql(&format!("INSERT INTO t VALUES ({n}.1), ({n}.1)"));
        }
        for more in ["", "order = \"n\"\n"] {
            let place = place(&db, "t", more);
            let running = place.start();
            ready(&running);
            let all = pages(&place, "/logs?limit=3");
            let numbers: Vec<f64> = all.iter().map(|row| row["n"].as_f64().unwrap()).collect();
            let expected: Vec<f64> = (0..20).rev().map(|n| f64::from(n / 2) + 0.1).collect();
            assert_eq!(numbers, expected);
        }
    }
}

#[test]
fn a_mark_is_of_its_query_and_whole() {
    for db in Db::both() {
        db.sql("CREATE TABLE t (id bigint PRIMARY KEY NOT NULL, n bigint)");
        db.sql("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)");
        let other = "[query.other]\npath = \"/other\"\nsink = \"db\"\norder = \"n\"\n";
        let place = place(&db, "t", other);
        let running = place.start();
        ready(&running);
        let next = ask(&place, "/logs?limit=1").json()["next"].as_str().unwrap().to_owned();
        assert_eq!(rows(&place, &format!("/logs?after={next}"))[0]["id"], 2);
        let mut tampered = next.clone().into_bytes();
        let at = tampered.len() - 3;
        tampered[at] = if tampered[at] == b'M' { b'N' } else { b'M' };
        let tampered = String::from_utf8(tampered).unwrap();
        for path in [
            format!("/other?after={next}"),
            format!("/logs?after={tampered}"),
            format!("/logs?after={}", &next[..next.len() - 1]),
        ] {
            assert_eq!(ask(&place, &path).status, 400, "{path}");
        }
        drop(running);
        let running = place.start();
        ready(&running);
        assert_eq!(rows(&place, &format!("/logs?after={next}"))[0]["id"], 2, "after a restart too");
    }
}

#[test]
fn values_of_postgres_are_shown_whole_and_asked_for_as_their_type() {
    let [_, db] = Db::both();
    db.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'happy');
         CREATE DOMAIN page AS bytea;
         CREATE TABLE t (id uuid PRIMARY KEY, at timestamptz, plain timestamp, day date,
             amount numeric, big bigint, half real, flag bool, bytes bytea, body page,
             words text[], feeling mood, doc json, fixed char(4), spot point, \"odd \"\"name\" int,
             r int, t int)",
    );
    db.sql(
        "INSERT INTO t VALUES ('0193A5C8-0000-8000-8000-000000000001',
             '2026-01-02 03:04:05.678901+02', '2026-01-02 03:04:05', '2026-01-02',
             12345678901234567890.012345678901234567890, 9223372036854775807, 0.1, true,
             decode('00ff', 'hex'), convert_to(repeat('x', 90), 'UTF8'), '{a,\"b c\",NULL}',
             'happy', '{\"a\": 1}', 'ab', '(1,2)', 7, 8, 9)",
    );
    let place = place(&db, "t", "order = \"at\"\n");
    let running = place.start();
    ready(&running);
    let answer = ask(&place, "/logs");
    for shown in [
        r#""id":"0193a5c8-0000-8000-8000-000000000001""#,
        r#""at":"2026-01-02T01:04:05.678901+00:00""#,
        r#""plain":"2026-01-02T03:04:05""#,
        r#""amount":12345678901234567890.012345678901234567890"#,
        r#""big":9223372036854775807"#,
        r#""half":0.1"#,
        r#""flag":true"#,
        r#""bytes":"AP8=""#,
        r#""body":"eHh4"#,
        r#""words":["a","b c",null]"#,
        r#""feeling":"happy""#,
        r#""doc":{"a": 1}"#,
        r#""odd \"name":7,"r":8,"t":9"#,
    ] {
        assert!(answer.body.contains(shown), "{shown}: {answer:?}");
    }
    assert!(!answer.body.contains("\\n"), "base64 without line breaks: {answer:?}");
    for (question, found) in [
        ("id=0193A5C8-0000-8000-8000-000000000001", 1),
        ("at=2026-01-02T01:04:05.678901Z", 1),
        ("at=2026-01-02T01:04:05Z", 0),
        ("amount=12345678901234567890.01234567890123456789", 1),
        ("half=0.1", 1),
        ("flag=t", 1),
        ("flag=false", 0),
        ("day=2026-01-02", 1),
        ("bytes=%5Cx00ff", 1),
        ("words=%7Ba,%22b%20c%22,NULL%7D", 1),
        ("feeling=happy", 1),
        ("fixed=ab", 1),
        ("odd%20%22name=7", 1),
        ("a=1", 1),
        ("doc=%7B%22a%22:1%7D", 1),
    ] {
        assert_eq!(rows(&place, &format!("/logs?{question}")).len(), found, "{question}");
    }
    for (question, says) in [
        ("id=1", "no value of column `id` (uuid)"),
        ("at=never", "no value of column `at` (timestamp with time zone)"),
        ("amount=1,5", "no value of column `amount` (numeric)"),
        ("big=9223372036854775808", "no value of column `big` (bigint)"),
        ("feeling=bored", "no value of column `feeling` (mood)"),
        ("doc=%7B", "no value of column `doc` (json)"),
        ("spot=(1,2)", "point has no equality"),
    ] {
        let answer = ask(&place, &format!("/logs?{question}"));
        assert_eq!(answer.status, 400, "{question}: {answer:?}");
        assert!(answer.body.contains(says), "{question}: {answer:?}");
    }
}

#[test]
fn values_of_sqlite_are_shown_whole_and_asked_for_as_their_type() {
    let db = Db::sqlite();
    db.sql(
        "CREATE TABLE t (n INTEGER PRIMARY KEY, big BIGINT, share REAL, flag BOOLEAN, bytes BLOB,
             doc JSON, any_thing, id UUID, inserted_at TIMESTAMP);
         INSERT INTO t VALUES (1, 9223372036854775807, 0.1, 1, x'00ff', '{\"a\": {\"b\": 1}}', 'x',
             '0193a5c8-0000-8000-8000-000000000001', '2026-01-02T03:04:05Z');
         INSERT INTO t VALUES (2, NULL, 1e999, 0, NULL, 'broken', 7, NULL, NULL);",
    );
    let place = place(&db, "t", "");
    let running = place.start();
    ready(&running);
    let answer = ask(&place, "/logs");
    for shown in [
        r#"{"n":1,"big":9223372036854775807,"share":0.1,"flag":true,"bytes":"AP8=","#,
        r#""doc":{"a": {"b": 1}},"any_thing":"x","#,
        r#"{"n":2,"big":null,"share":"Infinity","flag":false,"bytes":null,"doc":"broken","#,
    ] {
        assert!(answer.body.contains(shown), "{shown}: {answer:?}");
    }
    for (question, found) in [
        ("N=1", 1),
        ("big=9223372036854775807", 1),
        ("share=0.1", 1),
        ("flag=true", 1),
        ("bytes=AP8=", 1),
        ("any_thing=7", 1),
        ("any_thing=x", 1),
        ("a.b=1", 1),
        ("a.b=2", 0),
        ("id=0193A5C8-0000-8000-8000-000000000001", 1),
        ("inserted_at=2026-01-02T03:04:05Z", 1),
    ] {
        assert_eq!(rows(&place, &format!("/logs?{question}")).len(), found, "{question}");
    }
    for question in ["share=x", "flag=2", "bytes=*", "id=1", "inserted_at=never", "doc=%7B"] {
        assert_eq!(ask(&place, &format!("/logs?{question}")).status, 400, "{question}");
    }
}

#[test]
fn who_has_no_token_sees_no_row() {
    for db in Db::both() {
        db.sql("CREATE TABLE t (id bigint PRIMARY KEY NOT NULL)");
        db.sql("INSERT INTO t VALUES (1)");
        let place = place(&db, "t", "");
        let with = |text: &str| text.replace("[http]", "[http]\ntoken = \"let-me-in\"");
        place.write_topology(&with(&QUERY.replace("SINK", &db.sink("t"))));
        let running = place.start();
        ready(&running);
        for token in ["", "Bearer", "Bearer let-me-i", "Bearer let-me-inn", "Basic let-me-in"] {
            let request = Request::get("/logs").header("Authorization", token);
            let answer = request.send(place.port).unwrap();
            assert_eq!(answer.status, 401, "{token}: {answer:?}");
            assert!(!answer.body.contains("rows"), "{answer:?}");
        }
        let known = Request::get("/logs").header("Authorization", "Bearer let-me-in");
        let answer = known.send(place.port).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(header(&answer, "cache-control").unwrap(), "private, no-cache");
        assert_eq!(header(&answer, "vary").unwrap(), "Authorization");
        let api = running.get("/openapi.json").1;
        let api: Json = serde_json::from_str(&api).unwrap();
        let answers = &api["paths"]["/logs"]["get"]["responses"];
        for status in ["200", "304", "400", "401", "503", "504"] {
            assert!(answers[status].is_object(), "{status}: {answers}");
        }
        assert!(!running.log().contains("let-me-in"));
    }
}

#[test]
fn an_answer_that_is_known_is_not_sent_again() {
    for db in Db::both() {
        db.sql("CREATE TABLE t (id bigint PRIMARY KEY NOT NULL)");
        let place = place(&db, "t", "");
        let running = place.start();
        ready(&running);
        let first = ask(&place, "/logs");
        assert_eq!(first.body, r#"{"rows":[],"next":null,"cached":false}"#);
        let tag = header(&first, "etag").unwrap();
        assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
        assert_eq!(header(&first, "cache-control").unwrap(), "public, no-cache");
        let again = |known: &str| {
            Request::get("/logs").header("If-None-Match", known).send(place.port).unwrap()
        };
        for known in [tag.as_str(), "*", &format!("\"x\", W/{tag}")] {
            let answer = again(known);
            assert_eq!((answer.status, answer.body.as_str()), (304, ""), "{known}");
            assert_eq!(header(&answer, "etag").unwrap(), tag);
        }
        assert_eq!(again("\"x\"").status, 200);
        db.sql("INSERT INTO t VALUES (1)");
        let changed = again(&tag);
        assert_eq!(changed.status, 200);
        assert_ne!(header(&changed, "etag").unwrap(), tag);
        let head = Request::new("HEAD", "/logs").send(place.port).unwrap();
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(header(&head, "content-length"), header(&changed, "content-length"));
    }
}

#[test]
fn a_cache_answers_until_its_time_is_up_and_is_no_need() {
    for db in Db::both() {
        let mut redis = Redis::start();
        db.sql("CREATE TABLE t (id bigint PRIMARY KEY NOT NULL)");
        let cache = format!("cache = {{ url = \"{}\", ttl = \"2s\" }}\n", redis.url());
        let place = place(&db, "t", &cache);
        let running = place.start();
        ready(&running);
        let cached = |path: &str| ask(&place, path).json()["cached"] == true;
        eventually("it is cached", || cached("/logs?limit=9&id=1"));
        eventually("it was not for long", || !cached("/logs?limit=9&id=1"));
        let fresh = ask(&place, "/logs?limit=9&id=1");
        assert_eq!(fresh.json()["cached"], true);
        assert_eq!(fresh.json()["rows"], json!([]));
        let max_age = header(&fresh, "cache-control").unwrap();
        assert_eq!(max_age, "public, max-age=2");
        assert!(header(&fresh, "age").is_some());
        assert!(cached("/logs?id=1&limit=9"), "the order of the question's parts is no matter");
        assert!(!cached("/logs?id=2&limit=9"));
        db.sql("INSERT INTO t VALUES (3)");
        let first = ask(&place, "/logs?id=3");
        let second = ask(&place, "/logs?id=3");
        assert_eq!(
            (&first.json()["cached"], &second.json()["cached"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(header(&first, "etag"), header(&second, "etag"));
        assert!(running.metric("aqueduct_query_cache_hits_total", "") > 2.0);
        assert!(running.metric("aqueduct_query_cache_misses_total", "") > 2.0);

        redis.kill();
        for _ in 0..20 {
            assert_eq!(rows(&place, "/logs?id=3").len(), 1);
        }
        assert_eq!(running.get("/readyz").0, 200);
        eventually("it is said", || running.log().contains("the cache does not work"));
        redis.up();
        eventually("it is cached again", || cached("/logs?id=3"));
        assert_eq!(running.log().matches("the cache does not work").count(), 1, "said once");

        // It hangs: no request waits long.
        servers::signal(redis.pid(), "STOP");
        let begun = std::time::Instant::now();
        for _ in 0..5 {
            assert_eq!(rows(&place, "/logs?id=3").len(), 1);
        }
        assert!(begun.elapsed().as_secs() < 2, "{:?}", begun.elapsed());
        servers::signal(redis.pid(), "CONT");
        eventually("it is cached again", || cached("/logs?id=3"));
    }
}

#[test]
fn while_postgres_is_away_it_is_503_and_then_again_200() {
    let mut postgres = Postgres::start();
    let url = postgres.database();
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    postgres.psql(&name, "CREATE TABLE t (id bigint PRIMARY KEY)");
    let url = url.replace("postgres@", "postgres:hunter2@");
    let sink = format!("kind = \"postgres\"\nurl = \"{url}\"\ntable = \"t\"");
    let place = Place::new(&QUERY.replace("SINK", &sink));
    let running = place.start();
    ready(&running);
    assert_eq!(rows(&place, "/logs").len(), 0);
    postgres.kill();
    for _ in 0..3 {
        let answer = ask(&place, "/logs");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(header(&answer, "retry-after").unwrap(), "1");
        assert_eq!(answer.body, "{\"error\":\"the database cannot answer now\"}");
    }
    eventually("it is not ready", || running.get("/readyz").0 == 503);
    let mut health = String::new();
    eventually("both are named", || {
        let (status, said) = running.get("/healthz");
        health = said;
        status == 503 && health.contains("query.logs") && health.contains("sink.db")
    });
    assert!(running.log().contains("nobody listens there"), "{}", running.log());
    assert_eq!(running.log().matches("no answer:").count(), 1, "said once: {}", running.log());
    postgres.up();
    eventually("it is back", || ask(&place, "/logs").status == 200);
    ready(&running);
    // A restart between two questions is nobody's trouble.
    postgres.kill();
    postgres.up();
    assert_eq!(rows(&place, "/logs").len(), 0);
    let seen = format!("{}{health}", running.log());
    assert!(!seen.contains("hunter2"), "{seen}");
}

#[test]
fn while_a_file_is_away_it_is_503_and_then_again_200() {
    let db = Db::sqlite();
    let Db::Sqlite(dir) = &db else { unreachable!() };
    let (here, away) = (dir.path().join("out.db"), dir.path().join("away"));
    let place = place(&db, "t", "");
    let running = place.start();
    eventually("it listens", || running.get("/livez").0 == 200);
    assert_eq!(ask(&place, "/logs").status, 503, "there is no file");
    assert_eq!(running.get("/readyz").0, 503);
    db.sql("CREATE TABLE u (id INTEGER PRIMARY KEY)");
    let answer = ask(&place, "/logs");
    assert_eq!(answer.status, 503, "there is no table");
    assert!(!answer.body.contains("table"), "{answer:?}");
    db.sql("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)");
    assert_eq!(rows(&place, "/logs").len(), 1);
    ready(&running);
    std::fs::rename(&here, &away).unwrap();
    assert_eq!(ask(&place, "/logs").status, 503);
    std::fs::rename(&away, &here).unwrap();
    assert_eq!(rows(&place, "/logs").len(), 1);
}

#[test]
fn what_takes_too_long_is_504() {
    let [sqlite, postgres] = Db::both();
    sqlite.sql(
        "CREATE TABLE t (n INTEGER PRIMARY KEY, doc JSON);
         WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300000)
         INSERT INTO t SELECT n, '{\"a\":1}' FROM n",
    );
    let late = |place: &Place| {
        let answer = ask(place, "/logs?b=2");
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(answer.body.contains("`timeout`"), "{answer:?}");
    };
    let quick = place(&sqlite, "t", "timeout = \"20ms\"\n");
    let running = quick.start();
    ready(&running);
    late(&quick);
    // A machine at its limits may take as long for this one too, now and then.
    eventually("a quick one is answered", || ask(&quick, "/logs?limit=1").status == 200);
    assert!(running.metric("aqueduct_query_requests_total", "status=\"504\"") >= 1.0);

    postgres.sql("CREATE TABLE t (id bigint PRIMARY KEY, doc jsonb)");
    let quick = place(&postgres, "t", "timeout = \"300ms\"\n");
    let running = quick.start();
    ready(&running);
    assert_eq!(rows(&quick, "/logs?b=2").len(), 0);
    let mut lock = locked(&postgres, "t");
    late(&quick);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND \
                   application_name LIKE 'aqueduct%' AND datname = current_database()";
    eventually("nothing goes on in the server", || postgres.sql(waiting) == "0");
    assert_eq!(running.get("/readyz").0, 200);
    unlock(&postgres, &mut lock);
    eventually("the lock is gone", || ask(&quick, "/logs?b=2").status == 200);
}

#[test]
fn equal_questions_that_come_at_once_share_an_answer() {
    let [_, db] = Db::both();
    let redis = Redis::start();
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, doc jsonb)");
    let cache = format!("cache = {{ url = \"{}\", ttl = \"1m\" }}\n", redis.url());
    let place = place(&db, "t", &cache);
    let running = place.start();
    ready(&running);
    eventually("the cache works", || ask(&place, "/logs?id=1").json()["cached"] == true);
    db.sql("INSERT INTO t VALUES (7)");
    let mut lock = locked(&db, "t");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND \
                   application_name LIKE 'aqueduct%' AND datname = current_database()";
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&place, "/logs?id=7"))).collect();
        let other = scope.spawn(|| ask(&place, "/logs?id=8"));
        eventually("all are counted", || {
            running.metric("aqueduct_query_cache_misses_total", "") >= 10.0
        });
        eventually("two questions are asked", || db.sql(waiting) == "2");
        unlock(&db, &mut lock);
        for answer in asked {
            assert_eq!(answer.join().unwrap().json()["rows"][0]["id"], 7);
        }
        assert_eq!(other.join().unwrap().json()["rows"], json!([]));
    });
    assert_eq!(ask(&place, "/logs?id=7").json()["cached"], true);
}

#[test]
fn a_page_of_large_rows_is_short_and_the_next_goes_on() {
    for db in Db::both() {
        let (json, text) = match db.is_sqlite() {
            true => ("TEXT", "hex(zeroblob(500000))"),
            false => ("text", "repeat('0', 1000000)"),
        };
        db.sql(&format!("CREATE TABLE t (id bigint PRIMARY KEY NOT NULL, words {json})"));
        for id in 0..20 {
            db.sql(&format!("INSERT INTO t VALUES ({id}, {text})"));
        }
        let place = place(&db, "t", "");
        let running = place.start();
        ready(&running);
        let first = rows(&place, "/logs?limit=100").len();
        assert!((6..9).contains(&first), "{first} rows of 1 MB");
        assert_eq!(pages(&place, "/logs?limit=100").len(), 20);
        drop(running);
    }
}

#[test]
fn what_cannot_be_read_or_put_in_order_is_said_in_healthz() {
    let [_, db] = Db::both();
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, doc json)");
    for (order, says) in [("doc", "ordering operator"), ("none", "no column `none`")] {
        let place = place(&db, "t", &format!("order = \"{order}\"\n"));
        let running = place.start();
        eventually("it listens", || running.get("/livez").0 == 200);
        let (status, health) = running.get("/healthz");
        assert!(status == 503 && health.contains(says), "{health}");
        assert_eq!(running.get("/readyz").0, 503);
        let answer = ask(&place, "/logs");
        assert!(answer.status == 503 && !answer.body.contains(says), "{answer:?}");
    }
}

fn unlock(db: &Db, lock: &mut Child) {
    lock.kill().unwrap();
    lock.wait().unwrap();
    db.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lock'
             AND datname = current_database()",
    );
}

/// Somebody who has locked a table.
fn locked(db: &Db, table: &str) -> Child {
    let Db::Postgres(name) = db else { unreachable!() };
    let url = format!("{}?application_name=lock", Postgres::shared().url(name));
    let script = format!("BEGIN; LOCK TABLE {table}; SELECT pg_sleep(600)");
    let mut command = Command::new(binary("psql"));
    command.args(["-XqAt", "-d", &url, "-c", &script]).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND \
                relation = 't'::regclass";
    eventually("it is locked", || db.sql(held) == "1");
    child
}

#[test]
fn a_table_of_ours_gets_its_indexes_and_they_are_used() {
    let [_, db] = Db::both();
    let running_place = place(&db, "logs", FLOW);
    let running = running_place.start();
    ready(&running);
    let indexes = "SELECT indexdef FROM pg_indexes WHERE tablename = 'logs' ORDER BY 1";
    eventually("they are made", || db.sql(indexes).lines().count() == 3);
    let found = db.sql(indexes);
    assert!(found.contains("USING gin (data jsonb_path_ops)"), "{found}");
    assert!(found.contains("USING btree (inserted_at DESC, event_id DESC)"), "{found}");
    db.sql(
        "INSERT INTO logs SELECT gen_random_uuid(), jsonb_build_object('n', n, 'level',
             CASE WHEN n % 10000 = 0 THEN 'error' ELSE 'info' END), now() - n * interval '1 s'
         FROM generate_series(1, 50000) n",
    );
    db.sql("VACUUM ANALYZE logs");
    drop(running);
    let running = running_place.start();
    ready(&running);
    assert_eq!(rows(&running_place, "/logs?level=error").len(), 5);
    let first = ask(&running_place, "/logs").json();
    let after = first["next"].as_str().unwrap().to_owned();
    assert_eq!(rows(&running_place, &format!("/logs?after={after}")).len(), 100);
    let scans = "SELECT string_agg(substring(indexrelname from '_(members|newest)_'), ' '
                     ORDER BY indexrelname) FROM pg_stat_user_indexes WHERE idx_scan > 0 AND
                     indexrelname ~ '_(members|newest)_'";
    eventually("both are used", || db.sql(scans) == "members newest");
    let plan = db.sql(
        "EXPLAIN SELECT * FROM logs WHERE data @> '{\"level\":\"error\"}' OR
             data @> '{\"level\":5}' ORDER BY inserted_at DESC, event_id DESC LIMIT 101",
    );
    assert!(plan.contains("logs_members_"), "{plan}");
    let plan = db.sql(
        "EXPLAIN SELECT * FROM logs WHERE (inserted_at, event_id) < (now(), gen_random_uuid())
             ORDER BY inserted_at DESC, event_id DESC LIMIT 101",
    );
    assert!(plan.contains("Index Scan using logs_newest_"), "{plan}");
    drop(running);

    db.sql("CREATE TABLE theirs (event_id uuid PRIMARY KEY, data jsonb, inserted_at timestamptz)");
    let place = place(&db, "theirs", FLOW);
    let running = place.start();
    ready(&running);
    assert_eq!(rows(&place, "/logs?level=error").len(), 0);
    let theirs = "SELECT count(*) FROM pg_indexes WHERE tablename = 'theirs'";
    assert_eq!(db.sql(theirs), "1", "a table that is not ours is left alone");
}

#[test]
fn a_query_that_cannot_work_is_a_fault_and_one_that_can_is_shown() {
    let db = Db::sqlite();
    let place = place(&db, "t", "order = \"id\"\ncache = { url = \"redis://h\", ttl = \"5s\" }\n");
    let done = place.done(&["check", "topology.toml"]);
    assert!(done.status.success(), "{}", done.stderr);
    assert_eq!(done.stdout, "GET /logs: rows of db, newest first by id, kept for 5s\n");
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
    let graph = place.done(&["graph", "topology.toml", "--format", "dot"]).stdout;
    assert!(graph.contains("style=dashed"), "{graph}");
    let text = QUERY.replace("SINK", "kind = \"file\"\npath = \"out.log\"");
    place.write_topology(&text);
    let done = place.done(&["check", "topology.toml"]);
    assert_eq!(done.status.code(), Some(2));
    let fault = "topology.toml:11:8: `sink = \"db\"` is a `file`, which cannot be read back";
    assert!(done.stderr.contains(fault), "{}", done.stderr);
}
