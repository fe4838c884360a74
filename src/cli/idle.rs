//! `--until-idle`: when a run is done, and how far it is.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::actor::message::Inspect;
use crate::actor::supervisor::{Part, Snapshot, Supervisor};
use crate::spec::Room;
use crate::stream::GroupStatus;
use crate::telemetry::board::Board;
use crate::topology::Topology;

/// How often the state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Returns once every source of this process is spent and its groups have neither lag nor
/// pending, in two looks with nothing published or stored in between.
pub async fn idle(
    supervisor: &Addr<Supervisor>,
    board: &Arc<Board>,
    topology: &Topology,
    part: &Part,
) -> Result<()> {
    let progress = progress();
    let mut last = None;
    loop {
        let spent = board
            .all()
            .iter()
            .filter(|component| component.room == Room::Source)
            .all(|component| component.is_spent());
        let snapshot = supervisor.send(Inspect).await?;
        let groups = own_groups(&snapshot, topology, part);
        let waiting: Option<u64> =
            groups.iter().map(|group| group.lag?.checked_add(group.pending?)).sum();
        let counts = counts(board, topology);
        show(&progress, &counts, waiting);
        let complete = groups.len()
            == topology.groups.iter().filter(|g| part.has(Room::Group, &g.name)).count();
        let quiet = spent && complete && waiting == Some(0);
        if quiet && last == Some(counts) {
            progress.finish_and_clear();
            return Ok(());
        }
        last = quiet.then_some(counts);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was published, stored and given up so far, in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Events that sources made durable.
    pub published: u64,
    /// Events that sinks confirmed.
    pub stored: u64,
    /// Events that were given up.
    pub dead: u64,
}

/// The totals at this moment.
pub fn counts(board: &Board, topology: &Topology) -> Totals {
    use crate::telemetry::metrics::{GroupLabels, SourceLabels};
    let mut totals = Totals { published: 0, stored: 0, dead: 0 };
    for source in &topology.sources {
        let labels = SourceLabels { source: source.name.to_string(), stream: source.to.clone() };
        totals.published += board.metrics.published.get_or_create_owned(&labels).get();
    }
    for group in &topology.groups {
        let labels = GroupLabels { stream: group.from.clone(), group: group.name.to_string() };
        totals.stored += board.metrics.stored.get_or_create_owned(&labels).get();
        totals.dead += board.metrics.dead.get_or_create_owned(&labels).get();
    }
    totals
}

/// The groups that this process runs, as their streams see them.
fn own_groups<'a>(
    snapshot: &'a Snapshot,
    topology: &Topology,
    part: &Part,
) -> Vec<&'a GroupStatus> {
    let mut groups = Vec::new();
    for spec in topology.groups.iter().filter(|group| part.has(Room::Group, &group.name)) {
        let stream = snapshot.streams.iter().find(|stream| stream.stream == spec.from);
        groups
            .extend(stream.and_then(|stream| stream.groups.iter().find(|g| *g.name == *spec.name)));
    }
    groups
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(0);
    let style = "{spinner} [{elapsed_precise}] {wide_bar} {pos}/{len} stored, {rate} {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            let _ = write!(out, "{:.0}/s", state.per_sec()); // a string takes everything
        }));
    }
    bar
}

fn show(bar: &ProgressBar, totals: &Totals, waiting: Option<u64>) {
    let done = totals.stored + totals.dead;
    bar.set_length(done + waiting.unwrap_or_default());
    bar.set_position(done);
    if totals.dead > 0 {
        bar.set_message(format!("({} dead letters)", totals.dead));
    }
}
