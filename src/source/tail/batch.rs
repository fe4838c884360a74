//! Makes events of lines, and of lines that are too long what a dead letter needs.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::cursor::Piece;
use super::engine::Settings;
use crate::event::{Event, EventId, Origin, hash, now_us};
use crate::source::{BATCH_BYTES, BATCH_EVENTS, Dead};

/// A batch in the making.
pub(super) struct Out {
    /// Whole lines.
    pub events: Vec<Event>,
    /// Lines past the limit.
    pub dead: Vec<Dead>,
    bytes: usize,
    /// Bytes read for it.
    pub read: u64,
    source: Arc<str>,
    line_max: usize,
    time_us: i64,
}

impl Out {
    /// Empty, at the present time.
    pub fn new(settings: &Settings) -> Self {
        Self {
            events: Vec::new(),
            dead: Vec::new(),
            bytes: 0,
            read: 0,
            source: settings.name.clone(),
            line_max: settings.line_max,
            time_us: now_us(),
        }
    }

    /// Events and dead letters.
    pub fn len(&self) -> usize {
        self.events.len() + self.dead.len()
    }

    /// Whether it takes no more.
    pub fn is_full(&self) -> bool {
        self.len() >= BATCH_EVENTS || self.bytes >= BATCH_BYTES
    }

    /// Adds what was cut out of the file at `path`.
    pub fn push(&mut self, origin: Origin, path: &Path, piece: Piece) {
        match piece {
            Piece::Line(offset, line) => {
                let id = EventId::new(origin, offset, hash(&line));
                self.bytes += line.len();
                if self.events.capacity() == self.events.len() {
                    self.events.reserve(64.max(self.events.len()));
                }
                self.events.push(Event::new(id, line, self.source.clone(), self.time_us));
            }
            Piece::Oversized(line) => {
                let id = EventId::new(origin, line.offset, hash(&line.head));
                let body = json!({
                    "file": path.to_string_lossy(),
                    "offset": line.offset,
                    "length": line.len,
                    "head": String::from_utf8_lossy(&line.head),
                });
                let body = body.to_string().into();
                let event = Event::new(id, body, self.source.clone(), self.time_us);
                let reason = format!(
                    "line at offset {} of {} is {} bytes long (max_line is {})",
                    line.offset,
                    path.display(),
                    line.len,
                    self.line_max
                );
                self.dead.push(Dead { event, reason });
            }
        }
    }
}
