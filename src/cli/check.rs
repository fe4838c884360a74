//! `aqueduct check FILE`

use std::path::PathBuf;

use anyhow::Result;

use crate::topology::promise::{ROUTES_MAX, routes};

/// Everything that is wrong with a topology file, or what each of its routes promises and what its
/// queries read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
}

/// Prints the promises to standard output, warnings to standard error.
pub fn run(args: &Args) -> Result<()> {
    let topology = super::load(&args.file)?;
    eprint!("{}", topology.warnings_text());
    let routes = routes(&topology);
    let mut text: String = routes.iter().map(|route| format!("{route}\n")).collect();
    if routes.len() == ROUTES_MAX {
        text.push_str(&format!("(the first {ROUTES_MAX} routes)\n"));
    }
    text.extend(topology.queries.iter().map(|query| format!("{query}\n")));
    if routes.is_empty() && topology.queries.is_empty() {
        text.push_str("no route: no source writes and no group reads\n");
    }
    super::print(&text)
}
