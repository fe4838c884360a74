//! Which node of a Cluster has which key.

use std::sync::Arc;

use redis::Value;

/// Slots of a Cluster.
const SLOTS: u16 = 16384;

/// Which node has which slots.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(Arc<Vec<Range>>);

#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    host: String,
    port: u16,
}

impl Slots {
    /// Reads the answer to `CLUSTER SLOTS` of the node at `asked`. What it cannot read is absent.
    pub fn read(answer: &Value, asked: &str) -> Self {
        let Value::Array(ranges) = answer else { return Self::default() };
        Self(Arc::new(ranges.iter().filter_map(|range| Range::read(range, asked)).collect()))
    }

    /// Host and port of the node that has the key.
    pub fn of(&self, key: &str) -> Option<(&str, u16)> {
        let slot = slot(key.as_bytes());
        let range = self.0.iter().find(|range| (range.first..=range.last).contains(&slot))?;
        Some((&range.host, range.port))
    }
}

impl Range {
    fn read(range: &Value, asked: &str) -> Option<Self> {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(node), ..] = parts.as_slice() else {
            return None;
        };
        let [host, Value::Int(port), ..] = node.as_slice() else { return None };
        // A node that does not know its own name is where it was asked.
        let host = match host {
            Value::BulkString(host) if !host.is_empty() && *host != b"?" => {
                String::from_utf8(host.clone()).ok()?
            }
            _ => asked.to_owned(),
        };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        Some(Self { first, last, host, port: u16::try_from(*port).ok()? })
    }
}

/// The slot of a key: CRC16 (XMODEM) of its hash tag, or of all of it, as the Cluster
/// specification has it.
pub(super) fn slot(key: &[u8]) -> u16 {
    let crc = tag(key).iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 }
        })
    });
    crc % SLOTS
}

/// The part of a key that is hashed: between the first `{` and the next `}`, unless it is empty.
fn tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    match key[open + 1..].iter().position(|byte| *byte == b'}') {
        Some(length) if length > 0 => &key[open + 1..open + 1 + length],
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // As `CLUSTER KEYSLOT` answers.
        for (key, expected) in [
            ("foo", 12182),
            ("numbers-stream", 639),
            ("{foo}:bar", 12182),
            ("{}foo", 9500),
            ("", 0),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn a_node_without_a_name_is_where_it_was_asked() {
        let node = |host: &str, port| {
            Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::Nil])
        };
        let range =
            |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let answer = Value::Array(vec![
            range(0, 9999, node("", 7000)),
            range(10000, 16383, node("b", 7001)),
        ]);
        let slots = Slots::read(&answer, "a");
        assert_eq!(slots.of(""), Some(("a", 7000)));
        assert_eq!(slots.of("foo"), Some(("b", 7001)));
        assert_eq!(Slots::read(&Value::Nil, "a").of("foo"), None);
    }
}
