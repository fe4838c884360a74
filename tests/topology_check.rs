//! Right topology files: what they mean, what they promise, and what the environment changes.

#[path = "support/kinds.rs"]
mod kinds;

use std::fs;
use std::time::Duration;

use aqueduct::spec::Value;
use aqueduct::stream::Retain;
use aqueduct::topology::{Environment, Faults, Sample, Topology, promise};
use kinds::kinds;

fn parse(text: &str, env: &[(&str, &str)]) -> Result<Topology, Faults> {
    Topology::parse("t.toml", text, &env.iter().copied().collect(), kinds())
}

fn right(text: &str) -> Topology {
    parse(text, &[]).unwrap_or_else(|faults| panic!("{faults}"))
}

const SMALL: &str = r#"
[stream.my-lines]

[source.input]
kind = "tail"
path = "in.log"
to = "my-lines"

[group.writer]
from = "my-lines"
to = "db"

[sink.db]
kind = "sqlite"
path = "out.db"
table = "t"
columns = { zulu = "Zulu", alpha = "@id", Mike = { from = "a.b", type = "BIGINT" } }
"#;

#[test]
fn what_is_not_written_has_its_default() {
    let topology = right(SMALL);
    let runtime = &topology.runtime;
    assert_eq!(runtime.data_dir.to_str(), Some("data"));
    assert_eq!((runtime.drain, runtime.watch), (Duration::from_secs(25), true));
    assert_eq!((runtime.log.as_str(), runtime.log_json), ("info", false));
    assert!(runtime.threads >= 1);
    assert!(topology.http.is_none() && topology.tracing.is_none());
    let stream = &topology.streams[0];
    assert_eq!((stream.kind.name, stream.shards), ("embedded", 1));
    assert_eq!((stream.retain, stream.max_backlog), (Retain::Acked, 10_000_000));
    assert_eq!(stream.groups, topology.groups);
    let group = &topology.groups[0];
    assert_eq!((group.members, group.batch, group.attempts), (1, 1000, 5));
    assert_eq!((group.lease, group.latest), (Duration::from_secs(20), false));
    assert_eq!((group.dead.as_str(), group.ordered), ("my-lines.dead", false));
    let source = &topology.sources[0];
    assert_eq!((source.origin.as_str(), source.values.uint("max_line")), ("input", 1 << 20));
    assert_eq!(source.values.get("to"), None, "only the kind's own keys");
}

#[test]
fn a_process_has_an_instance_of_its_own_whenever_it_reads_a_file() {
    let names = [right(SMALL).runtime.instance, right(SMALL).runtime.instance];
    assert_eq!(names[0], names[1]);
    let random = names[0].split_once(&format!("-{}-", std::process::id())).unwrap().1;
    assert!(random.len() == 8 && random.chars().all(|c| c.is_ascii_hexdigit()), "{random}");
    let fixed = right(&format!("runtime.instance = \"one\"\n{SMALL}"));
    assert_eq!(fixed.runtime.instance, "one");
}

