//! What components ask of each other: names that exist, no circles, and only what a kind can do.

use std::collections::{HashMap, VecDeque};

use super::{Draft, Findings, Part};
use crate::spec::text::{did_you_mean, listed, shown};
use crate::spec::{Key, Room, Ty, Value, Values};
use crate::topology::tables;
use crate::topology::{is_database, needs_http};

/// Checks everything between components but what they must not share.
pub(super) fn check(draft: &Draft, findings: &mut Findings) {
    references(draft, findings);
    cycles(draft, findings);
    for group in &draft.groups {
        group_asks(draft, group, findings);
    }
    streams(draft, findings);
    http(draft, findings);
    for query in &draft.queries {
        let sink = draft.sink(query.values.str("sink"));
        let Some((sink, kind)) = sink.and_then(|sink| Some((sink, sink.kind?))) else { continue };
        if !is_database(kind) {
            let readable = draft.sinks.iter().filter(|sink| sink.kind.is_some_and(is_database));
            let message = format!(
                "`sink = \"{}\"` is a `{}`, which cannot be read back (a database sink; this file \
                 has {})",
                sink.name,
                kind.name,
                listed(readable.map(|sink| sink.name.as_str()), "and")
            );
            findings.fault(&query.path(Room::Query, "sink"), message);
        }
    }
    let (delivered, queried) = (draft.written(), draft.queried());
    for sink in &draft.sinks {
        let name = sink.name.as_str();
        if !delivered.contains(name) && !queried.contains(name) {
            let message = format!("no group delivers to `sink.{}`", shown(&sink.name));
            findings.warn(&["sink", &sink.name], message);
        }
    }
}

/// Every key that names another component.
fn references(draft: &Draft, findings: &mut Findings) {
    fn of<K>(
        draft: &Draft,
        room: Room,
        parts: &[Part<K>],
        own: impl Fn(&'static K) -> &'static [Key],
        findings: &mut Findings,
    ) {
        for part in parts {
            let own = part.kind.map_or(&[][..], &own);
            for key in tables::common(room).iter().chain(own) {
                if let (Ty::Ref(wanted), Some(name)) = (key.ty, part.values.opt_str(key.name)) {
                    reference(draft, wanted, key, name, &part.path(room, key.name), findings);
                }
            }
        }
    }
    of(draft, Room::Source, &draft.sources, |kind| kind.keys, findings);
    of(draft, Room::Stream, &draft.streams, |kind| kind.keys, findings);
    of(draft, Room::Group, &draft.groups, |kind| kind.group_keys, findings);
    of(draft, Room::Sink, &draft.sinks, |kind| kind.keys, findings);
    of(draft, Room::Query, &draft.queries, |()| &[], findings);
}

fn reference(
    draft: &Draft,
    wanted: Room,
    key: &Key,
    name: &str,
    path: &[&str; 3],
    findings: &mut Findings,
) {
    if draft.has(wanted, name) {
        return;
    }
    let known = draft.names(wanted);
    let allowed = match wanted {
        Room::SinkOrStream => format!(
            "sinks: {}; streams: {}",
            listed(draft.names(Room::Sink), "and"),
            listed(draft.names(Room::Stream), "and")
        ),
        _ => format!("{}s: {}", wanted.noun(), listed(known.iter().copied(), "and")),
    };
    let elsewhere = Room::TABLES.into_iter().find(|room| draft.has(*room, name));
    let message = match elsewhere {
        Some(other) => format!(
            "`{} = \"{name}\"` names a {}, and a {} stands here ({allowed})",
            key.name,
            other.noun(),
            wanted.noun()
        ),
        None => format!(
            "`{} = \"{}\"` names no {} of this file ({allowed}){}",
            key.name,
            shown(name),
            wanted.noun(),
            did_you_mean(name, known.iter().copied())
        ),
    };
    findings.fault(path, message);
}

/// Streams that groups carry round in a circle: each circle is said once, at the group that comes
/// first in the file.
fn cycles(draft: &Draft, findings: &mut Findings) {
    let index: HashMap<&str, usize> =
        draft.streams.iter().enumerate().map(|(i, part)| (part.name.as_str(), i)).collect();
    let at = |values: &Values, key: &str| index.get(values.str(key)).copied();
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); draft.streams.len()];
    let mut edges = Vec::new();
    for group in &draft.groups {
        if let Some((from, to)) = at(&group.values, "from").zip(at(&group.values, "to")) {
            next[from].push(to);
            edges.push((from, to, group));
        }
    }
    let mut done = without_way_back(&next);
    for (from, to, group) in edges {
        if done[from] || done[to] {
            continue;
        }
        let Some(way) = way(&next, to, from) else { continue };
        let streams = || std::iter::once(from).chain(way.iter().copied());
        streams().for_each(|stream| done[stream] = true);
        let names: Vec<String> = streams().map(|at| shown(&draft.streams[at].name)).collect();
        let message = format!(
            "events would go in a circle: {} (no way may lead back to where it came from)",
            names.join(" → ")
        );
        findings.fault(&group.path(Room::Group, "to"), message);
    }
}

/// Streams that cannot be part of a circle: everything that flows into them is such a stream too.
fn without_way_back(next: &[Vec<usize>]) -> Vec<bool> {
    let mut inflows = vec![0; next.len()];
    next.iter().flatten().for_each(|to| inflows[*to] += 1);
    let mut ready: Vec<usize> = (0..next.len()).filter(|stream| inflows[*stream] == 0).collect();
    let mut out = vec![false; next.len()];
    while let Some(stream) = ready.pop() {
        out[stream] = true;
        for to in &next[stream] {
            inflows[*to] -= 1;
            if inflows[*to] == 0 {
                ready.push(*to);
            }
        }
    }
    out
}

