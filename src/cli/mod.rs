//! The command line, a file a command.

pub mod dead;
pub mod group;
mod idle;
pub mod peek;
pub mod publish;
pub mod run;
pub mod status;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::spec::Site;
use crate::stream::{Backend, StreamSpec};
use crate::topology::Topology;

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
}

/// Parses the command line, does what it says and answers the exit code: 0 done, 1 failed while
/// running, 2 the command line or the topology is wrong.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Publish(args) => blocking(publish::run(args)),
        Command::Peek(args) => blocking(peek::run(args)),
        Command::Status(args) => blocking(status::run(args)),
        Command::Dead(args) => blocking(dead::run(args)),
        Command::Group(args) => blocking(group::run(args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aqueduct: {error:#}");
            let wrong = error.chain().any(|cause| cause.is::<Wrong>());
            ExitCode::from(if wrong { 2 } else { 1 })
        }
    }
}

/// The command line or the topology is wrong: exit code 2.
#[derive(Debug)]
pub struct Wrong(pub String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
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
    Topology::load(file).map_err(|faults| Wrong(faults.to_string()).into())
}

/// What a command knows of its process.
fn site(topology: &Topology, until_idle: bool) -> Site {
    Site {
        data_dir: topology.runtime.data_dir.clone(),
        instance: topology.runtime.instance.clone(),
        until_idle,
    }
}

/// The stream of that name.
fn find_stream<'a>(topology: &'a Topology, name: &str) -> Result<&'a StreamSpec> {
    let found = topology.streams.iter().find(|stream| *stream.name == *name);
    found.ok_or_else(|| {
        let known: Vec<&str> = topology.streams.iter().map(|stream| &*stream.name).collect();
        Wrong(format!("no stream is named {name} in this file (it has {})", known.join(", ")))
            .into()
    })
}

/// Opens a stream.
async fn open(topology: &Topology, stream: &StreamSpec) -> Result<Arc<dyn Backend>> {
    let opened = (stream.kind.open)(stream.clone(), site(topology, false)).await;
    opened.with_context(|| format!("cannot open stream {}", stream.name))
}

/// A body as one line of text: as it is where it is text, and marked where it is not.
fn body_line(body: &[u8]) -> String {
    String::from_utf8_lossy(body).replace('\n', "\\n")
}

/// A time as RFC 3339 with milliseconds.
fn time_text(time_us: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(time_us).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Refuses an empty list where one is asked for.
fn parse_ids(ids: &[String]) -> Result<Vec<crate::event::EventId>> {
    let mut parsed = Vec::new();
    for id in ids {
        match id.parse() {
            Ok(id) => parsed.push(id),
            Err(_) => {
                bail!(Wrong(format!("{id} is no event id (a UUID, as `dead list` shows it)")))
            }
        }
    }
    Ok(parsed)
}
