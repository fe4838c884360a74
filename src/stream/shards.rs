//! The number of a stream's shards: which shard a key has, and what is said where two programs, or
//! a program and what is there, do not agree on the number. By another number a key would have
//! another shard, and its events no order.

use anyhow::{Error, anyhow};

use super::StreamSpec;
use crate::event::Event;
use crate::spec::text::counted;

/// The shard of an event with this key: XXH3 (64 bits, seed 0) of its UTF-8 bytes, modulo the
/// number of shards. What a stream holds went by it, so it never changes: of 8 shards, the
/// key `user:12345` is in shard 3.
pub fn shard_of(key: &str, shards: u32) -> u32 {
    (crate::event::hash(key.as_bytes()) % u64::from(shards.max(1))) as u32
}

/// The shard that an event asks for, of so many: the one it names, else its key's. `None`: any.
pub fn shard_for(event: &Event, shards: u32) -> Option<u32> {
    let named = event.shard.filter(|named| *named < shards);
    named.or_else(|| event.key.as_deref().map(|key| shard_of(key, shards)))
}

/// Why the number cannot be changed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The group that is the furthest behind.
    Unacked {
        /// Events that it has not acked.
        events: u64,
        /// Its name.
        group: String,
    },
    /// There is no group, so nobody has read these events.
    Unread(u64),
    /// Events that all groups have acked, which a new one would read.
    History(u64),
    /// A member of another process is at work.
    Member(String),
}

/// What is said where the stream has `recorded` shards, which cannot be changed now.
pub(super) fn refusal(spec: &StreamSpec, recorded: u32, held: &Held) -> Error {
    let asked = spec.shards.max(1);
    let (what, way) = match held {
        Held::Unacked { events, group } => (
            format!("holds {} that group `{group}` has not acked", counted(*events, "event")),
            format!(
                "run the old file with --until-idle first; a group that is gone from the file for \
                 good: `aqueduct group drop OLD-FILE {group}`"
            ),
        ),
        Held::Unread(events) => (
            format!("holds {} that no group has read", counted(*events, "event")),
            "run the old file, with a group, with --until-idle first; or give the stream another \
             name"
                .to_owned(),
        ),
        Held::History(events) => (
            format!("keeps {} that its groups have acked", counted(*events, "event")),
            "a new group would read a key out of order: give the stream another name, or let it \
             forget them with `retain = \"acked\"`"
                .to_owned(),
        ),
        Held::Member(member) => (
            format!("member `{member}` is at work on it"),
            "stop what runs with the old number first; one that was killed counts as stopped after \
             10 s"
                .to_owned(),
        ),
    };
    let shards = counted(recorded, "shard");
    anyhow!("stream `{}` has {shards} and {what}; {asked} were asked for ({way})", spec.name)
}

/// What is said where the number never changes. `way` says what to do instead.
pub(super) fn fixed(spec: &StreamSpec, recorded: u32, way: &str) -> Error {
    let (shards, asked) = (counted(recorded, "shard"), spec.shards.max(1));
    anyhow!(
        "stream `{}` has {shards}, for good; {asked} were asked for (run the old file with \
         --until-idle first, then {way})",
        spec.name
    )
}

/// What is said to a program at work where the stream has another number of shards by now.
pub(super) fn changed_meanwhile(spec: &StreamSpec, recorded: u32) -> Error {
    let (shards, asked) = (counted(recorded, "shard"), spec.shards.max(1));
    anyhow!(
        "stream `{}` has {shards} by now, and this program works with {asked} (another one was \
         started with another file: give both the same `shards`, and start this one again)",
        spec.name
    )
}

/// What is said to who only looks, where the stream has another number of shards.
pub(super) fn only_looks(spec: &StreamSpec, recorded: u32) -> Error {
    let (shards, asked) = (counted(recorded, "shard"), spec.shards.max(1));
    anyhow!(
        "stream `{}` has {shards}; {asked} were asked for (`aqueduct run` with this file changes \
         that, and nothing else does; to look before, give the file the number it has)",
        spec.name
    )
}