/// The shortest way from one stream to another, both included.
fn way(next: &[Vec<usize>], start: usize, end: usize) -> Option<Vec<usize>> {
    let mut came_from: Vec<Option<usize>> = vec![None; next.len()];
    let mut seen = vec![false; next.len()];
    let mut queue = VecDeque::from([start]);
    seen[start] = true;
    while let Some(at) = queue.pop_front() {
        if at == end {
            let back = std::iter::successors(Some(end), |at| came_from[*at]);
            let mut way: Vec<usize> = back.collect();
            way.reverse();
            return Some(way);
        }
        for to in &next[at] {
            if !std::mem::replace(&mut seen[*to], true) {
                came_from[*to] = Some(at);
                queue.push_back(*to);
            }
        }
    }
    None
}

/// What a group asks of its stream and its sink.
fn group_asks(draft: &Draft, group: &Part<crate::stream::Kind>, findings: &mut Findings) {
    let values = &group.values;
    let Some(kind) = group.kind else { return };
    if values.opt_str("start") == Some("earliest") && !kind.capabilities.history {
        let message = format!(
            "`start = \"earliest\"` on `{}`, a `{}` stream, which keeps no history (`\"latest\"`)",
            values.str("from"),
            kind.name
        );
        findings.fault(&group.path(Room::Group, "start"), message);
    }
    if !values.bool("ordered") {
        return;
    }
    let path = group.path(Room::Group, "ordered");
    if !kind.capabilities.ordered {
        let able = draft.kinds.streams.iter().filter(|kind| kind.capabilities.ordered);
        let message = format!(
            "`ordered = true` on `{}`, a `{}` stream, which cannot keep one member at a time per \
             shard (kinds that can: {})",
            values.str("from"),
            kind.name,
            listed(able.map(|kind| kind.name), "and")
        );
        findings.fault(&path, message);
    }
    if let Some(sink) = draft.sink(values.str("to"))
        && let Some(sink_kind) = sink.kind
        && !sink_kind.capabilities.fencing
    {
        let able = draft.kinds.sinks.iter().filter(|kind| kind.capabilities.fencing);
        let message = format!(
            "`ordered = true` into `{}`, a `{}` sink, which cannot turn away a member that lost \
             its shard (kinds that can: {})",
            sink.name,
            sink_kind.name,
            listed(able.map(|kind| kind.name), "and")
        );
        findings.fault(&path, message);
    }
    if draft.stream(values.str("to")).is_some() {
        let able = draft.kinds.sinks.iter().filter(|kind| kind.capabilities.fencing);
        let message = format!(
            "`ordered = true` into `{}`, a stream, which cannot turn away a member that lost its \
             shard (a sink of a kind that can: {})",
            values.str("to"),
            listed(able.map(|kind| kind.name), "and")
        );
        findings.fault(&path, message);
    }
    let shards = draft.stream(values.str("from")).map_or(1, |stream| stream.values.uint("shards"));
    if values.uint("members") > shards.max(1) {
        let message = format!(
            "`group.{}` has {} members, and as an ordered group only one for each of the {shards} \
             shards of `{}` can work at a time",
            group.name,
            values.uint("members"),
            values.str("from")
        );
        findings.warn(&group.path(Room::Group, "members"), message);
    }
}

/// What streams ask of their kind, and whether anything happens on them.
fn streams(draft: &Draft, findings: &mut Findings) {
    let (written, read) = (draft.written(), draft.read());
    for stream in &draft.streams {
        let name = stream.name.as_str();
        if let Some(kind) = stream.kind {
            if stream.values.uint("shards") > 1 && !kind.capabilities.shards {
                let message = format!(
                    "`shards = {}` on a `{}` stream, which has no shards (1)",
                    stream.values.uint("shards"),
                    kind.name
                );
                findings.fault(&stream.path(Room::Stream, "shards"), message);
            }
            if stream.values.get("retain").is_some() && !kind.capabilities.history {
                let message = format!(
                    "`retain` on a `{}` stream, which keeps no history (leave the key out)",
                    kind.name
                );
                findings.fault(&stream.path(Room::Stream, "retain"), message);
            }
        }
        if !written.contains(name) && !read.contains(name) {
            let message = format!(
                "nothing of this file writes `stream.{}` and no group reads it",
                shown(name)
            );
            findings.warn(&["stream", name], message);
        }
    }
}

/// What is reached over HTTP needs something that listens.
fn http(draft: &Draft, findings: &mut Findings) {
    let Some(http) = &draft.http else {
        for source in &draft.sources {
            if let Some(kind) = source.kind
                && let Some(key) = needs_http(kind, &source.values)
            {
                let what = match source.values.get(key) {
                    Some(Value::Str(_)) if key == "trigger" => "is triggered over HTTP",
                    _ => "takes its events over HTTP",
                };
                let message = format!(
                    "`source.{}` {what}, and nothing listens (a table `[http]`)",
                    shown(&source.name)
                );
                findings.fault(&source.path(Room::Source, key), message);
            }
        }
        for query in &draft.queries {
            let message = format!(
                "`query.{}` is served over HTTP, and nothing listens (a table `[http]`)",
                shown(&query.name)
            );
            findings.fault(&query.path(Room::Query, "path"), message);
        }
        return;
    };
    for key in ["listen", "admin"] {
        let Some(address) = http.opt_str(key).filter(|address| !is_loopback(address)) else {
            continue;
        };
        if http.get("token").is_none() {
            let message = format!(
                "`{key} = \"{address}\"` can be reached from other machines, and without a \
                 `token` anybody there may change things and see events"
            );
            findings.warn(&["http", key], message);
        }
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}
