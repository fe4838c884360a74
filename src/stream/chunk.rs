//! How a SQL backend keeps events: many in one row, as one compact blob. A chunk does not know its
//! place in the stream; the row does.
//!
//! ```text
//! version u8 · events u32 · start of the bodies u32
//!         · names · a record for each event · bodies · xxh3 u64
//! name:   length, UTF-8                       (sources and groups, each once a chunk)
//! record: flags u8 · id [16] · source's name · time, as the step from the event before
//!         · body's length · [key] · [trace] · [group's name] · [kind] · [shard]
//! ```
//! A chunk whose events have neither kind nor shard is of version 1, which has no such records.
//! Fixed numbers are little endian, all others LEB128 (signed ones zigzag).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;

use crate::event::{Event, EventId, hash};

/// Events in one chunk, at most.
pub const CHUNK_EVENTS: usize = 1000;
/// Bytes in one chunk ([`Event::size`]), at most; a larger event is a chunk alone.
pub const CHUNK_BYTES: usize = 256 * 1024;

const VERSION: u8 = 2;
/// Without kinds and shards, as programs before version 2 read it.
const VERSION_1: u8 = 1;
const HEADER: usize = 1 + 4 + 4;
/// Bytes of the checksum that ends a chunk.
pub const CHECKSUM: usize = 8;

const KEY: u8 = 1;
const TRACE: u8 = 2;
const ONLY_GROUP: u8 = 4;
const KIND: u8 = 8;
const SHARD: u8 = 16;

/// Cuts `events` into runs that each fit a chunk, in order.
pub fn runs(events: &[&Event]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, event) in events.iter().enumerate() {
        let full = index - start == CHUNK_EVENTS || bytes + event.size() > CHUNK_BYTES;
        if full && index > start {
            runs.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += event.size();
    }
    if start < events.len() {
        runs.push(start..events.len());
    }
    runs
}

/// Packs `events`, in order. Errs where they would take 4 GiB or more.
pub fn encode(events: &[&Event]) -> Result<Vec<u8>> {
    let mut names = Names::default();
    let mut records = Vec::with_capacity(events.len() * 24);
    let mut time_us = 0;
    let mut version = VERSION_1;
    for event in events {
        let flags = if event.key.is_some() { KEY } else { 0 }
            | if event.trace.is_some() { TRACE } else { 0 }
            | if event.only_group.is_some() { ONLY_GROUP } else { 0 }
            | if event.kind.is_some() { KIND } else { 0 }
            | if event.shard.is_some() { SHARD } else { 0 };
        records.push(flags);
        if flags & (KIND | SHARD) != 0 {
            version = VERSION;
        }
        records.extend_from_slice(&event.id.to_bytes());
        put_uint(&mut records, names.index(&event.source));
        put_uint(&mut records, zigzag(event.time_us.wrapping_sub(time_us)));
        time_us = event.time_us;
        put_uint(&mut records, event.body.len() as u64);
        for text in [&event.key, &event.trace].into_iter().flatten() {
            put_text(&mut records, text);
        }
        if let Some(group) = &event.only_group {
            put_uint(&mut records, names.index(group));
        }
        if let Some(kind) = &event.kind {
            put_text(&mut records, kind);
        }
        if let Some(shard) = event.shard {
            put_uint(&mut records, shard.into());
        }
    }
    let bodies: usize = events.iter().map(|event| event.body.len()).sum();
    let mut chunk = Vec::with_capacity(HEADER + records.len() + 256 + bodies + CHECKSUM);
    chunk.push(version);
    chunk.extend_from_slice(&u32::try_from(events.len())?.to_le_bytes());
    chunk.extend_from_slice(&[0; 4]);
    put_uint(&mut chunk, names.list.len() as u64);
    for name in &names.list {
        put_text(&mut chunk, name);
    }
    chunk.extend_from_slice(&records);
    let start = u32::try_from(chunk.len()).context("a chunk's records take more than 4 GiB")?;
    chunk[5..9].copy_from_slice(&start.to_le_bytes());
    for event in events {
        chunk.extend_from_slice(&event.body);
    }
    let sum = hash(&chunk);
    chunk.extend_from_slice(&sum.to_le_bytes());
    Ok(chunk)
}

/// The checksum that ends a packed chunk: two chunks with the same one are the same.
pub fn sum(chunk: &[u8]) -> [u8; CHECKSUM] {
    chunk.last_chunk().copied().unwrap_or_default()
}

/// Unpacks a chunk. The bodies are slices of `chunk`. Errs where the bytes are not what
/// [`encode`] of a known version made.
pub fn decode(chunk: &Bytes) -> Result<Vec<Event>> {
    let version = chunk.first().copied().unwrap_or_default();
    ensure!(
        (VERSION_1..=VERSION).contains(&version),
        "a chunk of version {version} (this program reads versions {VERSION_1} to {VERSION})"
    );
    ensure!(chunk.len() >= HEADER + CHECKSUM, "a chunk of {} bytes is cut short", chunk.len());
    let end = chunk.len() - CHECKSUM;
    ensure!(
        hash(&chunk[..end]).to_le_bytes() == chunk[end..],
        "a chunk of {} bytes does not match its checksum: the storage has changed it",
        chunk.len()
    );
    parse(chunk, end).context("a malformed chunk")
}

