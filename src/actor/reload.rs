//! An edit of the topology, applied to what runs: what changed or went drains, from the sources
//! down; what is new starts; what is as it was never notices.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::crew::{Begun, Crew};
use super::message::Status;
use crate::spec::Room;
use crate::telemetry::board::Component;
use crate::topology::compare::{Leaving, at_start_only, leaving, same_shards};
use crate::topology::{Faults, Topology};

/// How long what an edit stops may take to drain before it is given up.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// How long what was given up may take to end.
const ABORT_WAIT: Duration = Duration::from_secs(2);
/// How long a stream that moves may take to be read to its end, once nobody writes it any more.
const EMPTY_WAIT: Duration = Duration::from_secs(5);
/// More events than this a stream is not waited for.
const EMPTY_SOON: u64 = 10_000;
/// How often it is asked.
const EMPTY_LOOK: Duration = Duration::from_millis(50);
/// How long a stream may take to say what waits in it.
const STATUS_WAIT: Duration = Duration::from_secs(2);

/// What an edit did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Changes {
    /// Actors that were not there before.
    pub started: Vec<String>,
    /// Actors that are there no more.
    pub stopped: Vec<String>,
    /// Actors that drained and run anew, with another spec.
    pub changed: Vec<String>,
    /// What is said of it: keys that take effect later, say.
    pub notes: Vec<String>,
}

impl Changes {
    /// Whether it changed nothing that runs.
    pub fn is_empty(&self) -> bool {
        self.started.is_empty() && self.stopped.is_empty() && self.changed.is_empty()
    }

    fn add(&mut self, stopped: Vec<Arc<Component>>, begun: Begun) {
        let stopped = stopped.iter().map(ToString::to_string);
        let (again, stopped): (Vec<_>, Vec<_>) =
            stopped.partition(|name| begun.started.contains(name));
        self.started.extend(begun.started.into_iter().filter(|name| !again.contains(name)));
        self.stopped.extend(stopped);
        self.changed.extend(begun.renewed);
        self.changed.extend(again);
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("new", &self.started), ("changed", &self.changed), ("gone", &self.stopped)];
        let parts = parts.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<_> =
            parts.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        match parts.is_empty() {
            true => f.write_str("no component changed"),
            false => f.write_str(&parts.join("; ")),
        }
    }
}

/// One edit on its way.
pub struct Reload {
    /// What runs.
    pub crew: Arc<Mutex<Crew>>,
    /// What ran before it.
    pub old: Arc<Topology>,
    /// Cancelled when the process is to stop: then nothing is begun any more.
    pub stopping: CancellationToken,
}

impl Reload {
    /// Has `new` run. Answers what that changed; where it errs, all runs as before.
    pub async fn apply(&self, new: &Topology) -> Result<Changes, Faults> {
        let said = at_start_only(&self.old, new)?;
        // One that never worked is what the edit mends.
        let in_use = |name: &str| self.crew().stream(name).is_none_or(|(_, it)| it.was_up());
        same_shards(&self.old, new, in_use)?;
        let mut leaving = self.leaving(new);
        for group in &leaving {
            self.look(group, new, EMPTY_SOON).await?;
        }
        let depths = depths(&self.old);
        leaving.sort_by_key(|group| depths.get(group.stream.as_str()).copied());

        let surplus = self.crew().surplus(new);
        let mut stopped = Vec::new();
        let sources: Vec<_> = surplus.sources.iter().map(|(source, _)| source.clone()).collect();
        self.stop(sources, &mut stopped).await;
        let mut members = surplus.members;
        for group in &leaving {
            let (writers, others) =
                members.into_iter().partition(|(_, to)| to.as_deref() == Some(&group.stream));
            members = others;
            self.stop(components(writers), &mut stopped).await;
            if let Err(faults) = self.emptied(group, new).await {
                self.begin(&self.old);
                return Err(faults);
            }
        }
        self.stop(components(members), &mut stopped).await;
        self.stop(surplus.ends, &mut stopped).await;
        let mut changes = Changes::default();
        changes.add(stopped, self.begin(new));
        let file = new.file.display().to_string();
        changes.notes =
            said.iter().map(|it| crate::topology::Shown(&file, it).to_string()).collect();
        Ok(changes)
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, topology: &Topology) -> Begun {
        match self.stopping.is_cancelled() {
            true => Begun::default(),
            false => self.crew().fill(topology),
        }
    }

