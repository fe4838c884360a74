//! Edits of the topology file, applied while it runs: those that the file system tells of, those
//! that SIGHUP asks for, and those that a request does.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::names_nothing;
use super::watcher::Watcher;
use crate::actor::message::{Applied, Reload};
use crate::actor::supervisor::{Part, Supervisor};
use crate::telemetry::board::Board;
use crate::telemetry::logs;
use crate::telemetry::metrics::ReloadLabels;
use crate::telemetry::traces::export::Exporter;
use crate::topology::compare::keep_doors;
use crate::topology::edition::Edition;
use crate::topology::{Faults, Topology, Tracing};
use crate::web::Server;

/// What edits are applied to.
pub struct Edits<'a> {
    /// The topology file.
    pub file: &'a Path,
    /// Tells when it is another one.
    pub watcher: &'a mut Watcher,
    /// What of it runs here.
    pub part: &'a Part,
    /// What runs.
    pub editions: &'a watch::Sender<Arc<Edition>>,
    /// Who runs it.
    pub supervisor: &'a Addr<Supervisor>,
    /// Where it is counted.
    pub board: &'a Board,
    /// What listens.
    pub server: Server,
    /// What sends spans.
    pub exporter: &'a mut Option<Exporter>,
}

/// Somebody who asked for an edit, and waits for what became of it.
type Asked = oneshot::Sender<Result<Applied, Faults>>;

impl Edits<'_> {
    /// Applies edit after edit. Errs only where signals cannot be listened for.
    pub async fn apply(&mut self, mut asked: mpsc::Receiver<Asked>) -> Result<()> {
        let mut hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        loop {
            let watched = self.editions.borrow().topology.runtime.watch;
            let who = tokio::select! {
                () = self.watcher.changed(), if watched => None,
                _ = hangups.recv() => None,
                Some(who) = asked.recv() => Some(who),
            };
            let outcome = self.edit().await;
            if let Some(who) = who {
                let _ = who.send(outcome); // who asked may be gone
            }
        }
    }

    /// Applies the file as it is now.
    async fn edit(&mut self) -> Result<Applied, Faults> {
        let begun = Instant::now();
        let outcome = self.try_edit().await;
        let running = self.editions.borrow().clone();
        let metrics = &self.board.metrics;
        let result = if outcome.is_ok() { "applied" } else { "refused" };
        metrics.reloads.get_or_create_owned(&ReloadLabels { result }).inc();
        metrics.refused_edit.set(i64::from(outcome.is_err()));
        match &outcome {
            Ok(applied) => {
                let changes = &applied.changes;
                metrics.generation.set(applied.edition.generation as i64);
                for note in &changes.notes {
                    tracing::warn!("{note}");
                }
                tracing::info!(
                    generation = applied.edition.generation,
                    ms = begun.elapsed().as_millis() as u64,
                    "the edit of {} is applied: {changes}",
                    self.file.display()
                );
            }
            Err(faults) => {
                let faults = faults.lines();
                for fault in &faults {
                    tracing::error!("{fault}");
                }
                tracing::error!(
                    generation = running.generation,
                    "the edit of {} is refused: what ran before runs on",
                    self.file.display()
                );
                self.editions.send_replace(Arc::new(running.with_refused(faults)));
            }
        }
        outcome
    }

    async fn try_edit(&mut self) -> Result<Applied, Faults> {
        let file = self.file.to_owned();
        let shown = file.display().to_string();
        let loading = tokio::task::spawn_blocking(move || Topology::load(&file));
        let loaded = loading.await.map_err(|error| Faults::whole(&shown, error.to_string()))?;
        let mut topology = loaded?;
        let running = self.editions.borrow().clone();
        keep_doors(&running.topology, &mut topology);
        if let Some(only) = names_nothing(&topology, self.part) {
            let message = format!("the process runs --only {only}, which is not in it any more");
            return Err(Faults::whole(&shown, message));
        }
        for warning in topology.warnings_text().lines() {
            tracing::warn!("{warning}");
        }
        let prepared = self.server.prepare(&topology)?;
        let asked = self.supervisor.send(Reload { topology }).await;
        let stopping = |_| Faults::whole(&shown, "not applied: the process is stopping".to_owned());
        let mut applied = asked.map_err(stopping)??;
        if let Err(error) = self.server.apply(prepared).await {
            applied.changes.notes.push(format!("[http] is not served as the file asks: {error:#}"));
        }
        self.trace(running.topology.tracing.as_ref(), &mut applied);
        logs::filter(&applied.edition.topology.runtime.log);
        Ok(applied)
    }

    /// Has spans go where the edit wants them.
    fn trace(&mut self, before: Option<&Tracing>, applied: &mut Applied) {
        let Topology { tracing, runtime, .. } = &*applied.edition.topology;
        if before == tracing.as_ref() {
            return;
        }
        let Board { traces, metrics, .. } = self.board;
        let rest = |it: &Tracing| (it.otlp.clone(), it.service.clone());
        if let (Some(before), Some(wanted)) = (before, tracing)
            && rest(before) == rest(wanted)
        {
            return traces.sample(wanted.sample);
        }
        match traces.turn(tracing.as_ref(), &runtime.instance, metrics) {
            Ok(exporter) => {
                if let Some(old) = std::mem::replace(self.exporter, exporter) {
                    tokio::task::spawn_blocking(|| old.stop()); // what is in its queue, it sends
                }
            }
            Err(error) => applied.changes.notes.push(format!("{error:#}")),
        }
    }
}
