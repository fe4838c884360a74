//! `aqueduct graph FILE`

use std::path::PathBuf;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::topology::graph::{self, Format};

/// The topology as a picture.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// What to write
    #[arg(long, default_value = "mermaid", value_parser = format_parser())]
    format: Format,
}

fn format_parser() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::NAMES).try_map(|name| name.parse::<Format>())
}

/// Prints the picture to standard output.
pub fn run(args: &Args) -> Result<()> {
    super::print(&graph::draw(&super::load(&args.file)?, args.format))
}
