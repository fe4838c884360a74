//! Wrong topology files, each with everything that is said about it.

#[path = "support/kinds.rs"]
mod kinds;

use std::fs;
use std::path::Path;

use aqueduct::topology::{Environment, Topology};
use kinds::kinds;

/// `# env: NAME=value` lines at the head of a file.
fn environment(text: &str) -> Environment {
    text.lines().filter_map(|line| line.strip_prefix("# env: ")?.split_once('=')).collect()
}

#[test]
fn every_wrong_file_is_answered_with_all_its_faults() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/topologies/bad");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 45, "only {} files", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        let faults = Topology::parse("t.toml", &text, &environment(&text), kinds())
            .expect_err(&format!("{name} has a fault"))
            .to_string();
        assert!(!faults.contains("hunter2"), "{name} shows a secret:\n{faults}");
        insta::with_settings!({ description => text, omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, faults);
        });
    }
}
