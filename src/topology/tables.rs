//! The keys of the topology file that belong to no kind, each declared once; those of the kinds
//! stand in the kinds' own files.

use crate::spec::Default::{Absent, Derived, Required, Toml};
use crate::spec::{Key, Room, Ty};
use crate::{sink, source, stream};

/// The kinds that a topology may name.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// Kinds of `[source.NAME]`.
    pub sources: &'static [&'static source::Kind],
    /// Kinds of `[stream.NAME]`.
    pub streams: &'static [&'static stream::Kind],
    /// Kinds of `[sink.NAME]`.
    pub sinks: &'static [&'static sink::Kind],
}

impl Kinds {
    /// Every kind there is.
    pub fn all() -> Self {
        Self { sources: source::KINDS, streams: stream::KINDS, sinks: sink::KINDS }
    }
}

/// The tables that hold keys and no components.
pub static PLAIN: &[(&str, &[Key])] = &[("runtime", RUNTIME), ("http", HTTP), ("tracing", TRACING)];

/// `[runtime]`
pub static RUNTIME: &[Key] = &[
    Key {
        name: "data_dir",
        ty: Ty::Path,
        default: Toml("\"data\""),
        doc: "Where embedded streams live, and what sources must remember.",
    },
    Key {
        name: "drain",
        ty: Ty::Duration,
        default: Toml("\"25s\""),
        doc: "How long a stop may take before what is left is cut off.",
    },
    Key {
        name: "threads",
        ty: Ty::Int(1, 1024),
        default: Derived("one a core"),
        doc: "Threads that the actors are spread over.",
    },
    Key {
        name: "instance",
        ty: Ty::Str,
        default: Derived("host name, process id and 8 random hex digits"),
        doc: "Names this process's group members.",
    },
    Key {
        name: "watch",
        ty: Ty::Bool,
        default: Toml("true"),
        doc: "Apply an edit of the topology file while running.",
    },
    Key {
        name: "log",
        ty: Ty::Str,
        default: Toml("\"info\""),
        doc: "What is logged: off, error, warn, info, debug, trace, or directives such as \
              `info,aqueduct::actor=debug`. LOG_LEVEL and RUST_LOG win over it.",
    },
    Key {
        name: "log_format",
        ty: Ty::Choice(&["text", "json"]),
        default: Toml("\"text\""),
        doc: "How a line of the log is written.",
    },
];

/// `[http]`
pub static HTTP: &[Key] = &[
    Key {
        name: "listen",
        ty: Ty::Listen,
        default: Toml("\"127.0.0.1:8080\""),
        doc: "Where HTTP is served.",
    },
    Key {
        name: "token",
        ty: Ty::Secrets,
        default: Absent,
        doc: "The bearer token, or a list of them, asked of sources, triggers, queries and every \
              action that changes something or shows events.",
    },
    Key {
        name: "max_body",
        ty: Ty::Size,
        default: Toml("\"1MiB\""),
        doc: "The largest body of a request, after decompression.",
    },
    Key {
        name: "max_in_flight",
        ty: Ty::Int(1, 1_000_000),
        default: Toml("10000"),
        doc: "Requests that may be under way at once.",
    },
    Key { name: "tls", ty: Ty::Table(TLS), default: Absent, doc: "Serve HTTPS instead of HTTP." },
    Key {
        name: "admin",
        ty: Ty::Listen,
        default: Absent,
        doc: "Where metrics, streams, the status page and its data are served instead.",
    },
];

static TLS: &[Key] = &[
    Key {
        name: "cert",
        ty: Ty::Path,
        default: Required,
        doc: "The certificate chain, a PEM file.",
    },
    Key { name: "key", ty: Ty::Path, default: Required, doc: "The private key, a PEM file." },
];

/// `[tracing]`
pub static TRACING: &[Key] = &[
    Key {
        name: "otlp",
        ty: Ty::UrlOrNone(&["http", "https"]),
        default: Toml("\"http://localhost:4317\""),
        doc: "Where spans go: an OTLP collector's gRPC address. Empty: as without this table.",
    },
    Key {
        name: "service",
        ty: Ty::Str,
        default: Toml("\"aqueduct\""),
        doc: "The service's name in the spans.",
    },
    Key {
        name: "sample",
        ty: Ty::Sample,
        default: Toml("\"10/s\""),
        doc: "How many new traces a second and source, a ratio from 0 to 1, `all` or `none`.",
    },
];

