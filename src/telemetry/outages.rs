//! What the log says of actors that fail again and again: the component and its cause, once, and
//! that it works again. Members of one group are one matter: what one of them says, the others of
//! a backend that is away would say again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::board::{Component, State};
use crate::client::said::{Line, Said};

/// How long events that changed hands are counted for one line.
const GATHERED: Duration = Duration::from_secs(5);

/// What was said of the components of each table.
#[derive(Debug, Default)]
pub struct Outages {
    said: Mutex<BTreeMap<String, Said>>,
    /// Events that changed hands, by group, since when.
    taken_over: Mutex<BTreeMap<Arc<str>, (Instant, usize)>>,
}

impl Outages {
    /// This one failed, and starts anew.
    pub fn failed(&self, component: &Component, cause: &str) {
        let table = component.table();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let line = said.entry(table.clone()).or_default().failed(cause, Instant::now());
        drop(said);
        match line {
            Some(Line::Failed) => tracing::warn!(component = %component, "{cause}"),
            Some(still) => tracing::warn!(component = table, "{cause}{}", still.so_far()),
            None => {}
        }
    }

    /// Says which work again, of all there are. To be called every now and then.
    pub fn look(&self, components: &[Arc<Component>]) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let mut again = Vec::new();
        for (table, said) in said.iter_mut().filter(|(_, said)| said.is_out()) {
            let of_table = components.iter().filter(|component| component.table() == *table);
            let states: Vec<State> = of_table.map(|component| component.state()).collect();
            let works = |state: &State| matches!(state, State::Up | State::Done);
            if states.contains(&State::Up)
                && states.iter().all(works)
                && let Some(works) = said.works(Instant::now())
            {
                again.push((table.clone(), works));
            }
        }
        drop(said);
        for (component, works) in again {
            tracing::info!(component, "works again {works}");
        }
        self.tell_taken_over();
    }

    /// No component of this table is there any more: it need not work again.
    pub fn gone(&self, table: &str) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).remove(table);
    }

    /// Members of a group lost so many events to others.
    pub fn taken_over(&self, group: &Arc<str>, events: usize) {
        let mut taken_over = self.taken_over.lock().unwrap_or_else(PoisonError::into_inner);
        taken_over.entry(group.clone()).or_insert((Instant::now(), 0)).1 += events;
    }

    /// Many members lose theirs at the same time, after an outage: that is one line.
    fn tell_taken_over(&self) {
        let mut taken_over = self.taken_over.lock().unwrap_or_else(PoisonError::into_inner);
        let due = taken_over.extract_if(.., |_, (since, _)| since.elapsed() > GATHERED);
        let due: Vec<_> = due.collect();
        drop(taken_over);
        for (group, (_, events)) in due {
            tracing::warn!(
                %group,
                events,
                "other members took over what was held longer than its lease"
            );
        }
    }
}
