//! `aqueduct schema`

use anyhow::Result;

use crate::topology::{Kinds, schema};

/// The JSON Schema of the topology file.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints the schema to standard output.
pub fn run() -> Result<()> {
    super::print(&format!("{:#}\n", schema::schema(Kinds::all())))
}
