//! What is served because the topology says so; an edit replaces it as a whole.

use std::sync::Arc;

use anyhow::Result;

use super::guard::Guard;
use super::intake::Intake;
use super::query::Queries;
use crate::actor::supervisor::Part;
use crate::spec::Room;
use crate::telemetry::board::Board;
use crate::topology::{Http, Topology};

/// The paths of one edition.
pub struct Serving {
    /// Requests that make events.
    pub intake: Intake,
    /// Requests that read rows back.
    pub queries: Queries,
    /// Names of the components that posts and triggers need.
    pub needed: Vec<String>,
    /// Requests are what the process is here for, among others.
    pub requested: bool,
}

impl Serving {
    /// What `topology` has served. What is in it as it was in `before` goes on with what it has
    /// open.
    pub fn new(
        http: &Http,
        topology: &Topology,
        part: &Part,
        board: &Arc<Board>,
        before: Option<&Serving>,
    ) -> Result<Self> {
        let guard = match before.map(|before| before.intake.guard()) {
            Some(guard) if guard.is_of(http) => guard.clone(),
            _ => Guard::new(http),
        };
        let before = before.map(|before| &before.queries);
        let queries = Queries::new(topology, guard.clone(), board.clone(), before)?;
        let intake = Intake::new(topology, guard, board, |room, name| part.has(room, name));
        let sources = intake.posts().map(|(_, source)| source).chain(intake.triggers());
        let needed = sources.flat_map(|source| {
            let (own, to) = (Room::Source.noun(), Room::Stream.noun());
            [format!("{own}.{}", source.name), format!("{to}.{}", source.to)]
        });
        let needed: Vec<_> = needed.collect();
        let requested = !needed.is_empty() || !queries.specs().is_empty();
        Ok(Self { intake, queries, needed, requested })
    }
}
