//! The shipped topologies are right, and editors check them against the schema of this program.

use std::path::{Path, PathBuf};
use std::process::Command;

fn aqueduct(args: &[&str]) -> std::process::Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new(env!("CARGO_BIN_EXE_aqueduct")).args(args).current_dir(root).output().unwrap()
}

fn configs() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|it| it.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    assert!(!found.is_empty());
    found
}

#[test]
fn every_shipped_topology_is_right_and_starts_with_its_schema() {
    for path in configs() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#:schema ./aqueduct.schema.json\n"), "{}", path.display());
        let checked = aqueduct(&["check", path.to_str().unwrap()]);
        let errors = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(checked.status.success() && errors.is_empty(), "{}: {errors}", path.display());
    }
}

#[test]
fn the_schema_beside_them_is_the_one_this_program_prints() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/aqueduct.schema.json");
    let printed = aqueduct(&["schema"]).stdout;
    assert!(
        std::fs::read(shipped).unwrap() == printed,
        "it is old (cargo run -- schema > config/aqueduct.schema.json)"
    );
}