/// What every `[source.NAME]` has.
pub static SOURCE: &[Key] = &[
    Key {
        name: "kind",
        ty: Ty::Str,
        default: Required,
        doc: "What it is; the keys it takes depend on it.",
    },
    Key { name: "to", ty: Ty::Ref(Room::Stream), default: Required, doc: "The stream it writes." },
    Key {
        name: "key",
        ty: Ty::Pointer,
        default: Absent,
        doc: "A JSON pointer into the body; what it finds picks the shard.",
    },
    Key {
        name: "counter",
        ty: Ty::Metric,
        default: Absent,
        doc: "An extra Prometheus counter of its events.",
    },
    Key {
        name: "origin",
        ty: Ty::Str,
        default: Derived("the source's name"),
        doc: "What its ids and its checkpoint are filed under.",
    },
];

/// What every `[stream.NAME]` has.
pub static STREAM: &[Key] = &[
    Key {
        name: "kind",
        ty: Ty::Str,
        default: Toml(STREAM_KIND_TOML),
        doc: "Where it is kept; the keys it takes depend on it.",
    },
    Key {
        name: "shards",
        ty: Ty::Int(1, 1024),
        default: Toml("1"),
        doc: "An event with a key always goes to the same shard: XXH3 (64 bits, seed 0) of the key's \
              UTF-8 bytes, modulo the number of shards. With embedded and postgres the number can \
              change once every group has acked everything; with redis and rabbitmq it cannot.",
    },
    Key {
        name: "retain",
        ty: Ty::Retain,
        default: Derived("`acked` if a source or group of this file writes it, else `forever`"),
        doc: "How long it keeps what every group has acked.",
    },
    Key {
        name: "max_backlog",
        ty: Ty::Int(1, i64::MAX),
        default: Toml("10000000"),
        doc: "Events that the slowest group may be behind; past it sources wait.",
    },
];

/// The kind of a stream that names none.
pub const STREAM_KIND: &str = "embedded";
const STREAM_KIND_TOML: &str = "\"embedded\"";

/// What every `[group.NAME]` has.
pub static GROUP: &[Key] = &[
    Key { name: "from", ty: Ty::Ref(Room::Stream), default: Required, doc: "The stream it reads." },
    Key {
        name: "to",
        ty: Ty::Ref(Room::SinkOrStream),
        default: Required,
        doc: "The sink, or the other stream, it delivers to.",
    },
    Key {
        name: "members",
        ty: Ty::Int(1, 1024),
        default: Toml("1"),
        doc: "How many members of it run in this process.",
    },
    Key {
        name: "start",
        ty: Ty::Choice(&["earliest", "latest"]),
        default: Derived("`earliest`, and `latest` on a stream without history"),
        doc: "Where a new group begins: the oldest event that is kept, or the next one.",
    },
    Key {
        name: "batch",
        ty: Ty::Int(1, 100_000),
        default: Toml("1000"),
        doc: "Events in one delivery, at most.",
    },
    Key {
        name: "lease",
        ty: Ty::Duration,
        default: Toml("\"20s\""),
        doc: "After that a silent member's events go to another.",
    },
    Key {
        name: "attempts",
        ty: Ty::Int(1, 1_000_000),
        default: Toml("5"),
        doc: "Deliveries alone, each ending badly, until an event is a dead letter.",
    },
    Key {
        name: "dead",
        ty: Ty::Str,
        default: Derived("FROM.dead"),
        doc: "Where its dead letters are kept, beside the stream.",
    },
    Key {
        name: "ordered",
        ty: Ty::Bool,
        default: Toml("false"),
        doc: "One member at a time per shard, in order; events behind a refused one wait. The stream \
              has to be `embedded`, `redis` or `postgres`, the target a `postgres` or `sqlite` sink. \
              All processes that run the group have to say the same.",
    },
    Key {
        name: "counter",
        ty: Ty::Metric,
        default: Absent,
        doc: "An extra Prometheus counter of what it delivered.",
    },
];

/// What every `[sink.NAME]` has.
pub static SINK: &[Key] = &[Key {
    name: "kind",
    ty: Ty::Str,
    default: Required,
    doc: "What it is; the keys it takes depend on it.",
}];

