//! The rooms of ARCHITECTURE.md: imports point one way, and files stay small.

use std::path::{Path, PathBuf};

/// Rooms from the ground up. A room may use those before it, and itself.
const ROOMS: &[&[&str]] = &[
    &["event"],
    &["spec", "fault"],
    &["client"],
    &["source"],
    &["stream", "sink"],
    &["topology"],
    &["telemetry"],
    &["actor"],
    &["web", "library"],
    &["cli"],
];
const LINES_MAX: usize = 500;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20);
    found
}

fn floor(room: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn imports_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut backwards = Vec::new();
    for path in all_sources() {
        let inside = path.strip_prefix(&root).unwrap();
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(own) = floor(room) else {
            assert!(["lib", "main"].contains(&room), "{room} has no place in ROOMS");
            continue;
        };
        let text = std::fs::read_to_string(&path).unwrap();
        for part in text.split("crate::").skip(1) {
            let used: String =
                part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let above = floor(&used).is_some_and(|floor| floor > own);
            let beside = used != room && floor(&used) == Some(own);
            if above || beside {
                backwards.push(format!("{} uses {used}", inside.display()));
            }
        }
    }
    assert!(backwards.is_empty(), "{backwards:#?}");
}

#[test]
fn a_plug_in_knows_no_other_plug_in() {
    let kinds = [
        ("source", "publisher"),
        ("source", "tail"),
        ("stream", "embedded"),
        ("sink", "postgres"),
        ("stream", "redis"),
        ("stream", "rabbitmq"),
        ("stream", "postgres"),
        ("sink", "sqlite"),
        ("sink", "file"),
        ("sink", "console"),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut known = Vec::new();
    for path in all_sources() {
        let inside = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let of = |(room, kind): &(&str, &str)| inside.starts_with(&format!("{room}/{kind}"));
        let Some(own) = kinds.iter().find(|kind| of(kind)) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        for (room, kind) in kinds.iter().filter(|kind| *kind != own) {
            let mut ways = vec![format!("{room}::{kind}")];
            if *room == own.0 {
                ways.extend([format!("super::{kind}::"), format!("super::{kind};")]);
            }
            if ways.iter().any(|way| text.contains(way)) {
                known.push(format!("{inside} uses {kind}"));
            }
        }
    }
    assert!(known.is_empty(), "{known:#?}");
}

#[test]
fn no_file_is_two_things() {
    for path in all_sources() {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
    }
}
