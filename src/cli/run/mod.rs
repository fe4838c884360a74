//! `aqueduct run FILE`

mod edits;
mod watcher;

use std::path::PathBuf;
use std::sync::Arc;

use actix::{Actor, Addr};
use anyhow::{Context, Result, anyhow, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::edits::Edits;
use self::watcher::Watcher;
use super::{Wrong, body_line, idle, load, open, site};
use crate::actor::Shared;
use crate::actor::message::Drain;
use crate::actor::supervisor::{Part, Supervisor};
use crate::event::now_us;
use crate::spec::Room;
use crate::telemetry::board::Board;
use crate::telemetry::logs;
use crate::telemetry::metrics::{Metrics, ReloadLabels};
use crate::telemetry::traces::export::Exporter;
use crate::topology::Topology;
use crate::topology::edition::Edition;
use crate::topology::promise::routes;
use crate::web::Server;

/// Dead letters that `--until-idle` prints for each stream; the rest is counted.
const DEAD_PRINTED_MAX: usize = 20;

/// Edits that may be asked for at once, over HTTP.
const REQUESTS_MAX: usize = 16;

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
    let watcher = Watcher::new(&args.file); // before it is read: an edit from then on is seen
    let topology = load(&args.file)?;
    let part = Part { only: args.only };
    check_part(&topology, &part)?;
    if args.until_idle {
        check_finite(&topology, &part)?;
    }
    let board = Board::default();
    let (tracing, instance) = (topology.tracing.as_ref(), &topology.runtime.instance);
    let exporter = board.traces.turn(tracing, instance, &board.metrics)?;
    logs::start(&topology.runtime.log, topology.runtime.log_json, board.traces.layer());
    eprint!("{}", topology.warnings_text());
    let (topology, board, until_idle) = (Arc::new(topology), Arc::new(board), args.until_idle);
    let mut process =
        Process { file: args.file, watcher, topology, part, until_idle, board, exporter };
    let ended = actix_rt::System::new().block_on(process.run());
    if let Some(exporter) = process.exporter {
        exporter.stop();
    }
    logs::bounds::tell(true);
    ended
}

/// A process, before anything in it runs.
struct Process {
    file: PathBuf,
    watcher: Watcher,
    topology: Arc<Topology>,
    part: Part,
    until_idle: bool,
    board: Arc<Board>,
    /// What sends spans.
    exporter: Option<Exporter>,
}

impl Process {
    async fn run(&mut self) -> Result<()> {
        let Self { file, watcher, topology, part, until_idle, board, exporter } = self;
        let until_idle = *until_idle;
        let mut signals = Signals::new()?;
        let started_us = now_us();
        let site = site(topology, until_idle);
        let shared = Shared { site, board: board.clone(), suspicion: Arc::default() };
        let arbiters: Vec<_> =
            (0..topology.runtime.threads.max(1)).map(|_| actix_rt::Arbiter::new()).collect();
        let handles = arbiters.iter().map(actix_rt::Arbiter::handle).collect();
        let (editions, edition) = watch::channel(Arc::new(Edition::first(topology.clone())));
        let editions = Arc::new(editions);
        count_from_now(&board.metrics);
        let supervisor = Supervisor::new(editions.clone(), part.clone(), shared, handles).start();
        let (reloads, mut asked) = mpsc::channel(REQUESTS_MAX);
        if until_idle {
            asked.close(); // a run to an end has the one it began with
        }
        let mut server =
            Server::new(edition, part.clone(), supervisor.clone(), board.clone(), reloads);
        let prepared = server.prepare(topology).map_err(|faults| anyhow!("{faults}"))?;
        server.apply(prepared).await?;
        show_what_to_look_at(topology, part, file);
        actix_rt::spawn(logs::look_after(board.clone()));

        let mut edits = Edits {
            file,
            watcher,
            part,
            editions: &editions,
            supervisor: &supervisor,
            board,
            server,
            exporter,
        };
        let outcome = tokio::select! {
            () = signals.next() => Ok(()),
            never = edits.apply(asked), if !until_idle => never,
            idle = idle::idle(&supervisor, board, topology, part), if until_idle => idle,
        };
        drain(&supervisor, &mut signals).await?;
        edits.server.stop().await;
        let topology = editions.borrow().topology.clone();
        let totals = idle::counts(board, &topology);
        tracing::info!(published = totals.published, stored = totals.stored, "stopped");
        if until_idle {
            print_dead(&topology, part, started_us).await?;
        }
        outcome
    }
}

/// What is counted of edits is there from the start on, so that a first one is seen as a rise.
fn count_from_now(metrics: &Metrics) {
    metrics.generation.set(1);
    for result in ["applied", "refused"] {
        metrics.reloads.get_or_create_owned(&ReloadLabels { result });
    }
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
    if let Some(only) = names_nothing(topology, part) {
        let known = parts(topology).join(", ");
        bail!(Wrong::Usage(format!("--only {only} names nothing (this file has {known})")));
    }
    Ok(())
}

/// What `--only` names and the file does not have.
fn names_nothing<'a>(topology: &Topology, part: &'a Part) -> Option<&'a str> {
    let known = parts(topology);
    part.only.iter().find(|only| !known.contains(only)).map(String::as_str)
}

/// What `--only` may name.
fn parts(topology: &Topology) -> Vec<String> {
    let sources = topology.sources.iter().map(|source| (Room::Source, &source.name));
    let groups = topology.groups.iter().map(|group| (Room::Group, &group.name));
    sources.chain(groups).map(|(room, name)| format!("{}.{name}", room.noun())).collect()
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
        eprintln!("  look at {scheme}://{address}/, /streams, /healthz and /metrics");
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
