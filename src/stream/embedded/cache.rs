//! Chunks that were appended or read of late, unpacked: a group that keeps up never reads from
//! the disk, and a small batch does not unpack a whole chunk again.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::Event;

/// Chunks in the cache, at most.
const CHUNKS: usize = 1024;
/// Bytes in the cache, at most, beside its newest chunk.
const BYTES: usize = 4 * 1024 * 1024;

/// Events that follow each other in a shard.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// The offset of the first.
    pub first: u64,
    /// The events.
    pub events: Arc<[Event]>,
}

impl Chunk {
    /// The offset after the last.
    pub fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

/// The chunks, oldest first.
#[derive(Debug, Default)]
pub(super) struct Cache {
    generation: u64,
    chunks: VecDeque<(i64, u32, Chunk, usize)>,
    bytes: usize,
}

impl Cache {
    /// The chunk that holds this offset of a stream's shard.
    pub fn get(&self, stream: i64, shard: u32, offset: u64) -> Option<Chunk> {
        let holds = |chunk: &Chunk| (chunk.first..chunk.end()).contains(&offset);
        self.chunks
            .iter()
            .rev()
            .find(|(of, at, chunk, _)| *of == stream && *at == shard && holds(chunk))
            .map(|(_, _, chunk, _)| chunk.clone())
    }

    /// Keeps a chunk, until newer ones push it out. One of an earlier opening of the file is not
    /// kept: by now another may stand in its place.
    pub fn put(&mut self, generation: u64, stream: i64, shard: u32, chunk: Chunk) {
        if generation != self.generation {
            return;
        }
        let bytes = chunk.events.iter().map(Event::size).sum();
        self.bytes += bytes;
        self.chunks.push_back((stream, shard, chunk, bytes));
        while self.chunks.len() > CHUNKS || (self.bytes > BYTES && self.chunks.len() > 1) {
            let Some((.., bytes)) = self.chunks.pop_front() else { break };
            self.bytes -= bytes;
        }
    }

    /// Forgets all of them: the file is another one.
    pub fn clear(&mut self, generation: u64) {
        *self = Self { generation, ..Self::default() };
    }
}
