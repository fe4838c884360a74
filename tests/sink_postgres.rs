//! What the `postgres` sink makes of tables: its own, existing ones, and such as will not do; and
//! what it does when the server is slow, gone, or of another opinion.

#[path = "support/sinks.rs"]
mod sinks;

use std::path::Path;
use std::time::{Duration, Instant};

use aqueduct::event::Delivery;
use aqueduct::sink::{KINDS, Sink};
use aqueduct::spec::{Value, Values};
use sinks::servers::{Postgres, free_port, signal};
use sinks::*;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The rows of a query, each as its one text.
async fn rows(directory: &Path, query: &str) -> Vec<String> {
    let mut database = pg_connect(directory).await;
    let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
    query.fetch_all(&mut database).await.unwrap()
}

async fn count(directory: &Path) -> String {
    rows(directory, "SELECT count(*)::text FROM t").await.remove(0)
}

/// Why the sink does not open.
async fn fault(directory: &Path, more: &[(&'static str, Value)]) -> String {
    match open("postgres", postgres(directory, more)).await {
        Ok(_) => panic!("it opened"),
        Err(error) => {
            let address = pg_url(directory).rsplit_once('@').unwrap().1.to_owned();
            format!("{error:#}").replace(&address, "PLACE")
        }
    }
}

fn text(text: &str) -> Value {
    Value::Str(text.into())
}

fn columns(columns: &[(&str, &str, &str)]) -> (&'static str, Value) {
    ("columns", columns_of(columns))
}

/// Events 0, 1, 2, … with these bodies.
fn batch(bodies: &[&str]) -> Vec<Delivery> {
    let bodies = bodies.iter().enumerate();
    bodies.map(|(n, body)| counted("batch", n as u64, body.to_string())).collect()
}

#[tokio::test]
async fn without_columns_a_body_is_jsonb() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open("postgres", postgres(directory.path(), &[])).await.unwrap();
    let mut batch = batch(&["{ \"n\": 1.50 }", "say \"hi\"\nand go", "", r#"{"a":"x\u0000"}"#]);
    batch.push(counted("batch", 4, b"\xff".as_slice()));
    let refusals = store(&mut sink, &batch).await.unwrap();
    let told: Vec<_> = refusals.iter().map(|it| (it.index, it.reason.as_str())).collect();
    let expected = [
        (
            3,
            "table `t` refuses the row: unsupported Unicode escape sequence (\\u0000 cannot be \
             converted to text)",
        ),
        (
            4,
            "column `data` is jsonb, and the body is not UTF-8 (a column of type bytea takes any \
             bytes)",
        ),
    ];
    assert_eq!(told, expected);
    let found = rows(directory.path(), "SELECT data::text FROM t ORDER BY event_id").await;
    assert_eq!(found, [r#"{"n": 1.50}"#, r#""say \"hi\"\nand go""#, r#""""#]);
    let ids = rows(directory.path(), "SELECT event_id::text FROM t ORDER BY event_id").await;
    let expected: Vec<_> = batch[..3].iter().map(|it| it.event.id.to_string()).collect();
    assert_eq!(ids, expected);
    let recent = "SELECT count(*)::text FROM t WHERE inserted_at > now() - interval '1 minute'";
    assert_eq!(rows(directory.path(), recent).await, ["3"]);
}

/// Each type, with what is stored of each JSON value, `!` for a refusal; both in binary and beside
/// a column that makes the whole table travel as text.
#[tokio::test]
async fn columns_take_their_types() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("smallint", &[("-32768", "-32768"), ("\"32767\"", "32767"), ("32768", "!")]),
        ("int", &[("2147483647", "2147483647"), ("-2147483649", "!"), ("1.5", "!"), ("7.0", "7")]),
        (
            "bigint",
            &[
                ("9223372036854775807", "9223372036854775807"),
                ("\"-9223372036854775808\"", "-9223372036854775808"),
                ("9223372036854775808", "!"),
            ],
        ),
        ("real", &[("0.1", "0.1"), ("3.4e38", "3.4e+38"), ("1e39", "!")]),
        ("float8", &[("0.1", "0.1"), ("1e308", "1e+308"), ("5e-324", "5e-324"), ("1e309", "!")]),
        (
            "numeric",
            &[
                ("12345678901234567890.0123456789", "12345678901234567890.0123456789"),
                ("-0.00001", "-0.00001"),
                ("\"1e10\"", "10000000000"),
                ("10000", "10000"),
                ("0", "0"),
                ("\"x\"", "!"),
            ],
        ),
        ("numeric(6,2)", &[("1234.567", "1234.57"), ("12345", "!")]),
        ("text", &[(r#""a\té\\N""#, "a\té\\N"), ("[1, 2]", "[1, 2]"), (r#""x\u0000""#, "!")]),
        ("varchar(3)", &[("\"abc\"", "abc"), ("\"abcd\"", "!"), ("\"\"", "")]),
        ("char(3)", &[("\"a\"", "a  ")]),
        ("bool", &[("true", "true"), ("\"no\"", "false"), ("1", "true"), ("2", "!")]),
        (
            "timestamptz",
            &[
                ("\"2023-11-14T23:13:20.123456+01:00\"", "2023-11-14 22:13:20.123456+00"),
                ("1700000000", "2023-11-14 22:13:20+00"),
                ("1700000000123", "2023-11-14 22:13:20.123+00"),
                ("\"0001-01-01T00:00:00Z\"", "0001-01-01 00:00:00+00"),
                ("\"yesterday\"", "!"),
            ],
        ),
        ("timestamp(0)", &[("\"2023-11-14T23:13:20.6+01:00\"", "2023-11-14 22:13:21")]),
        (
            "date",
            &[
                ("\"2024-02-29\"", "2024-02-29"),
                ("\"1969-12-31T23:59:59Z\"", "1969-12-31"),
                ("1700000000", "2023-11-14"),
                ("\"2023-02-29\"", "!"),
            ],
        ),
        (
            "time",
            &[("\"23:59:59.5\"", "23:59:59.5"), ("\"07:30\"", "07:30:00"), ("\"25:00\"", "!")],
        ),
        (
            "uuid",
            &[
                ("\"00112233445566778899AABBCCDDEEFF\"", "00112233-4455-6677-8899-aabbccddeeff"),
                ("7", "!"),
            ],
        ),
        ("json", &[("{\"a\" : 1}", "{\"a\" : 1}"), ("\"x\"", "\"x\"")]),
        ("jsonb", &[("{\"a\" : 1}", "{\"a\": 1}"), (r#""\ud800""#, "!")]),
        ("bytea", &[("\"a\\\\\"", "\\x615c"), ("\"\"", "\\x")]),
        ("mood", &[("\"sad\"", "sad"), ("\"angry\"", "!")]),
        ("positive", &[("3", "3"), ("-3", "!"), ("\"4\"", "4")]),
        (
            "int[]",
            &[
                ("[1,null,\"3\"]", "{1,NULL,3}"),
                ("[]", "{}"),
                ("[[1,2],[3,4]]", "{{1,2},{3,4}}"),
                ("\"[5]\"", "{5}"),
                ("[[1],[2,3]]", "!"),
                ("[1,[2]]", "!"),
                ("[\"x\"]", "!"),
                ("7", "!"),
            ],
        ),
        (
            "text[]",
            &[(r#"["a,b","\"\\",""]"#, r#"{"a,b","\"\\",""}"#), ("[\"NULL\"]", "{\"NULL\"}")],
        ),
        ("timestamptz[]", &[("[0]", "{\"1970-01-01 00:00:00+00\"}")]),
        ("jsonb[]", &[("[{\"a\":1},[2]]", r#"{"{\"a\": 1}",[2]}"#)]),
        ("mood[]", &[("[\"sad\",\"ok\"]", "{sad,ok}")]),
        ("numeric[]", &[("[1.50]", "{1.50}")]),
        ("inet", &[("\"10.0.0.1\"", "10.0.0.1/32"), ("\"x\"", "!")]),
        ("inet[]", &[("[\"10.0.0.1\",null]", "{10.0.0.1,NULL}")]),
        ("interval", &[("\"1 day 02:00\"", "1 day 02:00:00")]),
    ];
    for also in ["boolean", "point"] {
        let directory = tempfile::tempdir().unwrap();
        pg_sql(
            directory.path(),
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (value > 0)",
        )
        .await;
        for (ty, values) in cases {
            let create = format!(
                "DROP TABLE IF EXISTS t; CREATE TABLE t (id uuid PRIMARY KEY, v {ty}, o {also})"
            );
            pg_sql(directory.path(), &create).await;
            let more = [columns(&[("id", "@id", ""), ("v", "v", ""), ("o", "o", "")])];
            let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
            let mut bodies: Vec<_> =
                values.iter().map(|(value, _)| format!("{{\"v\":{value}}}")).collect();
            bodies.extend(["{}".into(), "{\"v\":null}".into()]);
            let batch = batch(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
            let refusals = store(&mut sink, &batch).await.unwrap();
            let refused: Vec<_> = refusals.iter().map(|it| it.index).collect();
            let bad = values.iter().enumerate().filter(|(_, (_, stored))| *stored == "!");
            let bad: Vec<_> = bad.map(|(at, _)| at).collect();
            assert_eq!(refused, bad, "{ty} beside {also}: {refusals:?}");
            let query = "SELECT coalesce(v::text, 'NULL') FROM t ORDER BY id";
            let good = values.iter().map(|(_, stored)| *stored).filter(|stored| *stored != "!");
            let expected: Vec<_> = good.chain(["NULL", "NULL"]).map(String::from).collect();
            // A cast to text drops what pads a `char`.
            let found = rows(directory.path(), query).await;
            let trimmed = |list: Vec<String>| -> Vec<String> {
                list.into_iter().map(|it| it.trim_end().to_owned()).collect()
            };
            assert_eq!(trimmed(found), trimmed(expected), "{ty} beside {also}");
        }
    }
}

#[tokio::test]
async fn what_the_event_is_fits_into_columns_of_any_sensible_type() {
    let directory = tempfile::tempdir().unwrap();
    pg_sql(
        directory.path(),
        "CREATE TABLE t (id char(36) UNIQUE, b bytea, at text, d date, s varchar, \"quo\"\"te\" text)",
    )
    .await;
    let more = [columns(&[
        ("id", "@id", ""),
        ("b", "@body", ""),
        ("at", "@time", ""),
        ("d", "@time", ""),
        ("s", "@source", ""),
        ("quo\"te", "@stream", ""),
    ])];
    let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
    let batch = [counted("a", 0, b"\xff\x00".as_slice())];
    for _ in 0..2 {
        assert_eq!(store(&mut sink, &batch).await.unwrap(), []);
    }
    let query = r#"SELECT concat_ws(' ', id, b, at, d, s, "quo""te") FROM t"#;
    let id = batch[0].event.id;
    let expected = format!(r"{id} \xff00 2023-11-14T22:13:20.000000Z 2023-11-14 input lines");
    assert_eq!(rows(directory.path(), query).await, [expected]);
}

#[tokio::test]
async fn defaults_stay_the_tables() {
    let directory = tempfile::tempdir().unwrap();
    pg_sql(
        directory.path(),
        "CREATE TABLE t (id serial PRIMARY KEY, event_id uuid UNIQUE, n int NOT NULL DEFAULT 7,
                         s text DEFAULT 'unset', at timestamptz NOT NULL DEFAULT now(),
                         twice int GENERATED ALWAYS AS (n * 2) STORED)",
    )
    .await;
    let more = [columns(&[("n", "n", ""), ("s", "s", ""), ("at", "at", "")])];
    let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
    let bodies = [r#"{"n":1,"at":0}"#, r#"{"s":"x"}"#, r#"{"n":null,"at":0}"#, r#"{"n":"bad"}"#];
    let refusals = store(&mut sink, &batch(&bodies)).await.unwrap();
    assert_eq!(refusals.iter().map(|it| it.index).collect::<Vec<_>>(), [3]);
    let query = "SELECT concat_ws(' ', n, coalesce(s, 'NULL'), at > '2020-01-01', twice) FROM t
                 ORDER BY event_id";
    assert_eq!(rows(directory.path(), query).await, ["1 NULL f 2", "7 x t 14", "7 NULL f 14"]);
}

/// The order in which rows arrive is the order of a `serial`, where ids do not give another.
#[tokio::test]
async fn a_table_without_an_id_column_has_its_rows_once_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    pg_sql(
        directory.path(),
        "CREATE SCHEMA \"My\"; CREATE TABLE \"My\".t (
            id serial, number integer, publisher_id text, received_at timestamptz DEFAULT now())",
    )
    .await;
    let more = [
        ("table", text("My.t")),
        columns(&[("number", "number", ""), ("publisher_id", "publisher_id", "")]),
    ];
    let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
    let mut batch: Vec<_> = (0..500)
        .map(|n| counted("a", n, format!(r#"{{"number":{n},"publisher_id":"p"}}"#)))
        .collect();
    batch.reverse();
    batch.extend(batch.clone());
    for piece in [&batch[..10], &batch[5..300], &batch[..], &batch[250..]] {
        assert_eq!(store(&mut sink, piece).await.unwrap(), []);
    }
    let numbers = rows(directory.path(), "SELECT number::text FROM \"My\".t ORDER BY id").await;
    let expected: Vec<_> = (0..500).rev().map(|n| n.to_string()).collect();
    assert_eq!(numbers, expected);
    let seen = "SELECT count(*) || ' ' || min(table_name) FROM \"My\".aqueduct_seen";
    assert_eq!(rows(directory.path(), seen).await, ["500 t"]);
}

#[tokio::test]
async fn seen_ids_are_forgotten_after_their_time() {
    let directory = tempfile::tempdir().unwrap();
    pg_sql(directory.path(), "CREATE TABLE t (data jsonb)").await;
    let seen = |seconds| [("seen", Value::Duration(Duration::from_secs(seconds)))];
    let mut long = open("postgres", postgres(directory.path(), &seen(60))).await.unwrap();
    let batch: Vec<_> = (0..50).map(|n| counted("a", n, "{}")).collect();
    store(&mut long, &batch).await.unwrap();
    store(&mut long, &batch).await.unwrap();
    assert_eq!(count(directory.path()).await, "50");
    let mut brief = open("postgres", postgres(directory.path(), &seen(0))).await.unwrap();
    store(&mut brief, &[counted("a", 50, "{}")]).await.unwrap();
    let left = rows(directory.path(), "SELECT count(*)::text FROM aqueduct_seen").await;
    assert_eq!(left, ["0"]);
    assert_eq!(count(directory.path()).await, "51");
}

#[tokio::test]
async fn a_redelivery_never_overwrites_a_newer_value() {
    let directory = tempfile::tempdir().unwrap();
    let more = [
        columns(&[("k", "k", "text"), ("v", "v", "bigint")]),
        ("mode", text("upsert")),
        ("key", Value::List(vec!["k".into()])),
    ];
    let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
    let event = |n, k: &str, v: &str| counted("a", n, format!(r#"{{"k":"{k}","v":{v}}}"#));
    let old = [event(0, "x", "1"), event(1, "y", "1"), event(2, "x", "2")];
    let new = [event(3, "x", "3")];
    assert_eq!(store(&mut sink, &old).await.unwrap(), []);
    let query = "SELECT k || v || event_id FROM t ORDER BY k";
    let (x, y) = (&old[2].event.id, &old[1].event.id);
    assert_eq!(rows(directory.path(), query).await, [format!("x2{x}"), format!("y1{y}")]);
    store(&mut sink, &new).await.unwrap();
    store(&mut sink, &old).await.unwrap();
    let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
    let later = [event(4, "y", "5"), new[0].clone(), event(5, "y", "4"), event(6, "y", "\"z\"")];
    let refusals = store(&mut sink, &[&old[..], &later].concat()).await.unwrap();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(rows(directory.path(), "SELECT k || v FROM t ORDER BY k").await, ["x3", "y4"]);
}

#[tokio::test]
async fn a_table_that_will_not_do_is_told_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    pg_sql(
        place,
        "CREATE TABLE t (event_id uuid, number int, twice int GENERATED ALWAYS AS (number * 2) STORED);
         CREATE TABLE u (number int, must int NOT NULL); CREATE VIEW v AS SELECT 1;
         CREATE TABLE w (event_id int PRIMARY KEY)",
    )
    .await;
    assert_eq!(
        fault(place, &[columns(&[("nubmer", "number", "")])]).await,
        "table `t` in PLACE has no column `nubmer`, did you mean `number`? (it has `event_id`, \
         `number`, `twice`; change `columns`, or add the column)"
    );
    let number = columns(&[("number", "number", "")]);
    assert_eq!(
        fault(place, std::slice::from_ref(&number)).await,
        "table `t` in PLACE: its id column `event_id` is neither its primary key nor unique, so an \
         event could be stored twice (CREATE UNIQUE INDEX … ON \"t\" (\"event_id\"))"
    );
    pg_sql(place, "CREATE UNIQUE INDEX by_id ON t (event_id) WHERE number > 0").await;
    pg_sql(place, "CREATE UNIQUE INDEX by_both ON t (event_id, number)").await;
    let told = fault(place, std::slice::from_ref(&number)).await;
    assert!(told.contains("neither its primary key nor unique"), "{told}");
    pg_sql(place, "CREATE UNIQUE INDEX whole ON t (event_id)").await;
    open("postgres", postgres(place, std::slice::from_ref(&number))).await.unwrap();
    let table = |name: &str| ("table", text(name));
    let cases = [
        (vec![columns(&[("twice", "number", "")])], "column `twice` is generated and cannot be"),
        (vec![table("u"), number.clone()], "column `must` is NOT NULL without a default, and"),
        (vec![table("v")], "`v` in PLACE is a view (name a table)"),
        (
            vec![table("w"), columns(&[("event_id", "@id", "")])],
            "column `event_id` is integer, which an event's id is not (uuid is",
        ),
        (
            vec![table("x"), ("create", Value::Bool(false))],
            "there is no table `x` in PLACE (set `create = true`, or: CREATE TABLE \"x\" ( \
             \"event_id\" uuid PRIMARY KEY NOT NULL, \"data\" jsonb, \"inserted_at\" timestamptz",
        ),
        (vec![table("none.x")], "schema \"none\" does not exist (create the schema, or name"),
        (
            vec![number, ("mode", text("upsert")), ("key", Value::List(vec!["number".into()]))],
            "`key` (number) is neither its primary key nor unique",
        ),
        (
            vec![table("y"), columns(&[("a", "a", "no_such_type")])],
            "type \"no_such_type\" does not exist",
        ),
    ];
    for (more, expected) in cases {
        let told = fault(place, &more).await;
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test]
async fn a_server_that_will_not_do_is_told_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let port = Postgres::shared().port;
    pg_sql(
        place,
        "CREATE ROLE reader LOGIN PASSWORD 'hunter2'; CREATE TABLE t (event_id uuid PRIMARY KEY, data jsonb)",
    )
    .await;
    let database = pg_url(place).rsplit_once('/').unwrap().1.to_owned();
    let nobody = free_port();
    let cases = [
        (
            format!("postgres://me:hunter2@127.0.0.1:{nobody}/x"),
            format!(
                "PostgreSQL at 127.0.0.1:{nobody}, database `x`, user `me`: Connection refused"
            ),
            "nobody listens there",
        ),
        ("postgres://me@nowhere.invalid/x".into(), "nowhere.invalid:5432".into(), "no such host"),
        (
            format!("postgres://postgres:hunter2@127.0.0.1:{port}/none"),
            "database \"none\" does not exist".into(),
            "create the database, or change `url`",
        ),
        (
            format!("postgres://nobody:hunter2@127.0.0.1:{port}/{database}"),
            "role \"nobody\" does not exist".into(),
            "create the role",
        ),
        (
            format!("postgres://reader:hunter2@127.0.0.1:{port}/{database}"),
            "permission denied for table t".into(),
            "GRANT it to the user",
        ),
        (
            format!("postgres://postgres:hunter2@127.0.0.1:{port}/{database}?sslmode=require"),
            "server does not support TLS".into(),
            "change `sslmode`",
        ),
        (
            format!(
                "postgres://postgres@127.0.0.1:{port}/{database}?options=-c%20default_transaction_read_only%3Don"
            ),
            "cannot execute COPY FROM in a read-only transaction".into(),
            "name the primary",
        ),
    ];
    for (url, what, remedy) in cases {
        let start = Instant::now();
        let told = fault(place, &[("url", text(&url))]).await;
        assert!(told.contains(&what) && told.contains(remedy), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
        assert!(start.elapsed() < Duration::from_secs(8), "{told}");
    }
}

/// Refusals of any kind, found whether the server names a line or not.
#[tokio::test]
async fn a_refusal_of_any_kind_is_the_events_alone() {
    let trigger = |timing: &str, does: &str| {
        format!(
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF new.n = 13 THEN {does}; END IF; RETURN new; END $$;
             CREATE TABLE t (event_id uuid PRIMARY KEY, n int);
             CREATE {timing} ON t {} FOR EACH ROW EXECUTE FUNCTION f()",
            if timing.contains("CONSTRAINT") { "DEFERRABLE INITIALLY DEFERRED" } else { "" }
        )
    };
    let tables = [
        "CREATE TABLE t (event_id uuid PRIMARY KEY, n int NOT NULL CHECK (n <> 13))".into(),
        "CREATE TABLE t (event_id uuid PRIMARY KEY, n int UNIQUE);
         INSERT INTO t VALUES ('00112233-4455-6677-8899-aabbccddeeff', 13)"
            .into(),
        "CREATE TABLE p (n int PRIMARY KEY);
         INSERT INTO p SELECT n FROM generate_series(0, 99) n WHERE n <> 13;
         CREATE TABLE t (event_id uuid PRIMARY KEY, n int REFERENCES p)"
            .into(),
        "CREATE TABLE p (n int PRIMARY KEY);
         INSERT INTO p SELECT n FROM generate_series(0, 99) n WHERE n <> 13;
         CREATE TABLE t (event_id uuid PRIMARY KEY,
                         n int REFERENCES p DEFERRABLE INITIALLY DEFERRED)"
            .into(),
        "CREATE TABLE p (n int PRIMARY KEY);
         INSERT INTO p SELECT n FROM generate_series(0, 99) n WHERE n <> 13;
         CREATE TABLE t (n int REFERENCES p DEFERRABLE INITIALLY DEFERRED)"
            .into(),
        "CREATE TABLE t (n int, EXCLUDE (n WITH =)); INSERT INTO t VALUES (13)".into(),
        trigger("TRIGGER r BEFORE INSERT", "RAISE 'no 13'"),
        trigger("TRIGGER r AFTER INSERT", "RAISE 'no 13' USING ERRCODE = 'MY013'"),
        trigger("CONSTRAINT TRIGGER r AFTER INSERT", "RAISE 'no 13'"),
        trigger("TRIGGER r BEFORE INSERT", "EXECUTE 'INSERT INTO t_' || new.n || ' VALUES (1)'"),
        "CREATE TABLE t (event_id uuid PRIMARY KEY, n int);
         CREATE INDEX i ON t ((100 / (n - 13)))"
            .into(),
        "CREATE TABLE t (n int) PARTITION BY RANGE (n);
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (13);
         CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (14) TO (200)"
            .into(),
    ];
    for table in tables {
        let directory = tempfile::tempdir().unwrap();
        pg_sql(directory.path(), &table).await;
        let more = [columns(&[("n", "n", "")])];
        let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
        let batch: Vec<_> = (0..100).map(|n| counted("a", n, format!("{{\"n\":{n}}}"))).collect();
        for _ in 0..2 {
            let refusals = store(&mut sink, &batch).await.unwrap();
            assert_eq!(refusals.len(), 1, "{table}: {refusals:?}");
            assert_eq!(refusals[0].index, 13, "{table}");
            assert!(refusals[0].reason.starts_with("table `t` refuses the row: "), "{table}");
        }
        let found = rows(
            directory.path(),
            "SELECT string_agg(n::text, ' ' ORDER BY n) FROM t WHERE n <> 13",
        );
        let expected: Vec<_> = (0..100).filter(|n| *n != 13).map(|n| n.to_string()).collect();
        assert_eq!(found.await, [expected.join(" ")], "{table}");
    }
}

/// Where `COPY` is not allowed, rows go another way.
#[tokio::test]
async fn row_level_security_is_obeyed() {
    let directory = tempfile::tempdir().unwrap();
    pg_sql(
        directory.path(),
        "CREATE ROLE guarded LOGIN; CREATE TABLE t (event_id uuid PRIMARY KEY, n int);
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT ALL ON t TO guarded;
         CREATE POLICY p ON t USING (true) WITH CHECK (n <> 13)",
    )
    .await;
    let url = pg_url(directory.path()).replace("postgres@", "guarded@");
    let more = [columns(&[("n", "n", "")]), ("url", text(&url))];
    let mut sink = open("postgres", postgres(directory.path(), &more)).await.unwrap();
    let batch: Vec<_> = (0..100).map(|n| counted("a", n, format!("{{\"n\":{n}}}"))).collect();
    for _ in 0..2 {
        let refusals = store(&mut sink, &batch).await.unwrap();
        assert_eq!(refusals.iter().map(|it| it.index).collect::<Vec<_>>(), [13]);
        assert!(refusals[0].reason.contains("violates row-level security"), "{refusals:?}");
    }
    assert_eq!(count(directory.path()).await, "99");
}

#[tokio::test]
async fn what_is_no_events_fault_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    pg_sql(directory.path(), "CREATE TABLE t (event_id uuid PRIMARY KEY, data jsonb)").await;
    let url = format!("{}?options=-c%20lock_timeout%3D300ms", pg_url(directory.path()));
    let mut sink =
        open("postgres", postgres(directory.path(), &[("url", text(&url))])).await.unwrap();
    let batch = batch(&["{}"]);
    let mut other = pg_connect(directory.path()).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE t").execute(&mut other).await.unwrap();
    let error = store(&mut sink, &batch).await.unwrap_err().to_string();
    assert!(error.contains("lock timeout"), "{error}");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(store(&mut sink, &batch).await.unwrap(), []);
    pg_sql(directory.path(), "ALTER TABLE t RENAME data TO date").await;
    let error = store(&mut sink, &[counted("a", 1, "{}")]).await.unwrap_err().to_string();
    assert!(error.contains("column \"data\" of relation \"t\" does not exist"), "{error}");
    pg_sql(directory.path(), "DROP TABLE t").await;
    let error = store(&mut sink, &[counted("a", 1, "{}")]).await.unwrap_err().to_string();
    assert!(error.contains("relation \"public.t\" does not exist"), "{error}");
}

/// Whoever stops waiting for a batch leaves no connection in the middle of it.
#[tokio::test]
async fn a_batch_that_nobody_waited_for_leaves_a_sink_that_works() {
    let mut random = seeded("a_batch_that_nobody_waited_for_leaves_a_sink_that_works");
    for before in ["", "CREATE TABLE t (data jsonb)"] {
        let directory = tempfile::tempdir().unwrap();
        pg_sql(directory.path(), before).await;
        let mut sink = open("postgres", postgres(directory.path(), &[])).await.unwrap();
        let events = events(2_000);
        for batch in events.chunks(50) {
            let limit = Duration::from_micros(random.u64(..8_000));
            let _ = tokio::time::timeout(limit, store(&mut sink, batch)).await;
        }
        assert_eq!(store(&mut sink, &events).await.unwrap(), []);
        assert_eq!(count(directory.path()).await, "2000");
    }
}

/// Several writers, each with all events, in different batches and orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_the_same_events_store_each_once() {
    let mut random = seeded("writers_of_the_same_events_store_each_once");
    let tables = [
        "",
        "CREATE TABLE t (n int, body text)",
        "CREATE TABLE t (event_id uuid PRIMARY KEY, n int UNIQUE, body text)",
    ];
    for table in tables {
        let directory = tempfile::tempdir().unwrap();
        pg_sql(directory.path(), table).await;
        let events = events(6_000);
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let mut mine = events.clone();
                let size = random.usize(100..900);
                if random.bool() {
                    random.shuffle(&mut mine);
                }
                let path = directory.path().to_owned();
                tokio::spawn(async move {
                    let more = [columns(&[("n", "n", "int"), ("body", "@body", "")])];
                    let mut sink = open("postgres", postgres(&path, &more)).await.unwrap();
                    for batch in mine.chunks(size) {
                        assert_eq!(store(&mut sink, batch).await.unwrap(), []);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let mut database = pg_connect(directory.path()).await;
        let stored = sqlx::query_scalar("SELECT convert_to(body, 'UTF8') FROM t");
        assert_each_once(table, stored.fetch_all(&mut database).await.unwrap(), &events);
    }
}

async fn open_when_up(values: &Values) -> Box<dyn Sink> {
    let start = Instant::now();
    loop {
        match open("postgres", values.clone()).await {
            Ok(sink) => return sink,
            Err(error) if start.elapsed() > Duration::from_secs(30) => panic!("{error:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The server is killed while batches are on their way, over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_and_doubles_nothing() {
    let mut random = seeded("a_killed_server_loses_and_doubles_nothing");
    let mut server = Postgres::start();
    for table in ["", "CREATE TABLE t (n int, body text)"] {
        let directory = tempfile::tempdir().unwrap();
        let url = server.database();
        std::fs::write(directory.path().join("out.url"), &url).unwrap();
        pg_sql(directory.path(), table).await;
        let events = events(40_000);
        let more = [columns(&[("n", "n", "int"), ("body", "@body", "")])];
        let values = postgres(directory.path(), &more);
        let writer = {
            let (values, events) = (values.clone(), events.clone());
            let seed = random.u64(..);
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                let mut sink = open_when_up(&values).await;
                let (mut at, mut failures) = (0, 0);
                while at < events.len() {
                    let end = (at + random.usize(1..400)).min(events.len());
                    match store(&mut sink, &events[at..end]).await {
                        Ok(refusals) => {
                            assert_eq!(refusals, []);
                            at = end;
                        }
                        Err(_) => {
                            failures += 1;
                            sink = open_when_up(&values).await;
                        }
                    }
                    // Now and then a bit comes again.
                    if random.u8(..8) == 0 {
                        at = at.saturating_sub(random.usize(..500));
                    }
                }
                failures
            })
        };
        let mut kills = 0;
        while !writer.is_finished() && kills < 12 {
            tokio::time::sleep(Duration::from_millis(random.u64(10..250))).await;
            tokio::task::block_in_place(|| {
                server.kill();
                server.up();
            });
            kills += 1;
        }
        let failures = writer.await.unwrap();
        assert!(failures > 0, "no batch met one of {kills} kills");
        let mut database = PgConnection::connect(&url).await.unwrap();
        let stored = sqlx::query_scalar("SELECT convert_to(body, 'UTF8') FROM t");
        assert_each_once(table, stored.fetch_all(&mut database).await.unwrap(), &events);
    }
}

/// A server that neither answers nor goes away.
#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    let server = Postgres::start();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("out.url"), server.database()).unwrap();
    let mut sink = open("postgres", postgres(directory.path(), &[])).await.unwrap();
    let mut database = pg_connect(directory.path()).await;
    let ours = "SELECT pid FROM pg_stat_activity WHERE application_name = 'aqueduct/out'";
    let pid: i32 = sqlx::query_scalar(ours).fetch_one(&mut database).await.unwrap();
    for stopped in [server.pid(), pid as u32] {
        signal(stopped, "STOP");
    }
    let start = Instant::now();
    let error = store(&mut sink, &batch(&["{}"])).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 2 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    for stopped in [server.pid(), pid as u32] {
        signal(stopped, "CONT");
    }
    let mut sink = open_when_up(&postgres(directory.path(), &[])).await;
    assert_eq!(store(&mut sink, &batch(&["{}"])).await.unwrap(), []);
    assert_eq!(count(directory.path()).await, "1");
}

#[test]
fn keys_that_do_not_go_together_are_told() {
    let kind = KINDS.iter().find(|kind| kind.name == "postgres").unwrap();
    let told = |pairs: &[(&'static str, Value)]| -> Vec<String> {
        let mut all = values(&[("url", text("postgres://h/d")), ("table", text("t"))]);
        pairs.iter().for_each(|(name, value)| all.set(name, value.clone()));
        let complaints = (kind.check)(&all);
        complaints.into_iter().map(|it| format!("{}: {}", it.key, it.message)).collect()
    };
    assert_eq!(told(&[columns(&[("k", "k", "date[]"), ("K", "k", "my.type")])]), [""; 0]);
    let cases: &[(&[(&'static str, Value)], &str)] = &[
        (&[("table", text("a.b.c"))], "table: `a.b.c` is no table (`table`, `schema.table`"),
        (
            &[("table", text("a.aqueduct_seen"))],
            "table: `aqueduct_seen` is a table of aqueduct's own",
        ),
        (&[("url", text("postgres://me:hunter2@h:x/d"))], "url: `url` does not read: "),
        (&[columns(&[("k", "k", "bigin[]")])], "columns: column `k`: unknown type `bigin[]`"),
        (&[columns(&[("k", "k", ""), ("k", "j", "")])], "columns: column `k` is named twice"),
        (&[("mode", text("upsert"))], "mode: `mode = \"upsert\"` needs `key`"),
    ];
    for (pairs, expected) in cases {
        let told = told(pairs);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{told:?}");
        assert!(!told[0].contains("hunter2"), "{told:?}");
    }
}

#[test]
fn a_table_is_known_by_server_database_and_name() {
    let kind = KINDS.iter().find(|kind| kind.name == "postgres").unwrap();
    let of = |url: &str, table: &str| values(&[("url", text(url)), ("table", text(table))]);
    let one = of("postgres://me:hunter2@Host/db", "t");
    let claim = (kind.claims)(&one).unwrap();
    assert_eq!(claim, "table \"t\" in host:5432/db");
    assert_eq!((kind.place)(&one), claim);
    let other = of("postgresql://you@host:5432/db?sslmode=disable", "public.t");
    assert_eq!((kind.claims)(&other).unwrap(), claim);
    for (url, table) in [
        ("postgres://host/db", "T"),
        ("postgres://host/db2", "t"),
        ("postgres://host:5433/db", "t"),
        ("postgres://host/db", "x.t"),
    ] {
        assert_ne!((kind.claims)(&of(url, table)).unwrap(), claim);
    }
    let look = (kind.look)(&one).unwrap();
    assert!(look.starts_with("psql -h Host -p 5432 -U me -d db -c 'SELECT * FROM \"t\""), "{look}");
    assert!(!look.contains("hunter2"));
    assert_eq!((kind.writers)(&values(&[("connections", Value::Int(3))])), 3);
}

/// Not a test: how fast rows go in, beside `\copy` of the same rows in the same minutes. To be run
/// with `--release`.
#[tokio::test]
#[ignore = "a measurement"]
async fn measured() {
    const ROWS: usize = 1_000_000;
    const BATCH: usize = 4_000;
    let server = Postgres::shared();
    let events: Vec<_> = (0..ROWS)
        .map(|n| {
            counted(
                "measured",
                n as u64,
                format!("line {n:>10} of the file that everybody reads again, {n:08}"),
            )
        })
        .collect();
    let table =
        "CREATE TABLE t (event_id uuid PRIMARY KEY, line text, source text, at timestamptz)";
    let plain = "CREATE TABLE t (line text, source text, at timestamptz)";
    for round in 0..3 {
        let csv = tempfile::NamedTempFile::new().unwrap();
        {
            use std::io::Write as _;
            let mut out = std::io::BufWriter::new(&csv);
            for it in &events {
                let body = std::str::from_utf8(&it.event.body).unwrap();
                let id = it.event.id;
                writeln!(out, "{id}\t{body}\tinput\t2023-11-14T22:13:20.000000Z").unwrap();
            }
        }
        let name = server.database().rsplit_once('/').unwrap().1.to_owned();
        server.psql(&name, table);
        let start = Instant::now();
        server.psql(&name, &format!("\\copy t FROM '{}'", csv.path().display()));
        let floor = ROWS as f64 / start.elapsed().as_secs_f64();
        println!("{round}: \\copy                  {floor:>9.0} rows/s");
        for (what, table, writers) in
            [("1 writer", table, 1), ("2 writers", table, 2), ("without ids", plain, 1)]
        {
            let directory = tempfile::tempdir().unwrap();
            pg_sql(directory.path(), table).await;
            let more =
                [columns(&[("line", "@body", ""), ("source", "@source", ""), ("at", "@time", "")])];
            let mut sinks = Vec::new();
            for _ in 0..writers {
                sinks.push(open("postgres", postgres(directory.path(), &more)).await.unwrap());
            }
            let next = std::sync::atomic::AtomicUsize::new(0);
            let start = Instant::now();
            let work = sinks.iter_mut().map(|sink| async {
                loop {
                    let at = next.fetch_add(BATCH, std::sync::atomic::Ordering::Relaxed);
                    let Some(batch) = events.get(at..at + BATCH) else { return };
                    assert_eq!(store(sink, batch).await.unwrap(), []);
                }
            });
            futures_util::future::join_all(work).await;
            let rate = ROWS as f64 / start.elapsed().as_secs_f64();
            println!("{round}: {what:<22} {rate:>9.0} rows/s, {:.2} of \\copy", rate / floor);
            let again = Instant::now();
            for batch in events[..ROWS / 10].chunks(BATCH) {
                assert_eq!(store(&mut sinks[0], batch).await.unwrap(), []);
            }
            let rate = ROWS as f64 / 10.0 / again.elapsed().as_secs_f64();
            println!("{round}: {:<22} {rate:>9.0} rows/s", format!("{what}, again"));
            let small = Instant::now();
            for n in 0..50 {
                let one = [counted("small", n, "one")];
                assert_eq!(store(&mut sinks[0], &one).await.unwrap(), []);
            }
            println!("{round}: {:<22} {:?} each", "one event", small.elapsed() / 50);
        }
    }
}
