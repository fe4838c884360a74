//! Reading back what a database sink stored: a page of rows, newest first.

pub(super) mod condition;
pub(super) mod pool;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::SinkSpec;
use crate::event::hash_parts;

/// Rows in one page, at most.
pub const ROWS_MAX: usize = 1000;
/// Bytes of the rows of one page; only a row that is larger by itself makes more.
pub const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Conditions of one question, at most.
pub const FILTERS_MAX: usize = 32;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// A column, or a member of the JSON column (dotted for nested ones), and the text of the
    /// value it is to have.
    pub filters: Vec<(String, String)>,
    /// The column that tells which rows are the newest; `None`: `inserted_at`, else the primary
    /// key.
    pub order: Option<String>,
    /// Rows, at most [`ROWS_MAX`].
    pub limit: usize,
    /// The page begins behind this row.
    pub after: Option<Mark>,
    /// How long the database may take.
    pub timeout: Duration,
}

/// A row's place in the order: the values of the columns that make it, as their database reads
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(pub Vec<Json>);

impl Mark {
    /// As it stands in a URL, for the rows of `of` alone.
    pub fn seal(&self, of: &str) -> String {
        let content = Json::from(self.0.clone()).to_string();
        let seal = hash_parts(&[of.as_bytes(), content.as_bytes()]);
        URL_SAFE_NO_PAD.encode([&seal.to_be_bytes(), content.as_bytes()].concat())
    }

    /// Reads what [`Mark::seal`] wrote for the same `of`. `None`: it is nothing of ours. Who knows
    /// how it is made may make one; it tells a place, and lets nobody see more.
    pub fn open(text: &str, of: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (seal, content) = bytes.split_first_chunk()?;
        if hash_parts(&[of.as_bytes(), content]) != u64::from_be_bytes(*seal) {
            return None;
        }
        match serde_json::from_slice(content).ok()? {
            Json::Array(values) => Some(Self(values)),
            _ => None,
        }
    }
}

/// What is answered.
#[derive(Debug, Default)]
pub struct Page {
    /// The rows: a JSON object each, a member a column.
    pub rows: Vec<Box<RawValue>>,
    /// The last row's place, where there are more behind it.
    pub next: Option<Mark>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The question is wrong: what is, and what would be right. May be shown to who asked.
    Wrong(String),
    /// The database took longer than it may.
    Late,
    /// The database is away, or not as the query needs it. For the log alone.
    Away(anyhow::Error),
}

impl From<anyhow::Error> for Unanswered {
    fn from(error: anyhow::Error) -> Self {
        Self::Away(error)
    }
}

/// The rows of one sink, on connections of their own, made when they are needed.
#[async_trait]
pub trait Reader: Send + Sync {
    /// Which table of which database this is, to whom: what has the same identity has the same
    /// rows. Holds no secret.
    fn identity(&self) -> String;

    /// The rows that fit, in order.
    async fn page(&self, ask: &Ask) -> Result<Page, Unanswered>;

    /// Errs when rows could not be read now in this order, with the reason and the way out.
    async fn check(&self, order: Option<&str>) -> Result<()>;
}

/// Makes the reader of a sink's rows. It connects when it is asked.
pub type OpenReader = fn(&SinkSpec) -> Result<Arc<dyn Reader>>;

/// A page in the making.
pub(super) struct Filling {
    limit: usize,
    rows: Vec<Box<RawValue>>,
    bytes: usize,
}

impl Filling {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, rows: Vec::new(), bytes: 0 }
    }

    /// Takes a row, a JSON object. `false`: the page is full, and the row is of the next one.
    pub(super) fn take(&mut self, row: String) -> Result<bool> {
        let full = self.rows.len() == self.limit
            || !self.rows.is_empty() && self.bytes + row.len() > PAGE_BYTES_MAX;
        if !full {
            self.bytes += row.len();
            self.rows.push(RawValue::from_string(row)?);
        }
        Ok(!full)
    }

    pub(super) fn page(self, next: Option<Mark>) -> Page {
        Page { rows: self.rows, next }
    }
}

/// The name of this machine, for identities that mean something on it alone.
pub(super) fn machine() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mark_comes_back_to_its_query_and_nothing_else_is_one() {
        let mark = Mark(vec![json!("2026-01-01 00:00:00+00"), json!(7), Json::Null]);
        let sealed = mark.seal("logs");
        assert_eq!(Mark::open(&sealed, "logs"), Some(mark));
        assert_eq!(Mark::open(&sealed, "others"), None);
        for at in 0..sealed.len() {
            let mut tampered = sealed.clone().into_bytes();
            tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(Mark::open(std::str::from_utf8(&tampered).unwrap(), "logs"), None, "{at}");
        }
        for nonsense in ["", "0", "zz", "é", "AAAAAAAAAAAA"] {
            assert_eq!(Mark::open(nonsense, "logs"), None, "{nonsense}");
        }
    }

    #[test]
    fn a_page_ends_at_its_limit_and_at_its_bytes_but_holds_one_row() {
        let mut page = Filling::new(2);
        assert!(page.take("{}".into()).unwrap());
        assert!(page.take("{}".into()).unwrap());
        assert!(!page.take("{}".into()).unwrap());
        let large = format!("\"{}\"", "x".repeat(PAGE_BYTES_MAX));
        let mut page = Filling::new(10);
        assert!(page.take(large.clone()).unwrap());
        assert!(!page.take("{}".into()).unwrap());
        assert_eq!(page.page(None).rows.len(), 1);
    }
}
