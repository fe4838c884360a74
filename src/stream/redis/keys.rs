//! The keys of a stream. What belongs to a shard is in the same slot of a Redis Cluster as the
//! shard, so that one script may touch all of it.

use crate::stream::StreamSpec;

/// The keys of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    /// The Redis stream.
    pub stream: String,
    /// What the keys beside it start with.
    beside: String,
}

impl Shard {
    fn new(stream: String) -> Self {
        // Where the key has a hash tag, it goes on behind it; otherwise the key is the tag.
        let beside = if has_tag(&stream) { stream.clone() } else { format!("{{{stream}}}") };
        Self { stream, beside }
    }

    /// The hash of a source's checkpoint: a position for each slot.
    pub fn checkpoint(&self, origin: &str) -> String {
        format!("{}:checkpoint:{origin}", self.beside)
    }

    /// How many shards the stream has.
    pub fn number(&self) -> String {
        format!("{}:shards", self.beside)
    }

    /// The hash of who owns the shard in an ordered group.
    pub fn owner(&self, group: &str) -> String {
        format!("{}:owner:{group}", self.beside)
    }

    /// The members of a group, by when they were last seen.
    pub fn living(&self, group: &str) -> String {
        format!("{}:members:{group}", self.beside)
    }

    /// What the group's cursor is known by: another text each time that somebody moves it, or that
    /// the group becomes an ordered one, or is one no more. It tells which it is.
    pub fn cursor(&self, group: &str) -> String {
        format!("{}:cursor:{group}", self.beside)
    }

    /// The hash of the dead letters of this name.
    pub fn dead(&self, name: &str) -> String {
        format!("{}:{name}", self.beside)
    }
}

/// The key of a stream, before shards are told apart.
pub(super) fn base(spec: &StreamSpec) -> &str {
    spec.values.opt_str("key").unwrap_or(&spec.name)
}

/// The shards of a stream.
pub(super) fn shards(spec: &StreamSpec) -> Vec<Shard> {
    let key = base(spec);
    match spec.shards.max(1) {
        1 => vec![Shard::new(key.to_owned())],
        shards => (0..shards).map(|shard| Shard::new(format!("{key}:{{{shard}}}"))).collect(),
    }
}

/// The first shard of the same stream, were it one of several, or the only one.
pub(super) fn otherwise(spec: &StreamSpec) -> Shard {
    let key = base(spec);
    match spec.shards.max(1) {
        1 => Shard::new(format!("{key}:{{0}}")),
        _ => Shard::new(key.to_owned()),
    }
}

/// Whether Redis Cluster hashes only a part of the key.
fn has_tag(key: &str) -> bool {
    key.split_once('{').is_some_and(|(_, rest)| rest.find('}').is_some_and(|end| end > 0))
}

/// Whether the key can be a hash tag, or has one.
pub(super) fn is_sound(key: &str) -> bool {
    has_tag(key) || !key.contains(['{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_shard_is_beside_it() {
        for (key, checkpoint) in [
            ("numbers-stream", "{numbers-stream}:checkpoint:input"),
            ("{app}:numbers", "{app}:numbers:checkpoint:input"),
            ("numbers:{3}", "numbers:{3}:checkpoint:input"),
        ] {
            assert!(is_sound(key));
            assert_eq!(Shard::new(key.into()).checkpoint("input"), checkpoint);
        }
        for key in ["a}b", "{}x", "a{b", "{"] {
            assert!(!is_sound(key), "{key}");
        }
    }
}
