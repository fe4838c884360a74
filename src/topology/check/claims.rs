//! What no two components may share: names, ports, routes, counters, origins, tables and files.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::{Draft, Findings};
use crate::spec::text::shown;
use crate::spec::{Key, Room, Ty};
use crate::topology::{Topology, is_database, plain_path, promise, same_file};

/// Paths that are always served.
const RESERVED: [&str; 7] =
    ["/", "/livez", "/healthz", "/readyz", "/metrics", "/streams", "/openapi.json"];

/// What can be told from the values alone.
pub(super) fn check(draft: &Draft, findings: &mut Findings) {
    for sink in &draft.sinks {
        if draft.stream(&sink.name).is_some() {
            let message = format!(
                "`{0}` names a stream and a sink (a group's `to = \"{0}\"` could mean either: \
                 rename one)",
                shown(&sink.name)
            );
            findings.fault_at_key(&["sink", &sink.name], message);
        }
    }
    ports(draft, findings);
    routes(draft, findings);
    counters(draft, findings);
    origins(draft, findings);
}

fn ports(draft: &Draft, findings: &mut Findings) {
    let Some(http) = &draft.http else { return };
    let (Some(listen), Some(admin)) = (http.opt_str("listen"), http.opt_str("admin")) else {
        return;
    };
    let split = |address: &str| {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        (host.to_ascii_lowercase(), port.parse::<u16>().unwrap_or_default())
    };
    let ((host, port), (admin_host, admin_port)) = (split(listen), split(admin));
    let all = |host: &str| matches!(host, "0.0.0.0" | "[::]");
    // Port 0 is a free one each time.
    if port == admin_port && port != 0 && (host == admin_host || all(&host) || all(&admin_host)) {
        let message = format!(
            "`admin = \"{admin}\"` takes the port of `listen = \"{listen}\"` (another one)"
        );
        findings.fault(&["http", "admin"], message);
    }
}

/// Sources and queries each have a path of their own.
fn routes(draft: &Draft, findings: &mut Findings) {
    let mut all: Vec<(String, [&str; 3])> = Vec::new();
    for source in &draft.sources {
        let routes = source.kind.iter().flat_map(|kind| kind.keys);
        for key in routes.filter(|key| matches!(key.ty, Ty::Route)) {
            if let Some(route) = source.values.opt_str(key.name) {
                all.push((route.to_owned(), source.path(Room::Source, key.name)));
            }
        }
    }
    for query in &draft.queries {
        if let Some(route) = query.values.opt_str("path") {
            all.push((route.to_owned(), query.path(Room::Query, "path")));
        }
    }
    let triggers = draft.sources.iter().any(|part| part.values.opt_str("trigger") == Some("http"));
    let mut taken: HashMap<&str, &[&str; 3]> = HashMap::new();
    for (route, path) in &all {
        let api = route == "/api" || route.starts_with("/api/");
        let publish = route == "/publish" || route.starts_with("/publish/");
        if RESERVED.contains(&route.as_str()) || api {
            let message = format!(
                "`{} = \"{route}\"` is always served by aqueduct itself (none of `/`, `/livez`, \
                 `/healthz`, `/readyz`, `/metrics`, `/streams`, `/openapi.json`, \
                 `/api/…`)",
                path[2]
            );
            findings.fault(path, message);
        } else if publish && triggers {
            let message = format!(
                "`{} = \"{route}\"` is where sources with `trigger = \"http\"` are triggered \
                 (another path)",
                path[2]
            );
            findings.fault(path, message);
        } else if let Some(first) = taken.insert(route, path) {
            let message = format!(
                "`{} = \"{route}\"` is the path of `{}.{}` already (a path for each)",
                path[2], first[0], first[1]
            );
            findings.fault(path, message);
        }
    }
}

/// A counter's name is exposed once; `_total` is part of it whether written or not.
fn counters(draft: &Draft, findings: &mut Findings) {
    let sources =
        draft.sources.iter().map(|part| (&part.values, part.path(Room::Source, "counter")));
    let groups = draft.groups.iter().map(|part| (&part.values, part.path(Room::Group, "counter")));
    let mut taken: HashMap<&str, [&str; 3]> = HashMap::new();
    for (values, path) in sources.chain(groups) {
        let Some(counter) = values.opt_str("counter") else { continue };
        let bare = counter.strip_suffix("_total").unwrap_or(counter);
        if bare.starts_with("aqueduct_") {
            let message = format!(
                "`counter = \"{}\"` could be one of aqueduct's own (a name that does not start \
                 with `aqueduct_`)",
                shown(counter)
            );
            findings.fault(&path, message);
        } else if let Some(first) = taken.insert(bare, path) {
            let message = format!(
                "`counter = \"{}\"` is the counter of `{}.{}` already (a name for each)",
                shown(counter),
                first[0],
                first[1]
            );
            findings.fault(&path, message);
        }
    }
}

/// Ids and checkpoints of sources of one kind are filed under their origins.
fn origins(draft: &Draft, findings: &mut Findings) {
    let mut taken: HashMap<(&str, &str), &str> = HashMap::new();
    for source in &draft.sources {
        let Some(kind) = source.kind else { continue };
        let origin = source.values.opt_str("origin").unwrap_or(&source.name);
        let Some(first) = taken.insert((kind.name, origin), &source.name) else { continue };
        let message = format!(
            "the origin `{0}` of `source.{1}` is that of `source.{2}` already, and their events \
             would be taken for the same (an `origin` for each, such as `\"{0}-{1}\"`)",
            shown(origin),
            shown(&source.name),
            shown(first)
        );
        findings.fault(&source.path(Room::Source, "origin"), message);
    }
}

