//! What is shipped beside the program, as tests read it.

#![allow(dead_code)] // each test uses a part of it

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use aqueduct::telemetry::metrics::Metrics;
use serde_json::Value;

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The texts of a list.
pub fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What stands between `start` and `end`, each time.
pub fn between<'a>(text: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    text.split(start).skip(1).filter_map(|rest| Some(rest.split_once(end)?.0)).collect()
}

/// A text with its variables at their defaults.
pub fn filled(text: &str) -> String {
    let mut filled = text.to_owned();
    for inner in between(text, "${", "}") {
        let default = inner.split_once(":-").map_or("", |(_, default)| default);
        filled = filled.replace(&format!("${{{inner}}}"), default);
    }
    filled
}

/// Words of letters, digits and these characters that start with `start`.
pub fn words<'a>(text: &'a str, start: &str, more: &str) -> BTreeSet<&'a str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && !more.contains(c))
        .filter(|word| word.starts_with(start))
        .collect()
}

/// The series that the program has, with their labels and those that Prometheus adds.
pub fn series() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut known = BTreeMap::new();
    for metric in Metrics::default().described() {
        let suffixes: &[&str] = match metric.kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        for suffix in suffixes {
            let added = ["le", "instance", "job", "namespace"];
            let labels = metric.labels.iter().copied().chain(added);
            known.insert(format!("{}{suffix}", metric.shown()), labels.collect());
        }
    }
    known
}

/// `promtool ARGS` in a directory, which has to say that all is well.
pub fn promtool(directory: &std::path::Path, args: &[&str]) {
    let done = Command::new("promtool").args(args).current_dir(directory).output();
    let done = done.expect("promtool is not installed (Debian: apt install prometheus)");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("SUCCESS"), "{args:?}: {said}");
}
