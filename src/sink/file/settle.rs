//! What a writer that did not come to its end left behind: its lines are looked for in the file,
//! and what is missing is appended. Nothing is ever cut.

use std::path::Path;

use anyhow::Result;
use tracing::warn;

use super::ledger::Intent;
use super::output::Output;

/// How far behind an intent's place its lines are looked for: what others can have appended
/// between the look at the file's length and the append itself, with much to spare.
const SLACK: u64 = 16 * 1024 * 1024;

/// What is left to do for an intent.
#[derive(Debug)]
pub(super) enum Rest {
    /// Nothing: the lines are in the file, durably.
    Done,
    /// These lines, in a new place, with an intent of their own.
    Lines(Vec<u8>),
}

/// Brings an intent to its end where it was begun, or tells what of it is to be written anew.
pub(super) fn settle(path: &Path, intent: Intent) -> Result<Rest> {
    let payload = intent.payload;
    if payload.is_empty() {
        return Ok(Rest::Done);
    }
    let fresh = usize::from(intent.fresh);
    let Some(output) = Output::find(path, intent.inode)? else {
        // The file is gone, with or without these lines. Writing them again loses nothing.
        return Ok(Rest::Lines(payload[fresh..].to_vec()));
    };
    let length = output.length()?;
    let end = length.min(intent.length + payload.len() as u64 + SLACK);
    let window = output.read(intent.length, end)?;
    match locate(&window, &payload) {
        Some(found) if found.length == payload.len() => {
            output.sync()?;
            Ok(Rest::Done)
        }
        Some(found) if end == length && found.start + found.length == window.len() => {
            output.append(&payload[found.length..])?;
            Ok(Rest::Done)
        }
        found => {
            let written = found.map_or(0, |found| found.length);
            let lines = payload[..written].iter().rposition(|byte| *byte == b'\n');
            let complete = lines.map_or(fresh, |at| at + 1);
            if written > complete {
                warn!(
                    path = %path.display(),
                    bytes = written - complete,
                    "a line cut short by a crash has been added to by another program: it is \
                     left as it is, and written again"
                );
            }
            Ok(Rest::Lines(payload[complete..].to_vec()))
        }
    }
}

/// Where the start of a payload was found, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    start: usize,
    length: usize,
}

/// Starts of a payload that are compared, at most.
const STARTS_MAX: usize = 1000;

/// The start of `payload` in `window`: at the window's own start, where its first line is whole, or
/// behind the last newline. All of it, else as much as reaches the end, else the most there is.
fn locate(window: &[u8], payload: &[u8]) -> Option<Found> {
    let common = |start: usize| {
        let pairs = window[start..].iter().zip(payload);
        Found { start, length: pairs.take_while(|(one, other)| one == other).count() }
    };
    let first_line = payload.iter().skip(1).position(|byte| *byte == b'\n').map_or(0, |at| at + 2);
    let whole_line = window
        .windows(first_line.max(1))
        .enumerate()
        .filter(|(_, it)| first_line > 0 && *it == &payload[..first_line])
        .map(|(start, _)| start);
    let last_line = window.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let starts = std::iter::once(0).chain(whole_line.take(STARTS_MAX)).chain(last_line);
    let mut best: Option<Found> = None;
    for found in starts.map(common).filter(|found| found.length > 0) {
        if found.length == payload.len() || found.start + found.length == window.len() {
            return Some(found);
        }
        if best.is_none_or(|best| found.length > best.length) {
            best = Some(found);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Settles an intent of `payload`, planned when the file held `before`, in a file that holds
    /// `now`. Answers what the file holds then, and the lines that are left.
    fn settled(before: &str, now: &str, payload: &str, fresh: bool) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.log");
        fs::write(&path, now).unwrap();
        let inode = Output::open(&path).unwrap().inode;
        let length = before.len() as u64;
        let intent = Intent { stamp: 1, inode, length, fresh, payload: payload.into() };
        let rest = match settle(&path, intent).unwrap() {
            Rest::Done => String::new(),
            Rest::Lines(lines) => String::from_utf8(lines).unwrap(),
        };
        (fs::read_to_string(&path).unwrap(), rest)
    }

    #[test]
    fn what_is_missing_is_appended_and_nothing_is_cut() {
        let whole = ("a\n1\n22\n333\n".to_owned(), String::new());
        for torn in 1..=9 {
            assert_eq!(settled("a\n", &whole.0[..2 + torn], "1\n22\n333\n", false), whole);
        }
        let nothing = ("a\n".to_owned(), "1\n22\n".to_owned());
        assert_eq!(settled("a\n", "a\n", "1\n22\n", false), nothing);
    }

    #[test]
    fn lines_of_others_stay_where_they_are() {
        let done = |file: &str| (file.to_owned(), String::new());
        let rest = |file: &str, rest: &str| (file.to_owned(), rest.to_owned());
        // In front, in front of a torn line, and behind.
        assert_eq!(settled("", "x\n1\n22\n", "1\n22\n", false), done("x\n1\n22\n"));
        assert_eq!(settled("", "x\n1\n2", "1\n22\n", false), done("x\n1\n22\n"));
        assert_eq!(settled("", "1\n22\nx\n", "1\n22\n", false), done("1\n22\nx\n"));
        // Behind a line that a crash cut short.
        assert_eq!(settled("", "1\n2x\n", "1\n22\n3\n", false), rest("1\n2x\n", "22\n3\n"));
        // Instead of ours.
        assert_eq!(settled("", "x\n", "1\n", false), rest("x\n", "1\n"));
        // Equal lines are counted.
        assert_eq!(settled("", "x\n1\n1\n1", "1\n1\n1\n1\n", false), done("x\n1\n1\n1\n1\n"));
    }

    #[test]
    fn a_fresh_line_is_started_once() {
        assert_eq!(settled("a", "a\n", "\n1\n", true), ("a\n1\n".into(), String::new()));
        assert_eq!(settled("a", "a", "\n1\n", true), ("a".into(), "1\n".into()));
        assert_eq!(settled("a", "", "\n1\n", true), (String::new(), "1\n".into()));
        // An empty line is an event's.
        assert_eq!(settled("a\n", "a\n", "\n1\n", false), ("a\n".into(), "\n1\n".into()));
    }
}
