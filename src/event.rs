//! What flows: an [`Event`], its [`EventId`], the [`Delivery`] that a group member holds and what
//! a sink has [`Stored`] of a batch.

pub mod trace;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// What the sequence of an origin counts. It is part of the id, so that a sink can tell, from ids
/// alone, which events follow each other without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sequence {
    /// Nothing: the id is a hash of the whole event.
    Hashed = 0,
    /// Bytes of a file: the next event's sequence is this one's plus the body plus a newline.
    Bytes = 1,
    /// Events: the next event's sequence is this one's plus one.
    Count = 2,
}

/// Where a run of events comes from: 46 bits of a hash, and what its sequence counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(u64);

impl Origin {
    /// The origin named by `parts` (each is length-prefixed, so `["ab","c"]` is not `["a","bc"]`).
    pub fn new(counts: Sequence, parts: &[&[u8]]) -> Self {
        Self((hash_parts(parts) & 0xffff_ffff_fffc) | counts as u64)
    }

    /// What the sequence of this origin counts.
    pub fn counts(self) -> Sequence {
        match self.0 & 3 {
            1 => Sequence::Bytes,
            2 => Sequence::Count,
            _ => Sequence::Hashed,
        }
    }

    /// The 48 bits, as they stand in the upper end of an id.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// A UUIDv8 that says where the event comes from, so that it is the same however often the event
/// is made or delivered again: 48 bits [`Origin`], 44 bits sequence in it, 30 bits guard against a
/// different event at the same place. Ids of one origin ascend with the sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(u128);

/// The largest sequence an id can hold (44 bits: 16 TiB of one file).
pub const SEQUENCE_MAX: u64 = (1 << 44) - 1;

impl EventId {
    /// The id of the event at `sequence` in `origin`; of `guard` the lower 30 bits count.
    pub fn new(origin: Origin, sequence: u64, guard: u64) -> Self {
        let sequence = sequence & SEQUENCE_MAX;
        let high = (origin.0 << 16) | 0x8000 | (sequence >> 32);
        let low = (2 << 62) | ((sequence & 0xffff_ffff) << 30) | (guard & 0x3fff_ffff);
        Self((u128::from(high) << 64) | u128::from(low))
    }

    /// The id of an event known by its content alone, hashed whole.
    pub fn hashed(parts: &[&[u8]]) -> Self {
        let mut hash = Xxh3::new();
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let hash = hash.digest128();
        Self::new(
            Origin(((hash >> 80) as u64 & 0xffff_ffff_fffc) | Sequence::Hashed as u64),
            (hash >> 32) as u64,
            hash as u64,
        )
    }

    /// Where the event comes from.
    pub fn origin(self) -> Origin {
        Origin((self.0 >> 80) as u64)
    }

    /// Its place in the origin: a byte offset, a count, or bits of a hash ([`Origin::counts`]).
    pub fn sequence(self) -> u64 {
        let high = (self.0 >> 64) as u64 & 0xfff;
        let low = self.0 as u64 >> 30 & 0xffff_ffff;
        (high << 32) | low
    }

    /// The 30 guard bits.
    pub fn guard(self) -> u32 {
        (self.0 as u32) & 0x3fff_ffff
    }

    /// The 128 bits, big end first: this order is the order of the ids.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id with these 128 bits, whatever made them.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The same as a [`uuid::Uuid`].
    pub fn uuid(self) -> uuid::Uuid {
        uuid::Uuid::from_u128(self.0)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        f.write_str(self.uuid().hyphenated().encode_lower(&mut text))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(uuid::Uuid::parse_str(text)?.as_u128()))
    }
}

/// The stable 64-bit hash behind ids, guards and shards: XXH3 with seed 0.
pub fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// [`hash`] of several parts, each length-prefixed.
pub fn hash_parts(parts: &[&[u8]]) -> u64 {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest()
}

