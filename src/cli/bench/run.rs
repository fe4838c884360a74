//! One stream's bench, from the first event to the report.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::load::{Load, Member};
use super::oracle::Tally;
use super::report::{self, Report};
use crate::stream::Backend;

/// How often it is looked how far everything is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a stream may take until it counts nothing as pending, beyond two leases.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Publishes and reads until all of it has come, or it is clear that it will not.
pub async fn run(
    load: Arc<Load>,
    what: String,
    backend: Arc<dyn Backend>,
    interrupted: &CancellationToken,
) -> Report {
    let weakness = backend.weakness().await;
    let groups = load.oracles.len();
    let members = (0..groups * load.plan.members).map(|number| load.consume(number % groups));
    let members: Arc<Mutex<Vec<Member>>> = Arc::new(Mutex::new(members.collect()));
    let killer = load.plan.kill.then(|| tokio::spawn(load.clone().kill(members.clone())));
    let producers: Vec<_> = (0..load.issue.producers()).map(|it| load.produce(it)).collect();
    let bar = progress(&load);
    let complete = all_came(&load, &producers, &bar).await;
    bar.finish_and_clear();
    load.calm.cancel();
    if let Some(killer) = killer {
        let _ = killer.await; // it does not panic, and has nothing to say
    }
    let unsettled = if complete { settled(&load, &*backend).await } else { None };
    load.stop.cancel();
    for producer in producers {
        let _ = producer.await;
    }
    for member in &mut *members.lock().await {
        member.ended().await;
    }
    let durable = load.durable();
    let (mut tally, mut lost) = (Tally::default(), 0);
    for oracle in &load.oracles {
        let (one, missing) = oracle.verdict(&durable);
        report::add(&mut tally, one);
        lost += missing;
    }
    let failure = load.failure().map(|error| format!("{error:#}"));
    let stopped = interrupted.is_cancelled().then(|| "it was interrupted".to_owned());
    Report {
        what,
        kind: load.spec.kind.name,
        published: durable.iter().sum(),
        body: load.issue.body.len(),
        publishing: load.last_durable(),
        delivering: load.last_stored(),
        tally,
        lost,
        ordered: load.spec.groups.first().is_some_and(|group| group.ordered),
        killed: load.killed.load(Ordering::Relaxed),
        interruptions: load.interruptions.load(Ordering::Relaxed),
        // Without a history, what is counted or handed back is a copy at the end of the queue.
        copies: !load.spec.kind.capabilities.history,
        broken: failure.or(stopped).or(unsettled),
        weakness,
    }
}

/// Returns whether everything that was published has come to every group.
async fn all_came(load: &Load, producers: &[JoinHandle<()>], bar: &ProgressBar) -> bool {
    let lease = load.spec.groups.first().map_or(SETTLE_MAX, |group| group.lease);
    let patience = load.plan.patience.max(lease * 2);
    let (mut last, mut since) = ((0, 0), Instant::now());
    loop {
        // In this order: what is published after the look cannot be taken for missing.
        let publishing = producers.iter().any(|producer| !producer.is_finished());
        let now = (load.durable().iter().sum::<u64>(), load.stored());
        if now != last {
            (last, since) = (now, Instant::now());
        }
        show(bar, load, now);
        if load.stop.is_cancelled() {
            return false;
        }
        if !publishing && now.1 >= now.0 {
            return true;
        }
        if since.elapsed() >= patience {
            return false;
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = load.stop.cancelled() => {}
        }
    }
}

/// Waits until the stream knows that everything was acknowledged, so that what comes twice comes
/// now. Answers what is wrong where it does not.
async fn settled(load: &Load, backend: &dyn Backend) -> Option<String> {
    let lease = load.spec.groups.first().map_or(SETTLE_MAX, |group| group.lease);
    let end = Instant::now() + lease * 2 + SETTLE_MAX;
    loop {
        let open = match backend.status().await {
            Ok(status) => {
                let of = |group: &crate::stream::GroupStatus| {
                    group.lag.unwrap_or_default() + group.pending.unwrap_or_default()
                };
                let open: u64 = status.groups.iter().map(of).sum();
                if open == 0 {
                    return None;
                }
                format!("the stream still counts {open} events as not acknowledged")
            }
            Err(error) => format!("cannot ask the stream for its state: {error:#}"),
        };
        if Instant::now() >= end {
            return Some(open);
        }
        tokio::select! {
            () = sleep(LOOK_EVERY * 5) => {}
            () = load.stop.cancelled() => return None,
        }
    }
}

fn progress(load: &Load) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let (bar, style) = match load.plan.events {
        Some(events) => (
            ProgressBar::new(events),
            "{spinner} [{elapsed_precise}] {wide_bar} {pos}/{len} with all groups, {msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} [{elapsed_precise}] {pos} with all groups, {msg}",
        ),
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, load: &Load, (durable, stored): (u64, u64)) {
    if bar.is_hidden() {
        return;
    }
    bar.set_position(stored);
    let rate = stored as f64 / load.elapsed().as_secs_f64().max(1e-6);
    let killed = load.killed.load(Ordering::Relaxed);
    let killed = if killed > 0 { format!(", {killed} killed") } else { String::new() };
    bar.set_message(format!("{durable} published, {rate:.0}/s{killed}"));
}