/// Who takes something.
struct Taker<'a> {
    room: Room,
    name: &'a str,
    /// The key that says so, where one does.
    key: Option<&'static str>,
    /// The stream whose other groups may take it as well.
    shared: Option<&'a str>,
}

impl Taker<'_> {
    fn path(&self) -> Vec<&str> {
        [self.room.noun(), self.name].into_iter().chain(self.key).collect()
    }
}

/// What the kinds say they take for themselves, and files that would feed themselves.
pub(super) fn kinds(draft: &Draft, topology: &Topology, findings: &mut Findings) {
    let mut taken: HashMap<(&str, String), Taker> = HashMap::new();
    let mut faulty: HashSet<Vec<String>> = HashSet::new();
    for (kind, what, taker) in takers(draft, topology) {
        let Some(first) = taken.get(&(kind, what.clone())) else {
            taken.insert((kind, what), taker);
            continue;
        };
        let owned = |path: Vec<&str>| path.into_iter().map(str::to_owned).collect();
        let shared = taker.shared.is_some() && taker.shared == first.shared;
        // Of what comes with one key (a queue for each shard), one is said.
        if shared || !faulty.insert(owned(taker.path())) {
            continue;
        }
        let message = format!(
            "`{}.{}` and `{}.{}` both take {} (one for each)",
            taker.room.noun(),
            taker.name,
            first.room.noun(),
            first.name,
            shown(&what)
        );
        findings.fault(&taker.path(), message);
    }
    files(topology, findings);
    circles(topology, findings);
}

/// What is taken, by components that could be read.
fn takers<'a>(draft: &Draft, topology: &'a Topology) -> Vec<(&'static str, String, Taker<'a>)> {
    let mut takers = Vec::new();
    let sound = |name: &str| draft.stream(name).is_some_and(|part| part.sound);
    for stream in topology.streams.iter().filter(|stream| sound(&stream.name)) {
        for claim in (stream.kind.claims)(stream) {
            let group = claim.group.as_ref().and_then(|(name, key)| {
                let known = stream.groups.iter().find(|group| group.name == *name)?;
                Some((Room::Group, &*known.name, Some(*key)))
            });
            let (room, name, key) = group.unwrap_or((Room::Stream, &stream.name, None));
            let shared = claim.shared.then_some(&*stream.name);
            takers.push((stream.kind.name, claim.what, Taker { room, name, key, shared }));
        }
    }
    let sound = |name: &str| draft.sink(name).is_some_and(|part| part.sound);
    for sink in topology.sinks.iter().filter(|sink| sound(&sink.name)) {
        if let Some(what) = (sink.kind.claims)(&sink.values) {
            let taker = Taker { room: Room::Sink, name: &sink.name, key: None, shared: None };
            takers.push((sink.kind.name, what, taker));
        }
    }
    takers
}

/// One file written by components of two kinds. Only databases can share one.
fn files(topology: &Topology, findings: &mut Findings) {
    let paths = |keys: &'static [Key]| keys.iter().filter(|key| matches!(key.ty, Ty::Path));
    let mut all = Vec::new();
    for stream in &topology.streams {
        for key in paths(stream.kind.keys) {
            let path = stream.values.opt_path(key.name);
            all.extend(path.map(|path| (path, Room::Stream, &stream.name, key.name, true)));
        }
    }
    for sink in &topology.sinks {
        for key in paths(sink.kind.keys) {
            let (path, shares) = (sink.values.opt_path(key.name), is_database(sink.kind));
            all.extend(path.map(|path| (path, Room::Sink, &sink.name, key.name, shares)));
        }
    }
    let mut taken: HashMap<PathBuf, (Room, &str, bool)> = HashMap::new();
    for (path, room, name, key, shares) in &all {
        let Some((first_room, first, first_shares)) = taken.get(&plain_path(path)) else {
            taken.insert(plain_path(path), (*room, name, *shares));
            continue;
        };
        if shares == first_shares {
            continue;
        }
        let message = format!(
            "`{}.{name}` and `{}.{first}` both write the file {} (one for each)",
            room.noun(),
            first_room.noun(),
            shown(&path.to_string_lossy())
        );
        findings.fault(&[room.noun(), name, key], message);
    }
}

/// A source that reads the file which its own events are written to.
fn circles(topology: &Topology, findings: &mut Findings) {
    for source in &topology.sources {
        let pattern = (source.kind.keys.iter())
            .find(|key| matches!(key.ty, Ty::Path))
            .and_then(|key| Some((key.name, source.values.opt_str(key.name)?)));
        let Some((key, pattern)) = pattern else { continue };
        for sink in promise::reached(topology, &source.to) {
            let files = sink.kind.keys.iter().filter(|key| matches!(key.ty, Ty::Path));
            let mut files = files.filter_map(|key| sink.values.opt_str(key.name));
            if files.any(|file| same_file(pattern, file)) {
                let message = format!(
                    "`source.{}` reads what `sink.{}` writes, so its events would come back to it \
                     for ever (another file)",
                    source.name, sink.name
                );
                findings.fault(&["source", &source.name, key], message);
            }
        }
    }
}