/// `[query.NAME]`
pub static QUERY: &[Key] = &[
    Key { name: "path", ty: Ty::Route, default: Required, doc: "Where it is served." },
    Key {
        name: "sink",
        ty: Ty::Ref(Room::Sink),
        default: Required,
        doc: "The database sink whose rows it answers with.",
    },
    Key {
        name: "order",
        ty: Ty::Str,
        default: Derived("`inserted_at`, else the primary key"),
        doc: "The column that tells which rows are the newest.",
    },
    Key { name: "cache", ty: Ty::Table(CACHE), default: Absent, doc: "Keep answers in Redis." },
    Key {
        name: "timeout",
        ty: Ty::Duration,
        default: Toml("\"5s\""),
        doc: "How long the database may take.",
    },
];

static CACHE: &[Key] = &[
    Key {
        name: "url",
        ty: Ty::Url(&["redis", "rediss"]),
        default: Required,
        doc: "The Redis that keeps them.",
    },
    Key {
        name: "ttl",
        ty: Ty::Duration,
        default: Toml("\"5s\""),
        doc: "How long an answer is kept.",
    },
];

/// The keys that every component of a table has, whatever its kind.
pub fn common(room: Room) -> &'static [Key] {
    match room {
        Room::Source => SOURCE,
        Room::Stream => STREAM,
        Room::Group => GROUP,
        Room::Sink => SINK,
        Room::Query => QUERY,
        Room::SinkOrStream => &[],
    }
}

/// What all kinds have in common, for what treats them alike.
pub(super) struct KindKeys {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) keys: &'static [Key],
}

impl Kinds {
    /// The kinds of a table; none where its components have no kind.
    pub(super) fn of(self, room: Room) -> Vec<KindKeys> {
        match room {
            Room::Source => {
                let kinds = self.sources.iter();
                kinds.map(|k| KindKeys { name: k.name, doc: k.doc, keys: k.keys }).collect()
            }
            Room::Stream => {
                let kinds = self.streams.iter();
                kinds.map(|k| KindKeys { name: k.name, doc: k.doc, keys: k.keys }).collect()
            }
            Room::Sink => {
                let kinds = self.sinks.iter();
                kinds.map(|k| KindKeys { name: k.name, doc: k.doc, keys: k.keys }).collect()
            }
            Room::Group | Room::Query | Room::SinkOrStream => Vec::new(),
        }
    }

    /// The keys that groups take on streams of this kind; of every kind, where it is unknown.
    pub(super) fn group_keys(self, kind: Option<&str>) -> impl Iterator<Item = &'static Key> {
        let known = kind.is_some_and(|kind| self.streams.iter().any(|known| known.name == kind));
        let kind = kind.filter(|_| known).map(str::to_owned);
        self.streams
            .iter()
            .filter(move |known| kind.as_deref().is_none_or(|kind| kind == known.name))
            .flat_map(|known| known.group_keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse::default_value;

    /// Every key table with its name: plain, common, and of each kind.
    fn tables() -> Vec<(String, Vec<&'static Key>)> {
        let mut all: Vec<(String, Vec<&'static Key>)> =
            PLAIN.iter().map(|(name, keys)| ((*name).to_owned(), keys.iter().collect())).collect();
        for room in Room::TABLES {
            all.push((room.noun().to_owned(), common(room).iter().collect()));
            for kind in Kinds::all().of(room) {
                let keys = common(room).iter().chain(kind.keys).collect();
                all.push((format!("{} {}", room.noun(), kind.name), keys));
            }
        }
        for kind in stream::KINDS {
            let keys = GROUP.iter().chain(kind.group_keys).collect();
            all.push((format!("group on {}", kind.name), keys));
        }
        all
    }

    #[test]
    fn every_default_is_a_value_of_its_key_and_no_key_is_declared_twice() {
        fn check(name: &str, keys: &[&'static Key]) {
            for (i, key) in keys.iter().enumerate() {
                assert!(keys[..i].iter().all(|k| k.name != key.name), "{name}: {} twice", key.name);
                assert!(key.doc.ends_with('.'), "{name}: {} is documented", key.name);
                if let Toml(text) = key.default {
                    assert!(default_value(key.ty, text).is_some(), "{name}: {} = {text}", key.name);
                }
                if let Ty::Table(inner) = key.ty {
                    check(&format!("{name}.{}", key.name), &inner.iter().collect::<Vec<_>>());
                }
            }
        }
        for (name, keys) in tables() {
            check(&name, &keys);
        }
    }
}
