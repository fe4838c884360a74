//! The command line, a file a command.

pub mod bench;
pub mod check;
pub mod cursor;
pub mod dead;
pub mod graph;
pub mod group;
mod health;
mod idle;
pub mod peek;
pub mod publish;
pub mod run;
pub mod schema;
pub mod status;

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::spec::Site;
use crate::spec::text::{did_you_mean, listed};
use crate::stream::{Backend, StreamSpec};
use crate::topology::{Faults, Topology};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "aqueduct", version, about, long_about = None, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a topology until it is stopped
    Run(run::Args),
    /// Check a topology and say what each of its routes promises
    Check(check::Args),
    /// Draw a topology
    Graph(graph::Args),
    /// Print the JSON Schema of the topology file, for editors
    Schema(schema::Args),
    /// Publish events by hand
    Publish(publish::Args),
    /// Show the newest events of a stream, touching nothing
    Peek(peek::Args),
    /// Show streams, groups and members
    Status(status::Args),
    /// List, replay or drop the dead letters of a stream
    Dead(dead::Args),
    /// List groups, or drop one that is gone from the file
    Group(group::Args),
    /// Show where groups stand, or put one elsewhere
    ///
    /// A cursor that is put back has events delivered again, with the ids they had: a sink that
    /// keeps ids stores none twice. Put ahead, it skips what is before it, also what members hold.
    /// That is refused while the group runs, unless forced.
    Cursor(cursor::Args),
    /// Try a stream: publish, read, check every event
    Bench(bench::Args),
}

/// Parses the command line, does what it says and answers the exit code: 0 done, 1 failed while
/// running, 2 the command line or the topology is wrong.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Schema(_) => schema::run(),
        Command::Publish(args) => blocking(publish::run(args)),
        Command::Peek(args) => blocking(peek::run(args)),
        Command::Status(args) => blocking(status::run(args)),
        Command::Dead(args) => blocking(dead::run(args)),
        Command::Group(args) => blocking(group::run(args)),
        Command::Cursor(args) => blocking(cursor::run(args)),
        Command::Bench(args) => bench::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<Wrong>() {
                Some(Wrong::Topology(faults)) => eprintln!("{faults}"),
                _ => eprintln!("aqueduct: {error:#}"),
            }
            ExitCode::from(if error.is::<Wrong>() { 2 } else { 1 })
        }
    }
}

/// The command line or the topology is wrong: exit code 2.
#[derive(Debug)]
pub enum Wrong {
    /// What is asked for makes no sense; and what would.
    Usage(String),
    /// Everything that is wrong with the file.
    Topology(Faults),
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(text) => f.write_str(text),
            Self::Topology(faults) => faults.fmt(f),
        }
    }
}

impl std::error::Error for Wrong {}

/// Runs a short command's future.
fn blocking(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(work)
}

/// Reads and checks the file. Its faults are printed as they are, one a line.
fn load(file: &Path) -> Result<Topology> {
    Topology::load(file).map_err(|faults| Wrong::Topology(faults).into())
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// What a command knows of its process.
fn site(topology: &Topology, until_idle: bool) -> Site {
    Site {
        data_dir: topology.runtime.data_dir.clone(),
        instance: topology.runtime.instance.clone(),
        until_idle,
        runs: true,
    }
}

/// The stream of that name.
fn find_stream<'a>(topology: &'a Topology, name: &str) -> Result<&'a StreamSpec> {
    topology.stream(name).ok_or_else(|| {
        let known = || topology.streams.iter().map(|stream| &*stream.name);
        let (has, meant) = (listed(known(), "and"), did_you_mean(name, known()));
        Wrong::Usage(format!("no stream of this file is named {name} (it has {has}){meant}")).into()
    })
}

/// Opens a stream, to look at it or at its groups.
async fn open(topology: &Topology, stream: &StreamSpec) -> Result<Arc<dyn Backend>> {
    let site = Site { runs: false, ..site(topology, false) };
    let opened = (stream.kind.open)(stream.clone(), site).await;
    opened.with_context(|| format!("cannot open stream {}", stream.name))
}

/// A body as one line of text: as it is where it is text, and marked where it is not.
fn body_line(body: &[u8]) -> String {
    String::from_utf8_lossy(body).replace('\n', "\\n")
}

/// Event ids as a user gives them.
fn parse_ids(ids: &[String]) -> Result<Vec<crate::event::EventId>> {
    let mut parsed = Vec::new();
    for id in ids {
        match id.parse() {
            Ok(id) => parsed.push(id),
            Err(_) => {
                bail!(Wrong::Usage(format!(
                    "{id} is no event id (a UUID, as `dead list` shows it)"
                )))
            }
        }
    }
    Ok(parsed)
}
