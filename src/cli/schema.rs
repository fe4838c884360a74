//! `aqueduct schema`: the JSON Schema of the topology file.

use std::process::ExitCode;

use crate::topology::{Kinds, schema};

/// Print the JSON Schema of the topology file, for editors.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints the schema to standard output.
pub fn run(_: &Args) -> ExitCode {
    super::print(&format!("{:#}\n", schema::schema(Kinds::all())))
}