fn parse(chunk: &Bytes, end: usize) -> Result<Vec<Event>> {
    let fixed =
        |at: usize| u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]]);
    let (count, mut body) = (fixed(1) as usize, fixed(5) as usize);
    ensure!((HEADER..=end).contains(&body), "its bodies start outside of it");
    let mut take = Take(&chunk[HEADER..body]);
    let names = (0..take.uint()?)
        .map(|_| Ok(Arc::from(take.text()?)))
        .collect::<Result<Vec<Arc<str>>>>()?;
    let name = |index: u64| {
        let found = usize::try_from(index).ok().and_then(|index| names.get(index));
        found.cloned().ok_or_else(|| anyhow!("it has no name {index}"))
    };
    let mut events = Vec::with_capacity(count.min(take.0.len() / 18));
    let mut time_us = 0i64;
    for _ in 0..count {
        let flags = take.bytes(1)?[0];
        let id = take.array()?;
        let source = name(take.uint()?)?;
        time_us = time_us.wrapping_add(unzigzag(take.uint()?));
        let length = take.length()?;
        ensure!(length <= end - body, "a body reaches past its end");
        let mut event =
            Event::new(EventId::from_bytes(id), chunk.slice(body..body + length), source, time_us);
        body += length;
        if flags & KEY != 0 {
            event.key = Some(take.text()?.into());
        }
        if flags & TRACE != 0 {
            event.trace = Some(take.text()?.into());
        }
        if flags & ONLY_GROUP != 0 {
            event.only_group = Some(name(take.uint()?)?);
        }
        if flags & KIND != 0 {
            event.kind = Some(take.text()?.into());
        }
        if flags & SHARD != 0 {
            event.shard = Some(u32::try_from(take.uint()?)?);
        }
        events.push(event);
    }
    ensure!(take.0.is_empty() && body == end, "it holds more than its events");
    Ok(events)
}

/// The names of a chunk, in the order of their first use.
#[derive(Default)]
struct Names<'a> {
    list: Vec<&'a str>,
    index: HashMap<&'a str, u64>,
    last: Option<(&'a str, u64)>,
}

impl<'a> Names<'a> {
    fn index(&mut self, name: &'a str) -> u64 {
        // Nearly always the name of the event before.
        if let Some((last, index)) = self.last
            && last == name
        {
            return index;
        }
        let index = *self.index.entry(name).or_insert_with(|| {
            self.list.push(name);
            self.list.len() as u64 - 1
        });
        self.last = Some((name, index));
        index
    }
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn put_uint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    put_uint(to, text.len() as u64);
    to.extend_from_slice(text.as_bytes());
}

/// What is left to read.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("it ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into()?)
    }

    fn uint(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(anyhow!("a number has more than 64 bits"))
    }

    fn length(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.uint()?)?)
    }

    fn text(&mut self) -> Result<&'a str> {
        let length = self.length()?;
        Ok(std::str::from_utf8(self.bytes(length)?)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let text = || proptest::option::of("\\PC{0,20}");
        (
            any::<[u8; 16]>(),
            proptest::collection::vec(any::<u8>(), 0..200),
            "[a-c]",
            any::<i64>(),
            (text(), text(), text(), text(), proptest::option::of(any::<u32>())),
        )
            .prop_map(|(id, body, source, time_us, (key, trace, group, kind, shard))| {
                Event {
                    key: key.map(Into::into),
                    kind: kind.map(Into::into),
                    shard,
                    trace: trace.map(Into::into),
                    only_group: group.map(Into::into),
                    ..Event::new(EventId::from_bytes(id), body.into(), source.into(), time_us)
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(events in proptest::collection::vec(event(), 0..40)) {
            let packed = Bytes::from(encode(&events.iter().collect::<Vec<_>>()).unwrap());
            prop_assert_eq!(decode(&packed).unwrap(), events);
        }

        #[test]
        fn a_damaged_chunk_is_an_error(
            events in proptest::collection::vec(event(), 1..10),
            at in any::<usize>(),
            flip in 1..=255u8,
        ) {
            let mut packed = encode(&events.iter().collect::<Vec<_>>()).unwrap();
            let at = at % packed.len();
            packed[at] ^= flip;
            prop_assert!(decode(&Bytes::from(packed.clone())).is_err());
            packed.truncate(at);
            prop_assert!(decode(&Bytes::from(packed)).is_err());
        }

        // A checksum that fits by itself does not make the rest right.
        #[test]
        fn nonsense_with_a_checksum_is_an_error_and_no_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), HEADER..300),
        ) {
            bytes[0] = VERSION;
            bytes[2..5].fill(0);
            bytes[6..9].fill(0);
            let sum = hash(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            if let Ok(events) = decode(&Bytes::from(bytes.clone())) {
                prop_assert!(events.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_chunk_is_bounded_and_a_big_event_is_one_alone() {
        let make = |length: usize| {
            Event::new(EventId::from_bytes([0; 16]), vec![0; length].into(), "s".into(), 0)
        };
        let small = make(10);
        assert_eq!(runs(&[&small; 2500]), [0..1000, 1000..2000, 2000..2500]);
        let big = make(CHUNK_BYTES * 2);
        assert_eq!(runs(&[&small, &big, &small, &small]), [0..1, 1..2, 2..4]);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn what_needs_no_version_2_is_read_by_programs_before_it() {
        let event = Event::new(EventId::from_bytes([1; 16]), "body".into(), "s".into(), 5);
        let typed = Event { kind: Some("paid".into()), ..event.clone() };
        assert_eq!(encode(&[&event]).unwrap()[0], VERSION_1);
        assert_eq!(encode(&[&event, &typed]).unwrap()[0], VERSION);
    }

    #[test]
    fn bodies_are_not_copied() {
        let event = Event::new(EventId::from_bytes([1; 16]), "body".into(), "s".into(), 5);
        let packed = Bytes::from(encode(&[&event]).unwrap());
        let body = decode(&packed).unwrap().remove(0).body;
        assert!(packed.as_ptr_range().contains(&body.as_ptr()));
    }
}
