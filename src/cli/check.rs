//! `aqueduct check FILE`: everything that is wrong with a topology file, or what each of its
//! routes promises.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::topology::{Faults, Topology, promise};

/// Check a topology file and print what each route promises.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file.
    pub file: PathBuf,
}

/// Prints the promises to standard output and warnings to standard error. Exits with 2 and all
/// faults on standard error when the file is wrong.
pub fn run(args: &Args) -> ExitCode {
    let topology = match Topology::load(&args.file) {
        Ok(topology) => topology,
        Err(faults) => return wrong(&faults),
    };
    eprint!("{}", topology.warnings_text());
    super::print(&report(&topology))
}

/// Prints faults; the exit code of a wrong topology.
pub fn wrong(faults: &Faults) -> ExitCode {
    eprintln!("{faults}");
    ExitCode::from(2)
}

/// A line for each route.
fn report(topology: &Topology) -> String {
    let routes = promise::routes(topology);
    let mut text: String = routes.iter().map(|route| format!("{route}\n")).collect();
    if routes.len() == promise::ROUTES_MAX {
        text.push_str(&format!("(the first {} routes)\n", promise::ROUTES_MAX));
    }
    if routes.is_empty() {
        text.push_str("no route: no source writes and no group reads\n");
    }
    text
}
