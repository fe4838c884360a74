//! `aqueduct run FILE`

use std::path::PathBuf;
use std::sync::Arc;

use actix::{Actor, Addr};
use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{Wrong, body_line, idle, load, open, site};
use crate::actor::Shared;
use crate::actor::message::Drain;
use crate::actor::supervisor::{Part, Supervisor};
use crate::event::now_us;
use crate::spec::Room;
use crate::telemetry::board::Board;
use crate::telemetry::logs;
use crate::telemetry::traces::Traces;
use crate::telemetry::traces::export::Exporter;
use crate::topology::Topology;
use crate::topology::edition::Edition;
use crate::topology::promise::routes;
use crate::web;

/// Dead letters that `--until-idle` prints for each stream; the rest is counted.
const DEAD_PRINTED_MAX: usize = 20;

/// Run a topology.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// Run only this source or group, and the streams and sinks it needs (repeatable)
    #[arg(long, value_name = "source.NAME|group.NAME")]
    only: Vec<String>,
    /// Stop, with 0, once everything finite is read, delivered and stored
    #[arg(long)]
    until_idle: bool,
}

/// Runs until a signal, or until everything is done.
pub fn run(args: Args) -> Result<()> {
    let topology = load(&args.file)?;
    let part = Part { only: args.only };
    check_part(&topology, &part)?;
    if args.until_idle {
        check_finite(&topology, &part)?;
    }
    let (board, exporter) = board(&topology)?;
    logs::start(&topology.runtime.log, topology.runtime.log_json, board.traces.layer());
    eprint!("{}", topology.warnings_text());
    let running = running(Arc::new(topology), part, args.until_idle, &args.file, Arc::new(board));
    let ended = actix_rt::System::new().block_on(running);
    if let Some(exporter) = exporter {
        exporter.stop();
    }
    logs::bounds::tell(true);
    ended
}

/// What actors write on, and what sends their spans away.
fn board(topology: &Topology) -> Result<(Board, Option<Exporter>)> {
    let mut board = Board::default();
    let Some(tracing) = &topology.tracing else { return Ok((board, None)) };
    let (traces, exporter) = Traces::start(tracing, &topology.runtime.instance, &board.metrics)?;
    board.traces = traces;
    Ok((board, Some(exporter)))
}

async fn running(
    topology: Arc<Topology>,
    part: Part,
    until_idle: bool,
    file: &std::path::Path,
    board: Arc<Board>,
) -> Result<()> {
    let mut signals = Signals::new()?;
    let started_us = now_us();
    let shared = Shared { site: site(&topology, until_idle), board, suspicion: Arc::default() };
    let arbiters: Vec<_> =
        (0..topology.runtime.threads.max(1)).map(|_| actix_rt::Arbiter::new()).collect();
    let handles = arbiters.iter().map(actix_rt::Arbiter::handle).collect();
    let (editions, edition) = watch::channel(Arc::new(Edition::first(topology.clone())));
    let supervisor = Supervisor::new(editions, part.clone(), shared.clone(), handles).start();
    let server = match &topology.http {
        Some(http) => Some(web::start(http, edition, &part, &supervisor, &shared.board)?),
        None => None,
    };
    show_what_to_look_at(&topology, &part, file);
    actix_rt::spawn(logs::look_after(shared.board.clone()));

    let outcome = tokio::select! {
        () = signals.next() => Ok(()),
        idle = idle::idle(&supervisor, &shared.board, &topology, &part), if until_idle => idle,
    };
    drain(&supervisor, &mut signals).await?;
    if let Some(server) = server {
        server.stop().await;
    }
    let totals = idle::counts(&shared.board, &topology);
    tracing::info!(published = totals.published, stored = totals.stored, "stopped");
    if until_idle {
        print_dead(&topology, &part, started_us).await?;
    }
    outcome
}

/// Stops in flow order; a second signal stops at once.
async fn drain(supervisor: &Addr<Supervisor>, signals: &mut Signals) -> Result<()> {
    tokio::select! {
        drained = supervisor.send(Drain) => {
            let cut_off = drained?.cut_off;
            if !cut_off.is_empty() {
                tracing::warn!(
                    "the time to drain was up: cut off {} (what they held is delivered again)",
                    cut_off.join(", ")
                );
            }
            Ok(())
        }
        () = signals.next() => {
            tracing::warn!("a second signal: stopping at once");
            std::process::exit(1);
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// `--only` names sources and groups that there are.
fn check_part(topology: &Topology, part: &Part) -> Result<()> {
    let sources = topology.sources.iter().map(|source| (Room::Source, &source.name));
    let groups = topology.groups.iter().map(|group| (Room::Group, &group.name));
    let known: Vec<String> =
        sources.chain(groups).map(|(room, name)| format!("{}.{name}", room.noun())).collect();
    for only in &part.only {
        if !known.contains(only) {
            bail!(Wrong::Usage(format!(
                "--only {only} names nothing (this file has {})",
                known.join(", ")
            )));
        }
    }
    Ok(())
}

/// `--until-idle` needs an end of everything that runs.
fn check_finite(topology: &Topology, part: &Part) -> Result<()> {
    for source in topology.sources.iter().filter(|s| part.has(Room::Source, &s.name)) {
        if !(source.kind.finite)(&source.values) {
            bail!(Wrong::Usage(format!(
                "--until-idle: source {} has no end (a publisher with n = \"1..50\", or a tail, has)",
                source.name
            )));
        }
    }
    Ok(())
}

/// Says what runs and where to look, on standard error.
fn show_what_to_look_at(topology: &Topology, part: &Part, file: &std::path::Path) {
    eprintln!("aqueduct {} runs {}", env!("CARGO_PKG_VERSION"), file.display());
    for route in routes(topology) {
        eprintln!("  {route}");
    }
    if let Some(http) = &topology.http {
        let (scheme, address) = (if http.tls.is_some() { "https" } else { "http" }, &http.listen);
        eprintln!("  look at {scheme}://{address}/streams, /healthz and /metrics");
        for query in &topology.queries {
            eprintln!("  try     curl {scheme}://{address}{}", query.path);
        }
    }
    for sink in &topology.sinks {
        let runs = topology
            .groups
            .iter()
            .any(|group| *group.to == *sink.name && part.has(Room::Group, &group.name));
        if let Some(look) = (sink.kind.look)(&sink.values)
            && runs
        {
            eprintln!("  try     {look}");
        }
    }
}

/// The dead letters of this run, and why.
async fn print_dead(topology: &Topology, part: &Part, since_us: i64) -> Result<()> {
    for stream in &topology.streams {
        let read = topology
            .groups
            .iter()
            .any(|g| *g.from == *stream.name && part.has(Room::Group, &g.name));
        if !read {
            continue;
        }
        let mut dead = open(topology, stream).await?.dead().await?;
        dead.retain(|letter| letter.time_us >= since_us);
        if dead.is_empty() {
            continue;
        }
        eprintln!("{} dead letters of stream {}:", dead.len(), stream.name);
        for letter in dead.iter().take(DEAD_PRINTED_MAX) {
            let body: String = body_line(&letter.event.body).chars().take(200).collect();
            eprintln!("  {} group {}: {}", letter.event.id, letter.group, letter.reason);
            eprintln!("      {body}");
        }
    }
    Ok(())
}
