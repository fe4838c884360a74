//! Faults on purpose, for the tests that kill what they watch. Without the feature `faults` every
//! point is nothing at all.
//!
//! `AQUEDUCT_FAULTS` holds rules, separated by `;`:
//! - `sink.store=panic@5000`: panics each time 5,000 more events have passed that point;
//! - `sink.store=kill~TEXT`: aborts the process when a body that holds TEXT comes by;
//! - `sink.store=panic~TEXT`: panics instead.

use crate::event::Event;

/// Does nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point<'a>(_name: &str, _events: impl Iterator<Item = &'a Event>) {}

/// Ends this life, or the process, where a rule of `AQUEDUCT_FAULTS` says so.
#[cfg(feature = "faults")]
pub fn point<'a>(name: &str, events: impl Iterator<Item = &'a Event>) {
    active::point(name, events);
}

#[cfg(feature = "faults")]
mod active {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Event;

    struct Rule {
        point: String,
        kill: bool,
        when: When,
    }

    enum When {
        Every(u64, AtomicU64),
        Holds(Vec<u8>),
    }

    static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
        let text = std::env::var("AQUEDUCT_FAULTS").unwrap_or_default();
        text.split(';').filter_map(parse).collect()
    });

    fn parse(rule: &str) -> Option<Rule> {
        let (point, action) = rule.trim().split_once('=')?;
        let (action, when) = match (action.split_once('@'), action.split_once('~')) {
            (Some((action, every)), _) => {
                (action, When::Every(every.parse().ok()?, AtomicU64::new(0)))
            }
            (None, Some((action, text))) => (action, When::Holds(text.as_bytes().to_vec())),
            (None, None) => return None,
        };
        Some(Rule { point: point.to_owned(), kill: action == "kill", when })
    }

    pub fn point<'a>(name: &str, events: impl Iterator<Item = &'a Event>) {
        let mut rules = RULES.iter().filter(|rule| rule.point == name).peekable();
        if rules.peek().is_none() {
            return;
        }
        let events: Vec<_> = events.collect();
        for rule in rules {
            let due = match &rule.when {
                When::Every(every, passed) => {
                    let before = passed.fetch_add(events.len() as u64, Ordering::Relaxed);
                    before / every < (before + events.len() as u64) / every
                }
                When::Holds(text) => events
                    .iter()
                    .any(|event| event.body.windows(text.len()).any(|part| part == text)),
            };
            if due && rule.kill {
                std::process::abort();
            } else if due {
                panic!("a fault on purpose at {name}");
            }
        }
    }
}
