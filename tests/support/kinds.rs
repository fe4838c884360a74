//! Kinds with the keys of the documentation and nothing behind them, so that tests of the topology
//! file depend on no plug-in.

use aqueduct::spec::Default::{Absent, Derived, Required, Toml};
use aqueduct::spec::{Complaint, Key, Ty, Values};
use aqueduct::topology::Kinds;
use aqueduct::{sink, source, stream};

pub fn kinds() -> Kinds {
    Kinds { sources: SOURCES, streams: STREAMS, sinks: SINKS }
}

const fn key(name: &'static str, ty: Ty, default: aqueduct::spec::Default) -> Key {
    Key { name, ty, default, doc: "A key." }
}

static SOURCES: &[&source::Kind] = &[&PUBLISHER, &TAIL, &HTTP];
static STREAMS: &[&stream::Kind] = &[&EMBEDDED, &REDIS, &RABBITMQ];
static SINKS: &[&sink::Kind] = &[&SQLITE, &POSTGRES, &FILE, &CONSOLE];

fn nothing(_: &Values) -> Vec<Complaint> {
    Vec::new()
}

static PUBLISHER: source::Kind = source::Kind {
    name: "publisher",
    doc: "Makes events.",
    keys: &[
        key("body", Ty::Body, Absent),
        key("n", Ty::Range, Absent),
        key("instances", Ty::Int(1, 1024), Toml("1")),
        key("every", Ty::Duration, Absent),
        key("rate", Ty::Rate, Absent),
        key("trigger", Ty::Choice(&["http"]), Absent),
    ],
    capabilities: source::Capabilities { identity: true },
    check: |values| match (values.get("every"), values.get("rate")) {
        (Some(_), Some(_)) => vec![Complaint {
            key: "rate",
            message: "`rate` beside `every` (one of the two)".to_owned(),
        }],
        _ => Vec::new(),
    },
    finite: |values| values.opt_range("n").is_some(),
    instances: |values| values.uint("instances"),
    open: |_, _, _| Err(anyhow::anyhow!("only its keys are real")),
};

static TAIL: source::Kind = source::Kind {
    name: "tail",
    doc: "Follows files.",
    keys: &[
        key("path", Ty::Path, Required),
        key("start", Ty::Choice(&["beginning", "end"]), Toml("\"beginning\"")),
        key("max_line", Ty::Size, Toml("\"1MiB\"")),
    ],
    capabilities: source::Capabilities { identity: true },
    check: nothing,
    finite: |_| false,
    instances: |_| 1,
    open: |_, _, _| Err(anyhow::anyhow!("only its keys are real")),
};

static HTTP: source::Kind = source::Kind {
    name: "http",
    doc: "Takes events over HTTP.",
    keys: &[key("path", Ty::Route, Required)],
    capabilities: source::Capabilities { identity: false },
    check: nothing,
    finite: |_| false,
    instances: |_| 1,
    open: |_, _, _| Err(anyhow::anyhow!("only its keys are real")),
};

static EMBEDDED: stream::Kind = stream::Kind {
    name: "embedded",
    doc: "A SQLite database.",
    keys: &[key("path", Ty::Path, Derived("<data_dir>/streams.db"))],
    group_keys: &[],
    capabilities: stream::Capabilities {
        foreign_identity: true,
        history: true,
        shards: true,
        transactional_checkpoint: true,
        ordered: true,
    },
    check: nothing,
    place: |_| String::new(),
    claims: |_| Vec::new(),
    open: |_, _| Box::pin(async { Err(anyhow::anyhow!("only its keys are real")) }),
};

static REDIS: stream::Kind = stream::Kind {
    name: "redis",
    doc: "Redis Streams.",
    keys: &[
        key("url", Ty::Urls(&["redis", "rediss"]), Required),
        key("key", Ty::Str, Derived("the stream's name")),
        key("field", Ty::Str, Toml("\"body\"")),
        key("flat", Ty::Bool, Toml("false")),
    ],
    group_keys: &[],
    capabilities: stream::Capabilities {
        foreign_identity: true,
        history: true,
        shards: true,
        transactional_checkpoint: true,
        ordered: true,
    },
    check: nothing,
    place: |_| String::new(),
    claims: |spec| {
        let key = spec.values.opt_str("key").unwrap_or(&spec.name);
        let servers = spec.values.list("url").join(", ");
        vec![stream::Claim::stream(format!("the key `{key}` at {servers}"))]
    },
    open: |_, _| Box::pin(async { Err(anyhow::anyhow!("only its keys are real")) }),
};

