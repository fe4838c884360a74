//! Where each key and value of the file stands.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::fault::Fault;
use crate::spec::parse::Problem;
use crate::spec::text::one_line;

/// Where a key and its value come from.
#[derive(Clone, Debug)]
enum Spot {
    /// Byte offsets of the key and of the value in the file.
    File { key: usize, value: usize },
    /// The environment variable that overrides it.
    Variable(String),
}

/// Where each key of the file stands, by the keys on the way down to it.
#[derive(Clone, Default)]
pub(super) struct Places {
    spots: HashMap<Vec<String>, Spot>,
    /// Whose values in the file hold a `${…}`.
    variable: HashSet<Vec<String>>,
    /// The byte offset of each line's start.
    lines: Vec<usize>,
    text: String,
}

/// Nothing of the text, which may hold a password.
impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Places of {} lines", self.lines.len())
    }
}

impl Places {
    pub(super) fn of(text: &str) -> Self {
        let starts =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(i, _)| i + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        Self { lines, text: text.to_owned(), ..Self::default() }
    }

    pub(super) fn put(&mut self, path: &[String], key: usize, value: usize) {
        self.spots.insert(path.to_vec(), Spot::File { key, value });
    }

    /// The value at `path` holds a `${…}` in the file.
    pub(super) fn put_variable(&mut self, path: &[String]) {
        self.variable.insert(path.to_vec());
    }

    /// Whether the value at `path` holds a `${…}` in the file.
    pub(super) fn holds_variable(&self, path: &[&str]) -> bool {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        self.variable.contains(&path)
    }

    /// A variable gives what stands at `path`: tables on the way that the file does not have come
    /// from it too.
    pub(super) fn override_with(&mut self, path: &[String], variable: &str) {
        for depth in 1..path.len() {
            let spot = self.spots.entry(path[..depth].to_vec());
            spot.or_insert_with(|| Spot::Variable(variable.to_owned()));
        }
        self.spots.retain(|known, _| !(known.len() > path.len() && known.starts_with(path)));
        self.spots.insert(path.to_vec(), Spot::Variable(variable.to_owned()));
    }

    /// Line and column, both from 1, of a byte offset.
    pub(super) fn line_column(&self, offset: usize) -> (usize, usize) {
        // The parser may point into a character; 0 is always a boundary.
        let mut before = (0..=offset.min(self.text.len())).rev();
        let offset = before.find(|at| self.text.is_char_boundary(*at)).unwrap_or_default();
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = &self.text[start..offset];
        (line, before.trim_start_matches('\u{feff}').chars().count() + 1)
    }

    /// A fault at a byte offset of the file.
    pub(super) fn fault_at(&self, offset: usize, message: String) -> Fault {
        let message = one_line(&message);
        Fault { place: Some(self.line_column(offset)), variable: None, message }
    }

    /// A fault of the value (or the key) at `path`, or of the nearest table around it.
    pub(super) fn fault(&self, path: &[String], at_key: bool, message: String) -> Fault {
        let message = one_line(&message);
        for depth in (1..=path.len()).rev() {
            match self.spots.get(&path[..depth]) {
                Some(Spot::File { key, value }) => {
                    let offset = if at_key && depth == path.len() { *key } else { *value };
                    return self.fault_at(offset, message);
                }
                Some(Spot::Variable(name)) => {
                    return Fault { place: None, variable: Some(name.clone()), message };
                }
                None => {}
            }
        }
        Fault { place: None, variable: None, message }
    }

    /// A fault of what was found wrong in the table at `path`.
    pub(super) fn problem(&self, path: &[String], problem: Problem) -> Fault {
        let path = [path, problem.path.as_slice()].concat();
        self.fault(&path, problem.at_key, problem.message)
    }
}