    /// The groups that move away from a stream that runs here.
    fn leaving(&self, new: &Topology) -> Vec<Leaving> {
        let crew = self.crew();
        let mut leaving = leaving(&self.old, new);
        leaving.retain(|group| crew.stream(&group.stream).is_some());
        leaving
    }

    /// Stops these, however long they would take.
    async fn stop(&self, components: Vec<Arc<Component>>, stopped: &mut Vec<Arc<Component>>) {
        components.iter().for_each(|component| component.stop.cancel());
        let until = Instant::now() + STOP_WAIT;
        for component in &components {
            if tokio::time::timeout_at(until, component.done.cancelled()).await.is_err() {
                tracing::warn!(
                    component = %component,
                    "did not drain within {} s of an edit: given up (what it held is delivered again)",
                    STOP_WAIT.as_secs()
                );
                component.abort.cancel();
            }
        }
        for component in &components {
            // Whoever does not even end then is on a thread that hangs, and bothers nobody.
            let _ = tokio::time::timeout(ABORT_WAIT, component.done.cancelled()).await;
        }
        self.crew().dismiss(&components);
        stopped.extend(components);
    }

    /// Waits until nothing waits for a group that moves away.
    async fn emptied(&self, group: &Leaving, new: &Topology) -> Result<(), Faults> {
        let until = Instant::now() + EMPTY_WAIT;
        loop {
            let late = Instant::now() >= until || self.stopping.is_cancelled();
            match self.look(group, new, 0).await {
                Ok(()) => return Ok(()),
                Err(faults) if late => return Err(faults),
                Err(_) => tokio::time::sleep(EMPTY_LOOK).await,
            }
        }
    }

    /// Errs when more than `most` events wait for a group that moves away, or nobody knows.
    async fn look(&self, group: &Leaving, new: &Topology, most: u64) -> Result<(), Faults> {
        let Some((stream, component)) = self.crew().stream(&group.stream) else { return Ok(()) };
        let (room, name) = &group.at;
        let key = if *room == Room::Group { "from" } else { "" };
        let asked = tokio::time::timeout(STATUS_WAIT, stream.send(Status)).await;
        let Ok(Ok(Ok(status))) = asked else {
            if !component.was_up() {
                return Ok(()); // it never worked: that is what the edit mends
            }
            return Err(new.fault(
                *room,
                name,
                key,
                format!(
                    "stream {} would move, and cannot say whether events of group {} wait in it, as \
                     it is away (mend it first; or stop, and start with this file)",
                    group.stream, group.group
                ),
            ));
        };
        let waits = status.groups.iter().find(|it| it.name == group.group);
        let waits = waits.map_or(0, |it| it.lag.unwrap_or(0) + it.pending.unwrap_or(0));
        if waits <= most {
            return Ok(());
        }
        Err(new.fault(
            *room,
            name,
            key,
            format!(
                "group {} would leave {waits} events behind in stream {} (take the stream's sources \
                 out of the file, wait until /streams shows neither lag nor pending, then move it; \
                 or give the new stream and group names of their own)",
                group.group, group.stream
            ),
        ))
    }
}

fn components<T>(list: Vec<(Arc<Component>, T)>) -> Vec<Arc<Component>> {
    list.into_iter().map(|(component, _)| component).collect()
}

/// How many groups lie before each stream, at most: no stream is written by a later one.
fn depths(topology: &Topology) -> HashMap<&str, usize> {
    let mut depths: HashMap<&str, usize> =
        topology.streams.iter().map(|stream| (&*stream.name, 0)).collect();
    // A path is no longer than there are streams: the check lets no cycle through.
    for _ in &topology.streams {
        for group in &topology.groups {
            let before = depths.get(group.from.as_str()).copied().unwrap_or(0);
            if let Some(depth) = depths.get_mut(group.to.as_str()) {
                *depth = (*depth).max(before + 1);
            }
        }
    }
    depths
}
