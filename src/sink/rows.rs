//! Reading back what a database sink stored: a page of rows, newest first.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value as Json;

use super::SinkSpec;

/// Rows in one page, at most.
pub const ROWS_MAX: usize = 1000;
/// Conditions of one question, at most.
pub const FILTERS_MAX: usize = 32;

/// How a query reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The column that tells which rows are the newest; `None`: `inserted_at`, else the primary
    /// key.
    pub order: Option<String>,
    /// How long the database may take.
    pub timeout: Duration,
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// A column, or a member of a JSON column (dotted for nested ones), and the text of the value
    /// it is to have.
    pub filters: Vec<(String, String)>,
    /// Rows, at most [`ROWS_MAX`].
    pub limit: usize,
    /// The page begins behind this row.
    pub after: Option<Mark>,
}

/// A row's place in the order: the values of the columns that make it, as the database reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark(pub Vec<Json>);

// No value in it is a number that is not equal to itself: it was JSON.
impl Eq for Mark {}

impl fmt::Display for Mark {
    /// As it stands in a URL: hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Json::from(self.0.clone()).to_string();
        text.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Mark {
    /// Reads what `Display` wrote. `None`: it is nothing of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
        match serde_json::from_slice(&bytes?).ok()? {
            Json::Array(values) if digits.len().is_multiple_of(2) => Some(Self(values)),
            _ => None,
        }
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The rows: a JSON object each, a member a column.
    pub rows: Vec<Json>,
    /// The last row's place, where there are more behind it.
    pub next: Option<Mark>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The question is wrong: what is, and what would be right. May be shown to who asked.
    Wrong(String),
    /// The database is away, or not as the query needs it. For the log alone.
    Away(anyhow::Error),
}

impl From<anyhow::Error> for Unanswered {
    fn from(error: anyhow::Error) -> Self {
        Self::Away(error)
    }
}

/// The rows of one sink.
#[async_trait]
pub trait Rows: Send + Sync {
    /// The rows that fit, in order.
    async fn page(&self, ask: &Ask) -> Result<Page, Unanswered>;
}

/// Makes the reader of a sink's rows. It connects when it is asked.
pub type OpenRows = fn(&SinkSpec, Reading) -> Arc<dyn Rows>;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mark_comes_back_and_nonsense_is_none() {
        let mark = Mark(vec![json!("2026-01-01 00:00:00+00"), json!(7), Json::Null]);
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        for nonsense in ["", "0", "zz", "7b7d", "5b", "é", "5b5"] {
            assert_eq!(Mark::parse(nonsense), None, "{nonsense}");
        }
    }
}
