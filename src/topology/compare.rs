//! What an edit changes: one running component beside the one that is to be.

use super::{Fault, Faults, Topology};
use crate::sink::SinkSpec;
use crate::source::SourceSpec;
use crate::spec::Room;
use crate::stream::{GroupSpec, StreamSpec};

/// Whether two sources are the same, but for where their requests come in.
pub fn same_source(a: &SourceSpec, b: &SourceSpec) -> bool {
    a.name == b.name
        && a.kind.name == b.kind.name
        && a.to == b.to
        && a.origin == b.origin
        && a.key == b.key
        && a.counter == b.counter
        && a.values == b.values
}

/// A source that stays as it is keeps its door: its actor stands behind that one.
pub fn keep_doors(old: &Topology, new: &mut Topology) {
    for source in &mut new.sources {
        let before = old.sources.iter().find(|before| same_source(before, source));
        if let Some(before) = before {
            source.door = before.door.clone();
        }
    }
}

/// Whether two sinks are the same.
pub fn same_sink(a: &SinkSpec, b: &SinkSpec) -> bool {
    a.name == b.name && a.kind.name == b.kind.name && a.values == b.values
}

/// Whether two groups are the same, but for the number of their members.
pub fn same_group(a: &GroupSpec, b: &GroupSpec) -> bool {
    GroupSpec { members: 0, ..a.clone() } == GroupSpec { members: 0, ..b.clone() }
}

/// Whether two streams are the same, but for their groups.
pub fn same_stream(a: &StreamSpec, b: &StreamSpec) -> bool {
    a.name == b.name
        && a.kind.name == b.kind.name
        && a.shards == b.shards
        && a.retain == b.retain
        && a.max_backlog == b.max_backlog
        && a.values == b.values
}

/// Whether whoever opens two streams makes the same groups there.
pub fn same_groups(a: &StreamSpec, b: &StreamSpec) -> bool {
    let made = |group: &GroupSpec| {
        (group.name.clone(), group.latest, group.dead.clone(), group.values.clone())
    };
    a.groups.iter().map(made).eq(b.groups.iter().map(made))
}

/// Whether events of one stream are found in the other: they are one place, read in one way.
pub fn same_place(a: &StreamSpec, b: &StreamSpec) -> bool {
    let others = |spec: &StreamSpec| {
        let own = spec.values.iter().filter(|(key, _)| *key != "url" && *key != "queue_type");
        own.map(|(key, value)| (key, value.clone())).collect::<Vec<_>>()
    };
    a.kind.name == b.kind.name
        && a.shards == b.shards
        && (a.kind.place)(a) == (b.kind.place)(b)
        && others(a) == others(b)
}

/// A group that reads another place after the edit: what waits for it at the old one would stay
/// behind there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The group.
    pub group: String,
    /// The stream it reads now.
    pub stream: String,
    /// The key of the edit that says so: a stream's, or the group's own.
    pub at: (Room, String),
}

/// The groups of `old` that `new` has read another place.
pub fn leaving(old: &Topology, new: &Topology) -> Vec<Leaving> {
    let leaves = |group: &GroupSpec| {
        let to_be = new.groups.iter().find(|it| it.name == group.name)?;
        let (before, after) = (old.stream(&group.from)?, new.stream(&to_be.from)?);
        let stays = same_place(before, after) && group.values == to_be.values;
        let at = match group.from == to_be.from && group.values == to_be.values {
            true => (Room::Stream, to_be.from.clone()),
            false => (Room::Group, group.name.to_string()),
        };
        let (group, stream) = (group.name.to_string(), group.from.clone());
        (!stays).then_some(Leaving { group, stream, at })
    };
    old.groups.iter().filter_map(leaves).collect()
}

/// Errs where an edit gives a stream another number of shards that is `in_use`: then other programs
/// may be at work on it by the old number, and what this one has in hand went by it.
pub fn same_shards(
    old: &Topology,
    new: &Topology,
    in_use: impl Fn(&str) -> bool,
) -> Result<(), Faults> {
    for stream in &new.streams {
        let Some(before) = old.stream(&stream.name) else { continue };
        let is_place = before.kind.name == stream.kind.name
            && (before.kind.place)(before) == (stream.kind.place)(stream);
        if is_place && before.shards != stream.shards && in_use(&stream.name) {
            let message = format!(
                "stream {} is in use with {} shards, and their number cannot change meanwhile: a \
                 key's events would be in two (stop, run the file as it was with --until-idle, and \
                 start with this one)",
                stream.name, before.shards
            );
            return Err(new.fault(Room::Stream, &stream.name, "shards", message));
        }
    }
    Ok(())
}

/// What an edit asks for that only a start can do: faults, and what is merely said.
pub fn at_start_only(old: &Topology, new: &Topology) -> Result<Vec<Fault>, Faults> {
    let (was, wanted) = (&old.runtime, &new.runtime);
    if was.data_dir != wanted.data_dir {
        return Err(new.fault_at(
            &["runtime", "data_dir"],
            format!(
                "the data directory cannot change while the process runs: it holds streams and what \
                 sources remember (stop, move {} to {}, and start)",
                was.data_dir.display(),
                wanted.data_dir.display()
            ),
        ));
    }
    let mut said = Vec::new();
    let mut say = |key: &str, differs: bool| {
        if differs {
            let message = format!("`{key}` takes effect at the next start (the rest is applied)");
            said.extend(new.fault_at(&["runtime", key], message).faults);
        }
    };
    say("instance", was.instance != wanted.instance);
    say("threads", was.threads != wanted.threads);
    say("log_format", was.log_json != wanted.log_json);
    Ok(said)
}
