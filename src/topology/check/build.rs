//! From a draft without faults to a typed topology.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use super::{Draft, Part};
use crate::sink::SinkSpec;
use crate::source::SourceSpec;
use crate::source::door::Door;
use crate::spec::text::Secret;
use crate::spec::{Key, Value, Values, units};
use crate::stream::{GroupSpec, Retain, StreamSpec};
use crate::topology::{Cache, Http, QuerySpec, Runtime, Sample, Tls, Topology, Tracing};

/// Builds it from what could be read: it is whole where the draft has no fault.
pub(super) fn build(file: &str, draft: &Draft) -> Topology {
    let written = draft.written();
    let groups: Vec<GroupSpec> = draft.groups.iter().map(group).collect();
    Topology {
        file: PathBuf::from(file),
        runtime: runtime(&draft.runtime),
        http: draft.http.as_ref().map(http),
        tracing: draft.tracing.as_ref().map(tracing).filter(|tracing| !tracing.otlp.is_empty()),
        sources: draft.sources.iter().filter_map(source).collect(),
        streams: draft.streams.iter().filter_map(|part| stream(&written, part, &groups)).collect(),
        groups,
        sinks: draft.sinks.iter().filter_map(sink).collect(),
        queries: draft.queries.iter().map(query).collect(),
        warnings: Vec::new(),
        places: Default::default(),
    }
}

/// The values of a kind's own keys.
fn own(values: &Values, keys: &'static [Key]) -> Values {
    let mut own = Values::default();
    for key in keys {
        if let Some(value) = values.get(key.name) {
            own.set(key.name, value.clone());
        }
    }
    own
}

fn text(values: &Values, key: &str) -> Option<String> {
    values.opt_str(key).map(str::to_owned)
}

fn duration(values: &Values, key: &str) -> Duration {
    values.opt_duration(key).unwrap_or_default()
}

fn number<T: TryFrom<u64> + Default>(values: &Values, key: &str) -> T {
    T::try_from(values.uint(key)).unwrap_or_default()
}

fn runtime(values: &Values) -> Runtime {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Runtime {
        data_dir: PathBuf::from(values.str("data_dir")),
        drain: duration(values, "drain"),
        threads: values.get("threads").map_or_else(cores, |_| number(values, "threads")),
        instance: text(values, "instance").unwrap_or_else(instance),
        watch: values.bool("watch"),
        log: values.str("log").to_owned(),
        log_json: values.str("log_format") == "json",
    }
}

/// Host name, process id and eight random hex digits: not the same for two processes, be they
/// containers with one name and process id 1 each; and the same whenever this one reads a file.
fn instance() -> String {
    static RANDOM: LazyLock<u32> = LazyLock::new(|| fastrand::u32(..));
    let host = gethostname::gethostname();
    format!("{}-{}-{:08x}", host.to_string_lossy(), std::process::id(), *RANDOM)
}

fn http(values: &Values) -> Http {
    Http {
        listen: values.str("listen").to_owned(),
        tokens: values.list("token").iter().map(Secret::new).collect(),
        max_body: number(values, "max_body"),
        max_in_flight: number(values, "max_in_flight"),
        tls: values.opt_table("tls").map(|tls| Tls {
            cert: PathBuf::from(tls.str("cert")),
            key: PathBuf::from(tls.str("key")),
        }),
        admin: text(values, "admin"),
    }
}

fn tracing(values: &Values) -> Tracing {
    let sample = match values.get("sample") {
        Some(Value::Float(ratio)) => Sample::Ratio(*ratio),
        Some(Value::Str(word)) if word == "all" => Sample::Ratio(1.0),
        Some(Value::Str(word)) if word == "none" => Sample::Ratio(0.0),
        Some(Value::Str(rate)) => Sample::PerSecond(units::rate(rate).unwrap_or_default()),
        _ => Sample::PerSecond(10),
    };
    Tracing {
        otlp: values.str("otlp").to_owned(),
        service: values.str("service").to_owned(),
        sample,
    }
}

fn source(part: &Part<crate::source::Kind>) -> Option<SourceSpec> {
    let kind = part.kind?;
    Some(SourceSpec {
        name: part.name.as_str().into(),
        kind,
        to: part.values.str("to").to_owned(),
        origin: text(&part.values, "origin").unwrap_or_else(|| part.name.clone()),
        key: text(&part.values, "key"),
        counter: text(&part.values, "counter"),
        door: Door::new((kind.instances)(&part.values)),
        values: own(&part.values, kind.keys),
    })
}

fn stream(
    written: &HashSet<&str>,
    part: &Part<crate::stream::Kind>,
    groups: &[GroupSpec],
) -> Option<StreamSpec> {
    let kind = part.kind?;
    let retain = match part.values.get("retain") {
        Some(Value::Duration(age)) => Retain::Age(*age),
        Some(Value::Str(word)) if word == "forever" => Retain::Forever,
        None if !written.contains(part.name.as_str()) => Retain::Forever,
        _ => Retain::Acked,
    };
    Some(StreamSpec {
        name: part.name.as_str().into(),
        kind,
        shards: number(&part.values, "shards"),
        retain,
        max_backlog: part.values.uint("max_backlog"),
        groups: groups.iter().filter(|group| group.from == part.name).cloned().collect(),
        values: own(&part.values, kind.keys),
    })
}

fn group(part: &Part<crate::stream::Kind>) -> GroupSpec {
    let values = &part.values;
    let from = values.str("from").to_owned();
    let history = part.kind.is_none_or(|kind| kind.capabilities.history);
    GroupSpec {
        name: part.name.as_str().into(),
        to: values.str("to").to_owned(),
        members: values.uint("members"),
        latest: values.opt_str("start").map_or(!history, |start| start == "latest"),
        batch: number(values, "batch"),
        lease: duration(values, "lease"),
        attempts: number(values, "attempts"),
        dead: text(values, "dead").unwrap_or_else(|| format!("{from}.dead")),
        ordered: values.bool("ordered"),
        counter: text(values, "counter"),
        values: own(values, part.kind.map_or(&[], |kind| kind.group_keys)),
        from,
    }
}

fn sink(part: &Part<crate::sink::Kind>) -> Option<SinkSpec> {
    let kind = part.kind?;
    Some(SinkSpec { name: part.name.as_str().into(), kind, values: own(&part.values, kind.keys) })
}

fn query(part: &Part<()>) -> QuerySpec {
    QuerySpec {
        name: part.name.as_str().into(),
        path: part.values.str("path").to_owned(),
        sink: part.values.str("sink").to_owned(),
        order: text(&part.values, "order"),
        cache: part
            .values
            .opt_table("cache")
            .map(|cache| Cache { url: cache.str("url").to_owned(), ttl: duration(cache, "ttl") }),
        timeout: duration(&part.values, "timeout"),
    }
}