#[test]
fn columns_and_bodies_keep_their_order_and_case() {
    let topology = right(&format!(
        "{SMALL}\n[source.p]\nkind = \"publisher\"\nto = \"my-lines\"\n\
         body = {{ Zulu = 1, alpha = {{ \"b.c\" = [true, 1.5], \"\" = 2020-01-01 }} }}\n"
    ));
    let columns = topology.sinks[0].values.opt_columns("columns").unwrap();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["zulu", "alpha", "Mike"]);
    assert_eq!(columns[2].ty.as_deref(), Some("bigint"));
    match topology.sources[1].values.get("body") {
        Some(Value::Json(body)) => {
            assert_eq!(body.to_string(), r#"{"Zulu":1,"alpha":{"b.c":[true,1.5],"":"2020-01-01"}}"#)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn retain_follows_from_who_writes() {
    let text = "[stream.foreign]\n[stream.fed]\n[stream.kept]\nretain = \"7d\"\n\
                [group.g]\nfrom = \"foreign\"\nto = \"fed\"\n";
    let retain: Vec<Retain> = right(text).streams.iter().map(|stream| stream.retain).collect();
    let week = Duration::from_secs(7 * 86_400);
    assert_eq!(retain, [Retain::Forever, Retain::Acked, Retain::Age(week)]);
}

#[test]
fn http_and_tracing_are_typed_and_hide_their_secrets() {
    let topology = right(&format!(
        "[http]\nlisten = \"0.0.0.0:80\"\ntoken = [\"hunter2\", \"b\"]\nmax_body = 1024\n\
         tls = {{ cert = \"c\", key = \"k\" }}\n[tracing]\nsample = 0.01\n\
         otlp = \"http://u:hunter2@host:4317\"\n[query.q]\npath = \"/q\"\nsink = \"db\"\n\
         cache = {{ url = \"redis://:hunter2@h\" }}\n{SMALL}"
    ));
    let http = topology.http.as_ref().unwrap();
    assert_eq!((http.max_body, http.max_in_flight), (1024, 10_000));
    assert!(http.tls.is_some());
    assert_eq!(http.tokens[0].expose(), "hunter2");
    assert_eq!(topology.tracing.as_ref().unwrap().sample, Sample::Ratio(0.01));
    let cache = topology.queries[0].cache.as_ref().unwrap();
    assert_eq!(cache.ttl, Duration::from_secs(5));
    assert!(!format!("{topology:?}").contains("hunter2"));
    assert!(topology.warnings.is_empty(), "{}", topology.warnings_text());
}

#[test]
fn a_variable_turns_tracing_on() {
    let text = "[stream.a]\n[tracing]\notlp = \"${OTLP_URL:-}\"\n";
    let tracing = |env: &[(&str, &str)]| parse(text, env).unwrap().tracing;
    assert_eq!(tracing(&[]), None);
    let on = tracing(&[("OTLP_URL", "http://collector:4317")]).unwrap();
    assert_eq!(on.otlp, "http://collector:4317");
    let faults = parse(text, &[("OTLP_URL", "collector")]).unwrap_err().to_string();
    assert!(faults.contains("http://"), "{faults}");
}

#[test]
fn what_is_likely_not_meant_is_warned_of() {
    let topology = right(&format!(
        "[http]\nlisten = \"0.0.0.0:80\"\n[stream.idle]\n[sink.spare]\nkind = \"console\"\n{}",
        SMALL.replace("from = \"my-lines\"", "from = \"my-lines\"\nordered = true\nmembers = 4")
    ));
    insta::assert_snapshot!(topology.warnings_text(), @r#"
    t.toml:2:10: warning: `listen = "0.0.0.0:80"` can be reached from other machines, and without a `token` anybody there may change things and see events
    t.toml:3:1: warning: nothing of this file writes `stream.idle` and no group reads it
    t.toml:4:1: warning: no group delivers to `sink.spare`
    t.toml:17:11: warning: `group.writer` has 4 members, and as an ordered group only one for each of the 1 shards of `my-lines` can work at a time
    "#);
}

#[test]
fn a_string_that_reads_as_the_type_is_taken() {
    let text =
        SMALL.replace("from = \"my", "members = \"${N:-4}\"\nordered = \"true\"\nfrom = \"my");
    let group = |env| parse(&text, env).unwrap().groups.remove(0);
    assert_eq!((group(&[]).members, group(&[]).ordered), (4, true));
    assert_eq!(group(&[("N", "7")]).members, 7);
}

#[test]
fn the_environment_overrides_keys() {
    let topology = parse(
        SMALL,
        &[
            ("AQUEDUCT__GROUP__WRITER__MEMBERS", "3"),
            ("AQUEDUCT__RUNTIME__DRAIN", "1m"),
            ("AQUEDUCT__STREAM__MY_LINES__KIND", "redis"),
            ("AQUEDUCT__STREAM__MY_LINES__URL", "redis://localhost"),
            ("AQUEDUCT__SINK__DB__COLUMNS__MIKE__TYPE", "text"),
            ("AQUEDUCT__SINK__DB__MODE", "upsert"),
            ("AQUEDUCT__SINK__DB__KEY", "[\"zulu\", \"alpha\"]"),
            ("aqueduct__http__listen", "127.0.0.1:0"),
            ("AQUEDUCT_SERVICE_HOST", "10.0.0.1"),
        ],
    )
    .unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(topology.groups[0].members, 3);
    assert_eq!(topology.runtime.drain, Duration::from_secs(60));
    assert_eq!(topology.streams[0].kind.name, "redis");
    assert_eq!(topology.streams[0].values.list("url"), ["redis://localhost"]);
    assert_eq!(topology.http.unwrap().listen, "127.0.0.1:0");
    let sink = &topology.sinks[0].values;
    assert_eq!(sink.list("key"), ["zulu", "alpha"]);
    let columns = sink.opt_columns("columns").unwrap();
    assert_eq!((columns[2].name.as_str(), columns[2].ty.as_deref()), ("Mike", Some("text")));
}

#[test]
fn the_log_s_variables_win_over_the_file_and_the_override_over_them() {
    let text = format!("runtime.log = \"warn\"\n{SMALL}");
    let log = |env: &[(&str, &str)]| parse(&text, env).unwrap().runtime.log;
    let (level, rust) = (("LOG_LEVEL", "DEBUG"), ("RUST_LOG", "aqueduct=trace"));
    assert_eq!(log(&[]), "warn");
    assert_eq!(log(&[("LOG_LEVEL", "")]), "warn");
    assert_eq!(log(&[level]), "DEBUG");
    assert_eq!(log(&[level, rust]), "aqueduct=trace");
    assert_eq!(log(&[level, rust, ("AQUEDUCT__RUNTIME__LOG", "error")]), "error");
}

#[test]
fn a_dotenv_file_is_read_and_its_faults_show_no_value() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".env");
    assert_eq!(Environment::dotenv(&file).unwrap().iter().count(), 0, "there need be none");
    fs::write(&file, "# comment\nN=4\nexport TEXT=\"two words\"\nN=5\n").unwrap();
    let env = Environment::dotenv(&file).unwrap();
    assert_eq!((env.get("N"), env.get("TEXT")), (Some("4"), Some("two words")));
    let process = Environment::process().unwrap();
    assert!(process.get("HOSTNAME").is_some_and(|host| !host.is_empty()));
    fs::write(&file, "A=1\nPASSWORD=hunter2 and more\n").unwrap();
    let faults = Environment::dotenv(&file).unwrap_err().to_string();
    let faults = faults.replace(&file.display().to_string(), ".env");
    insta::assert_snapshot!(faults, @".env: entry 2 is no `NAME=value` (a value with spaces stands in quotes)");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str| {
        let path = folder.path().join(name);
        let faults = Topology::load_with(&path, &Environment::default(), kinds()).unwrap_err();
        faults.to_string().replace(&folder.path().display().to_string(), "dir")
    };
    fs::write(folder.path().join("latin1.toml"), b"[stream.a]\n# \xe9\n").unwrap();
    fs::write(folder.path().join("large.toml"), " ".repeat(1024 * 1024 + 1)).unwrap();
    let all = [load("none.toml"), load(""), load("latin1.toml"), load("large.toml")].join("\n");
    insta::assert_snapshot!(all, @r#"
    dir/none.toml: there is no such file (a topology file, TOML)
    dir/: is a directory (a topology file, TOML)
    dir/latin1.toml: line 2 is not UTF-8 (a topology file, TOML)
    dir/large.toml: the file is too large (at most 1MiB)
    "#);
}

#[test]
fn a_line_may_end_as_on_windows_and_a_file_start_with_a_mark() {
    let text = format!("\u{feff}{}", SMALL.replace('\n', "\r\n"));
    assert_eq!(right(&text).groups.len(), 1);
    let wrong = text.replace("my-lines\"\r\nto", "our-lines\"\r\nto");
    assert_eq!(parse(&wrong, &[]).unwrap_err().faults[0].place, Some((10, 8)));
    let faults = parse("\u{feff}[streem.a]\n", &[]).unwrap_err();
    assert_eq!(faults.faults[0].place, Some((1, 2)));
}

#[test]
fn no_name_breaks_a_message_s_line() {
    let text = "[stream.\"a\\nb\"]\nkind = \"rabbitmq\"\nurl = \"amqp://h\"\n\
                [group.g]\nfrom = \"a\\nb\"\nto = \"a\\nb\"\nstart = \"earliest\"\nordered = true\n";
    let faults = parse(text, &[]).unwrap_err();
    assert!(faults.faults.len() >= 4, "{faults}");
    assert_eq!(faults.to_string().lines().count(), faults.faults.len(), "{faults}");
}

#[test]
fn each_route_has_its_promise() {
    let topology = right(
        r#"
        http = {}
        [stream.lines]
        [stream.work]
        [stream.kept]
        [stream.foreign]
        kind = "redis"
        url = "redis://localhost"
        [stream.queue]
        kind = "rabbitmq"
        url = "amqp://localhost"
        [stream.ordered]

        [source.input]
        kind = "tail"
        path = "in.log"
        to = "lines"
        [source.web]
        kind = "http"
        path = "/log"
        to = "lines"
        [source.numbers]
        kind = "publisher"
        to = "kept"
        [source.ticks]
        kind = "publisher"
        to = "ordered"

        [group.writer]
        from = "lines"
        to = "db"
        [group.second]
        from = "lines"
        to = "db"
        [group.carry]
        from = "lines"
        to = "work"
        [group.print]
        from = "work"
        to = "screen"
        [group.foreigners]
        from = "foreign"
        to = "db"
        [group.queued]
        from = "queue"
        to = "db"
        [group.inorder]
        from = "ordered"
        to = "db"
        ordered = true

        [sink.db]
        kind = "sqlite"
        path = "out.db"
        table = "t"
        [sink.screen]
        kind = "console"
        "#,
    );
    let routes: Vec<String> = promise::routes(&topology).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(routes.join("\n"), @r#"
    input → lines → db (by writer): exactly once
    input → lines → db (by second): exactly once
    input → lines → work → screen: at least once, because `screen` (console) prints an event again that is delivered again
    web → lines → db (by writer): at least once, because `web` (http) cannot tell an event that comes again from a new one
    web → lines → db (by second): at least once, because `web` (http) cannot tell an event that comes again from a new one
    web → lines → work → screen: at least once, because `web` (http) cannot tell an event that comes again from a new one, and `screen` (console) prints an event again that is delivered again
    numbers → kept: kept in the stream, no group reads it
    ticks → ordered → db: exactly once, in order
    foreign → db: exactly once
    queue → db: at least once, because what other programs put into `queue` (rabbitmq) need not have an id
    "#);
}

#[test]
fn streams_that_part_and_meet_very_often_are_not_followed_for_ever() {
    let mut text = String::from("[sink.end]\nkind = \"console\"\n");
    for i in 0..40 {
        text += &format!("[stream.s{i}]\n");
        let to = if i == 39 { "end".to_owned() } else { format!("s{}", i + 1) };
        text += &format!("[group.a{i}]\nfrom = \"s{i}\"\nto = \"{to}\"\n");
        text += &format!("[group.b{i}]\nfrom = \"s{i}\"\nto = \"{to}\"\n");
    }
    assert_eq!(promise::routes(&right(&text)).len(), promise::ROUTES_MAX);
}

#[test]
fn an_empty_key_of_another_kind_is_absent_only_where_a_variable_decides() {
    let with =
        |stream: &str| SMALL.replace("[stream.my-lines]", &format!("[stream.my-lines]\n{stream}"));
    for (stream, env, said) in [
        ("kind = \"${K:-embedded}\"\nurl = \"\"", &[][..], None),
        ("kind = \"${K:-embedded}\"\nurl = \"${U:-}\"", &[], None),
        ("kind = \"embedded\"\nurl = \"${U:-}\"", &[], None),
        ("url = \"${U}\"", &[("U", "")], None),
        ("kind = \"embedded\"\nurl = \"\"", &[], Some("unknown key `url`")),
        ("url = \"\"", &[], Some("unknown key `url`")),
        ("kind = \"${K:-embedded}\"\nurl = \"redis://h\"", &[], Some("unknown key `url`")),
        ("url = \"${U:-}\"", &[("U", "redis://h")], Some("unknown key `url`")),
        ("kind = \"${K:-embedded}\"\nurll = \"\"", &[], Some("unknown key `urll`")),
        ("kind = \"${K}\"\nurl = \"\"", &[("K", "redis")], Some("url")),
    ] {
        let parsed = parse(&with(stream), env);
        match said {
            None => assert!(parsed.is_ok(), "{stream}: {}", parsed.unwrap_err()),
            Some(said) => {
                let faults = parsed.unwrap_err().to_string();
                assert!(faults.contains(said), "{stream}: {faults}");
            }
        }
    }
}