static RABBITMQ: stream::Kind = stream::Kind {
    name: "rabbitmq",
    doc: "RabbitMQ.",
    keys: &[
        key("url", Ty::Url(&["amqp", "amqps"]), Required),
        key("exchange", Ty::Str, Derived("the stream's name")),
        key("queue_type", Ty::Choice(&["quorum", "classic"]), Toml("\"quorum\"")),
    ],
    group_keys: &[key("queue", Ty::Str, Derived("NAME.GROUP"))],
    capabilities: stream::Capabilities {
        foreign_identity: false,
        history: false,
        shards: false,
        transactional_checkpoint: false,
        ordered: false,
    },
    check: nothing,
    place: |_| String::new(),
    claims: |spec| {
        let queue = |group: &stream::GroupSpec, key, name: &str, shared| stream::Claim {
            what: format!("the queue `{name}`"),
            group: Some((group.name.clone(), key)),
            shared,
        };
        let claims = spec.groups.iter().flat_map(|group| {
            let own = format!("{}.{}", spec.name, group.name);
            let name = group.values.opt_str("queue").unwrap_or(&own);
            [queue(group, "queue", name, false), queue(group, "dead", &group.dead, true)]
        });
        claims.collect()
    },
    open: |_, _| Box::pin(async { Err(anyhow::anyhow!("only its keys are real")) }),
};

fn table_of(values: &Values) -> String {
    format!("table \"{}\" in {}", values.str("table"), values.str("path"))
}

static SQLITE: sink::Kind = sink::Kind {
    name: "sqlite",
    doc: "A table of a SQLite database.",
    system: Some("sqlite"),
    keys: &[
        key("path", Ty::Path, Required),
        key("table", Ty::Str, Required),
        key("columns", Ty::Columns, Absent),
        key("create", Ty::Bool, Toml("false")),
        key("id_column", Ty::Str, Toml("\"event_id\"")),
        key("mode", Ty::Choice(&["insert", "upsert"]), Toml("\"insert\"")),
        key("key", Ty::Strs, Absent),
        key("seen", Ty::Duration, Toml("\"30d\"")),
    ],
    capabilities: sink::Capabilities { idempotent: Ok(()), fencing: true },
    check: |values| match values.str("mode") == "upsert" && values.list("key").is_empty() {
        true => vec![Complaint {
            key: "mode",
            message: "`mode = \"upsert\"` without a `key` (the columns that tell rows apart)"
                .to_owned(),
        }],
        false => Vec::new(),
    },
    claims: |values| Some(table_of(values)),
    place: table_of,
    look: |_| None,
    writers: |_| 1,
    open: |_, _| Box::pin(async { Err(anyhow::anyhow!("only its keys are real")) }),
    reader: Some(|_| unreachable!("only its keys are real")),
};

static POSTGRES: sink::Kind = sink::Kind {
    name: "postgres",
    doc: "A table of a PostgreSQL database.",
    system: Some("postgresql"),
    keys: &[
        key("url", Ty::Url(&["postgres", "postgresql"]), Required),
        key("table", Ty::Str, Required),
        key("connections", Ty::Int(1, 100), Toml("2")),
        key("columns", Ty::Columns, Absent),
    ],
    capabilities: sink::Capabilities { idempotent: Ok(()), fencing: true },
    check: nothing,
    claims: |values| Some(format!("table \"{}\"", values.str("table"))),
    place: |values| format!("table \"{}\"", values.str("table")),
    look: |_| None,
    writers: |_| 1,
    open: |_, _| Box::pin(async { Err(anyhow::anyhow!("only its keys are real")) }),
    reader: Some(|_| unreachable!("only its keys are real")),
};

static FILE: sink::Kind = sink::Kind {
    name: "file",
    doc: "Lines of a file.",
    system: None,
    keys: &[key("path", Ty::Path, Required)],
    capabilities: sink::Capabilities { idempotent: Ok(()), fencing: false },
    check: nothing,
    claims: |values| Some(values.str("path").to_owned()),
    place: |values| values.str("path").to_owned(),
    look: |_| None,
    writers: |_| 1,
    open: |_, _| Box::pin(async { Err(anyhow::anyhow!("only its keys are real")) }),
    reader: None,
};

static CONSOLE: sink::Kind = sink::Kind {
    name: "console",
    doc: "Standard output.",
    system: None,
    keys: &[],
    capabilities: sink::Capabilities {
        idempotent: Err("prints an event again that is delivered again"),
        fencing: false,
    },
    check: nothing,
    claims: |_| None,
    place: |_| "standard output".to_owned(),
    look: |_| None,
    writers: |_| 1,
    open: |_, _| Box::pin(async { Err(anyhow::anyhow!("only its keys are real")) }),
    reader: None,
};
