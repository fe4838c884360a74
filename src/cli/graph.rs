//! `aqueduct graph FILE`: the topology as a picture.

use std::path::PathBuf;
use std::process::ExitCode;

use super::check::wrong;
use crate::topology::Topology;
use crate::topology::graph::{self, Format};

/// Draw a topology file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file.
    pub file: PathBuf,
    /// What to write.
    #[arg(long, default_value = "mermaid", value_parser = format_parser())]
    pub format: Format,
}

fn format_parser() -> impl clap::builder::TypedValueParser<Value = Format> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(Format::NAMES).try_map(|name| name.parse::<Format>())
}

/// Prints the picture to standard output. Exits with 2 and all faults on standard error when the
/// file is wrong.
pub fn run(args: &Args) -> ExitCode {
    match Topology::load(&args.file) {
        Ok(topology) => super::print(&graph::draw(&topology, args.format)),
        Err(faults) => wrong(&faults),
    }
}