/// One event. A clone shares the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The same however often it is delivered.
    pub id: EventId,
    /// The bytes as they were accepted; usually a slice of the buffer its whole batch shares.
    pub body: Bytes,
    /// The name of the source that made it.
    pub source: Arc<str>,
    /// When it was accepted, in microseconds since 1970 UTC.
    pub time_us: i64,
    /// What picks its shard.
    pub key: Option<Box<str>>,
    /// What kind of thing happened (`"order-paid"`), as whoever published it says.
    pub kind: Option<Box<str>>,
    /// The shard that its producer named, before the key; in a stream that has fewer shards the
    /// key picks one.
    pub shard: Option<u32>,
    /// The W3C `traceparent` it travels with; behind a space the `tracestate`, if there is one
    /// ([`trace`]).
    pub trace: Option<Box<str>>,
    /// Set on a replayed dead letter: only this group is to have it.
    pub only_group: Option<Arc<str>>,
}

impl Event {
    /// An event with an id, a body, a source and a time, and nothing else.
    pub fn new(id: EventId, body: Bytes, source: Arc<str>, time_us: i64) -> Self {
        Self {
            id,
            body,
            source,
            time_us,
            key: None,
            kind: None,
            shard: None,
            trace: None,
            only_group: None,
        }
    }

    /// Its size against the limits that count bytes: the body and what travels with it.
    pub fn size(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        self.body.len() + 64 + text(&self.key) + text(&self.kind)
    }
}

/// Microseconds since 1970 UTC, now.
pub fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

/// What a backend knows a delivery by; only the backend that made it reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The shard.
    pub shard: u32,
    /// A lease's token, a connection's number, or the first half of an entry's id.
    pub hold: u64,
    /// The offset, or the second half of an entry's id.
    pub offset: u64,
}

/// An event in the hands of a group member.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    /// The stream it was read from.
    pub stream: Arc<str>,
    /// What the backend knows it by.
    pub ticket: Ticket,
    /// How often it was handed to a member, this time included. More than once makes it a
    /// suspect, never guilty.
    pub deliveries: u32,
    /// How often it was charged for a delivery of its own that ended badly.
    pub attempts: u32,
    /// In an ordered group: by what right it is this member's.
    pub fence: Option<Arc<Fence>>,
}

/// The ownership of a shard: a sink that has stored something of an owner turns away all owners
/// before it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    /// `STREAM/GROUP/` and what tells these from others of the same names.
    pub group: Arc<str>,
    /// The shard.
    pub shard: u32,
    /// Greater with each owner of the shard, and never again what it was.
    pub epoch: i64,
}

/// Why a sink would not take one event of a batch. All others of the batch are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which event of the batch.
    pub index: usize,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// What became of a batch: what is not named here is stored. Of an ordered group's shard, an event
/// behind a refused one is not stored either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// What the sink would not take.
    pub refusals: Vec<Refusal>,
    /// Events, by their place in the batch, of shards that have a newer owner.
    pub fenced: Vec<usize>,
}

impl From<Vec<Refusal>> for Stored {
    fn from(refusals: Vec<Refusal>) -> Self {
        Self { refusals, fenced: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_gives_back_its_parts_and_ascends() {
        let origin = Origin::new(Sequence::Bytes, &[b"lines", b"file"]);
        let mut last = EventId::new(origin, 0, u64::MAX);
        for sequence in [1, 0xffff_ffff, 0x1_0000_0000, SEQUENCE_MAX] {
            let id = EventId::new(origin, sequence, 7);
            assert_eq!((id.origin(), id.sequence(), id.guard()), (origin, sequence, 7));
            assert_eq!(id.origin().counts(), Sequence::Bytes);
            assert_eq!(id.uuid().get_version_num(), 8);
            assert_eq!(id.uuid().get_variant(), uuid::Variant::RFC4122);
            assert!(id > last);
            assert_eq!(id.to_string().parse::<EventId>(), Ok(id));
            last = id;
        }
    }

    #[test]
    fn parts_are_not_run_together() {
        assert_ne!(EventId::hashed(&[b"ab", b"c"]), EventId::hashed(&[b"a", b"bc"]));
        assert_eq!(EventId::hashed(&[b"a"]).origin().counts(), Sequence::Hashed);
    }
}
