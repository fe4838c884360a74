//! What the `sqlite` sink makes of tables: its own, existing ones, and such as will not do.

#[path = "support/sinks.rs"]
mod sinks;

use std::path::Path;
use std::time::Duration;

use aqueduct::sink::KINDS;
use aqueduct::spec::{Value, Values};
use sinks::*;
use sqlx::{AssertSqlSafe, Connection};

/// The rows of a query, each as its values in text.
async fn rows(directory: &Path, query: &str) -> Vec<String> {
    let mut database = connect(&directory.join("out.db")).await;
    let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
    query.fetch_all(&mut database).await.unwrap()
}

/// Why the sink does not open.
async fn fault(directory: &Path, more: &[(&'static str, Value)]) -> String {
    match open("sqlite", sqlite(directory, more)).await {
        Ok(_) => panic!("it opened"),
        Err(error) => format!("{error:#}").replace(directory.to_str().unwrap(), "DIR"),
    }
}

#[tokio::test]
async fn without_columns_nothing_of_a_body_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open("sqlite", sqlite(directory.path(), &[])).await.unwrap();
    let batch = [
        counted("a", 0, "{ \"n\": 1.50 }"),
        counted("a", 1, "say \"hi\"\nand go"),
        counted("a", 2, b"\xff\x00".as_slice()),
        counted("a", 3, ""),
    ];
    assert_eq!(store(&mut sink, &batch).await.unwrap(), []);
    let query =
        "SELECT typeof(data) || ' ' || hex(data) || ' ' || json_valid(data) FROM t ORDER BY rowid";
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02X}")).collect::<String>();
    let expected = [
        format!("text {} 1", hex("{ \"n\": 1.50 }")),
        format!("text {} 1", hex(r#""say \"hi\"\nand go""#)),
        "blob FF00 0".into(),
        format!("text {} 1", hex("\"\"")),
    ];
    assert_eq!(rows(directory.path(), query).await, expected);
    let ids = rows(directory.path(), "SELECT event_id FROM t ORDER BY event_id").await;
    let expected: Vec<_> = batch.iter().map(|delivery| delivery.event.id.to_string()).collect();
    assert_eq!(ids, expected);
    let recent = "SELECT count(*) || '' FROM t WHERE inserted_at BETWEEN
                  strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-60 seconds') AND '2999'";
    assert_eq!(rows(directory.path(), recent).await, ["4"]);
}

#[tokio::test]
async fn columns_take_their_types() {
    let directory = tempfile::tempdir().unwrap();
    let columns = columns_of(&[
        ("number", "number", "bigint"),
        ("price", "a.price", "double precision"),
        ("ok", "ok", "boolean"),
        ("at", "at", "timestamptz"),
        ("raw", "a", "json"),
        ("any", "any", ""),
        ("select", "@source", ""),
        ("quo\"te", "@stream", "text"),
    ]);
    let mut sink = open("sqlite", sqlite(directory.path(), &[("columns", columns)])).await.unwrap();
    let body = r#"{"number":"42","a":{"price":1.5},"ok":true,"at":1700000000,"any":7}"#;
    let batch =
        [counted("a", 0, body), counted("a", 1, "{}"), counted("a", 2, r#"{"number":1.5}"#)];
    let refusals = store(&mut sink, &batch).await.unwrap();
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0].index, 2);
    assert_eq!(refusals[0].reason, "column `number` is bigint: 1.5 does not read as one");
    let query =
        r#"SELECT json_array(number, price, ok, at, raw, "any", "select", "quo""te") FROM t"#;
    let expected = [
        r#"[42,1.5,1,"2023-11-14T22:13:20.000000Z","{\"price\":1.5}",7,"input","lines"]"#,
        r#"[null,null,null,null,null,null,"input","lines"]"#,
    ];
    assert_eq!(rows(directory.path(), query).await, expected);
}

#[tokio::test]
async fn a_redelivery_never_overwrites_a_newer_value() {
    let directory = tempfile::tempdir().unwrap();
    let more = [
        ("columns", columns_of(&[("k", "k", "text"), ("v", "v", "bigint")])),
        ("mode", Value::Str("upsert".into())),
        ("key", Value::List(vec!["k".into()])),
    ];
    let mut sink = open("sqlite", sqlite(directory.path(), &more)).await.unwrap();
    let event = |n, k: &str, v: i64| counted("a", n, format!(r#"{{"k":"{k}","v":{v}}}"#));
    let old = [event(0, "x", 1), event(1, "y", 1), event(2, "x", 2)];
    let new = [event(3, "x", 3)];
    store(&mut sink, &old).await.unwrap();
    let query = "SELECT k || v || event_id FROM t ORDER BY k";
    let (x, y) = (&old[2].event.id, &old[1].event.id);
    assert_eq!(rows(directory.path(), query).await, [format!("x2{x}"), format!("y1{y}")]);
    store(&mut sink, &new).await.unwrap();
    store(&mut sink, &old).await.unwrap();
    let mut sink = open("sqlite", sqlite(directory.path(), &more)).await.unwrap();
    store(&mut sink, &[old, [event(4, "y", 5), new[0].clone(), event(5, "y", 4)]].concat())
        .await
        .unwrap();
    let query = "SELECT k || v FROM t ORDER BY k";
    assert_eq!(rows(directory.path(), query).await, ["x3", "y4"]);
}

#[tokio::test]
async fn a_table_that_will_not_do_is_told_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let columns = [("columns", columns_of(&[("nubmer", "number", "")]))];
    sql(&place.join("out.db"), "CREATE TABLE t (event_id TEXT, number INT, twice AS (number * 2))")
        .await;
    assert_eq!(
        fault(place, &columns).await,
        "table `t` in DIR/out.db has no column `nubmer`, did you mean `number`? (it has \
         `event_id`, `number`, `twice`; change `columns`, or add the column)"
    );
    let columns = [("columns", columns_of(&[("number", "number", "")]))];
    assert_eq!(
        fault(place, &columns).await,
        "table `t` in DIR/out.db: its id column `event_id` is neither its primary key nor unique, \
         so an event could be stored twice (CREATE UNIQUE INDEX … ON \"t\" (\"event_id\"))"
    );
    sql(&place.join("out.db"), "CREATE UNIQUE INDEX by_id ON t (event_id) WHERE number > 0").await;
    assert!(fault(place, &columns).await.contains("neither its primary key nor unique"));
    let generated = [("columns", columns_of(&[("twice", "number", "")]))];
    assert!(fault(place, &generated).await.contains("column `twice` is generated"));
    sql(&place.join("out.db"), "CREATE UNIQUE INDEX whole ON t (event_id)").await;
    open("sqlite", sqlite(place, &columns)).await.unwrap();
    sql(&place.join("out.db"), "ALTER TABLE t ADD COLUMN must NOT NULL DEFAULT 1").await;
    open("sqlite", sqlite(place, &columns)).await.unwrap();
    let table = |name: &str| ("table", Value::Str(name.into()));
    sql(&place.join("out.db"), "CREATE TABLE u (number, must NOT NULL); CREATE VIEW v AS SELECT 1")
        .await;
    let more = [table("u"), columns[0].clone()];
    assert!(fault(place, &more).await.contains("column `must` is NOT NULL without a default"));
    assert!(fault(place, &[table("v")]).await.contains("is a view (name a table)"));
    assert_eq!(
        fault(place, &[table("w"), ("create", Value::Bool(false))]).await,
        "there is no table `w` in DIR/out.db (create it, or set `create = true`)"
    );
    let upsert = [
        columns[0].clone(),
        ("mode", Value::Str("upsert".into())),
        ("key", Value::List(vec!["number".into()])),
    ];
    assert!(fault(place, &upsert).await.contains("`key` (number) is neither its primary key"));
    // A file of its own: those opened above may still be closing.
    let text = place.join("text.db");
    std::fs::write(&text, "This is a text, and not a short one. ".repeat(40)).unwrap();
    let text = [("path", Value::Str(text.display().to_string()))];
    assert!(fault(place, &text).await.contains("it is no SQLite database: change `path`"));
}

/// Refusals that undo more than their own statement, or show only when the batch is committed.
#[tokio::test]
async fn a_refusal_of_any_kind_is_the_events_alone() {
    let tables = [
        "CREATE TABLE t (event_id TEXT PRIMARY KEY, n INT NOT NULL ON CONFLICT ROLLBACK CHECK (n <> 13))",
        "CREATE TABLE t (event_id TEXT PRIMARY KEY, n INT);
         CREATE TRIGGER r BEFORE INSERT ON t WHEN new.n = 13 BEGIN SELECT RAISE(ROLLBACK, 'no 13'); END",
        "CREATE TABLE t (event_id TEXT PRIMARY KEY, n INT);
         CREATE TRIGGER r AFTER INSERT ON t WHEN new.n = 13 BEGIN SELECT RAISE(FAIL, 'no 13'); END",
        "CREATE TABLE p (n INT PRIMARY KEY);
         WITH RECURSIVE c(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM c WHERE n < 99)
         INSERT INTO p SELECT n FROM c WHERE n <> 13;
         CREATE TABLE t (event_id TEXT PRIMARY KEY, n INT REFERENCES p (n) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TABLE t (event_id TEXT PRIMARY KEY, n INT);
         CREATE INDEX i ON t (json(CASE n WHEN 13 THEN '{' ELSE '{}' END))",
        "CREATE TABLE t (event_id TEXT PRIMARY KEY, n INT UNIQUE); INSERT INTO t VALUES ('x', 13)",
    ];
    for table in tables {
        let directory = tempfile::tempdir().unwrap();
        sql(&directory.path().join("out.db"), table).await;
        let columns = [("columns", columns_of(&[("n", "n", "")]))];
        let mut sink = open("sqlite", sqlite(directory.path(), &columns)).await.unwrap();
        let batch: Vec<_> = (0..100).map(|n| counted("a", n, format!("{{\"n\":{n}}}"))).collect();
        for _ in 0..2 {
            let refusals = store(&mut sink, &batch).await.unwrap();
            assert_eq!(refusals.len(), 1, "{table}: {refusals:?}");
            assert_eq!(refusals[0].index, 13, "{table}");
            assert!(refusals[0].reason.starts_with("table `t` refuses the row: "), "{table}");
        }
        let query = "SELECT json_group_array(n) FROM t WHERE event_id <> 'x'";
        let mut expected: Vec<_> = (0..100).collect();
        expected.remove(13);
        let expected = serde_json::to_string(&expected).unwrap();
        assert_eq!(rows(directory.path(), query).await, [expected], "{table}");
    }
}

#[tokio::test]
async fn a_lock_of_another_process_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open("sqlite", sqlite(directory.path(), &[])).await.unwrap();
    let mut other = connect(&directory.path().join("out.db")).await;
    let transaction = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let batch = [counted("a", 0, "{}")];
    let waits = tokio::time::timeout(Duration::from_millis(1_500), store(&mut sink, &batch));
    assert!(waits.await.is_err(), "it did not wait");
    transaction.rollback().await.unwrap();
    assert_eq!(store(&mut sink, &batch).await.unwrap(), []);
    assert_eq!(rows(directory.path(), "SELECT count(*) || '' FROM t").await, ["1"]);
}

#[tokio::test]
async fn a_database_that_was_replaced_is_an_error_and_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open("sqlite", sqlite(directory.path(), &[])).await.unwrap();
    for name in ["out.db", "out.db-wal", "out.db-shm"] {
        let _ = std::fs::remove_file(directory.path().join(name));
    }
    let batch = [counted("a", 0, "{}")];
    let error = store(&mut sink, &batch).await.unwrap_err().to_string();
    assert!(error.contains("was removed or replaced while it was open"), "{error}");
    drop(sink);
    let mut sink = open("sqlite", sqlite(directory.path(), &[])).await.unwrap();
    assert_eq!(store(&mut sink, &batch).await.unwrap(), []);
    // A table that is gone is no event's fault.
    sql(&directory.path().join("out.db"), "DROP TABLE t").await;
    let error = format!("{:#}", store(&mut sink, &batch).await.unwrap_err());
    assert!(error.contains("no such table: t"), "{error}");
}

#[tokio::test]
async fn seen_ids_are_forgotten_after_their_time() {
    let directory = tempfile::tempdir().unwrap();
    sql(&directory.path().join("out.db"), "CREATE TABLE t (data TEXT)").await;
    let seen = |seconds| [("seen", Value::Duration(Duration::from_secs(seconds)))];
    let mut brief = open("sqlite", sqlite(directory.path(), &seen(0))).await.unwrap();
    let batch: Vec<_> = (0..50).map(|n| counted("a", n, "{}")).collect();
    store(&mut brief, &batch).await.unwrap();
    let mut long = open("sqlite", sqlite(directory.path(), &seen(60))).await.unwrap();
    store(&mut long, &[counted("a", 50, "{}")]).await.unwrap();
    assert_eq!(rows(directory.path(), "SELECT count(*) || '' FROM aqueduct_seen").await, ["1"]);
    assert_eq!(rows(directory.path(), "SELECT count(*) || '' FROM t").await, ["51"]);
}

#[test]
fn keys_that_do_not_go_together_are_told() {
    let kind = KINDS.iter().find(|kind| kind.name == "sqlite").unwrap();
    let told = |pairs: &[(&'static str, Value)]| -> Vec<String> {
        let complaints = (kind.check)(&values(pairs));
        complaints.into_iter().map(|it| format!("{}: {}", it.key, it.message)).collect()
    };
    let (text, list) = (|it: &str| Value::Str(it.into()), |it: &str| Value::List(vec![it.into()]));
    let columns = ("columns", columns_of(&[("k", "k", "text")]));
    let upsert = ("mode", text("upsert"));
    assert_eq!(told(&[columns.clone(), upsert.clone(), ("key", list("k"))]), [""; 0]);
    let cases: &[(&[(&'static str, Value)], &str)] = &[
        (
            &[columns.clone(), upsert.clone()],
            "mode: `mode = \"upsert\"` needs `key` (the columns that make a row the same)",
        ),
        (
            &[columns.clone(), upsert.clone(), ("key", list("x"))],
            "key: `x` is none of the columns (they are `k`)",
        ),
        (
            &[upsert, ("key", list("k"))],
            "mode: `mode = \"upsert\"` needs `columns` (its `key` is of them)",
        ),
        (
            &[columns, ("key", list("k"))],
            "key: `key` means nothing here (it goes with `mode = \"upsert\"`)",
        ),
        (
            &[("table", text("Aqueduct_Seen"))],
            "table: `aqueduct_seen` is a table of aqueduct's own (name another)",
        ),
        (
            &[("columns", columns_of(&[("event_id", "id", "")]))],
            "columns: `event_id` is the id column and takes `@id` (map it to that, or set `id_column`)",
        ),
        (
            &[("columns", columns_of(&[("id", "@id", "")])), ("id_column", text("event_id"))],
            "id_column: `@id` goes into `id` already (leave one of them out)",
        ),
    ];
    for (pairs, expected) in cases {
        assert_eq!(told(pairs), [*expected]);
    }
}

#[test]
fn two_sinks_on_one_table_are_known_by_their_claims() {
    let claims = |kind: &str, pairs: &[(&'static str, Value)]| {
        let kind = KINDS.iter().find(|it| it.name == kind).unwrap();
        (kind.claims)(&values(pairs)).unwrap()
    };
    let table = |path: &str, table: &str| -> Vec<(&'static str, Value)> {
        vec![("path", Value::Str(path.into())), ("table", Value::Str(table.into()))]
    };
    let one = claims("sqlite", &table("data/x.db", "Lines"));
    assert_eq!(one, "table \"lines\" in data/x.db");
    assert_eq!(one, claims("sqlite", &table("./data/./x.db", "lines")));
    assert_ne!(one, claims("sqlite", &table("data/x.db", "other")));
    assert_eq!(claims("file", &table("./out.log", "")), "file out.log");
    let console = KINDS.iter().find(|kind| kind.name == "console").unwrap();
    assert_eq!((console.claims)(&Values::default()), None);
    assert!(console.capabilities.idempotent.is_err());
}
