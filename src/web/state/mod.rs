//! `/api/state`: what runs, and how it is, as one value: what the status page and
//! `aqueduct status` show.
//!
//! [`State`] changes its shape only with the topology; in between, a [`Tick`] says what else did.

mod build;
mod rates;
mod settings;

use serde::{Deserialize, Serialize};

pub use self::build::{Builder, Seen};
use crate::stream::ConsumerStatus;
use crate::telemetry::board::{LastError, Trouble};

/// Seconds of history that each edge has.
pub const HISTORY: usize = 60;

/// Everything. Times are microseconds since 1970 UTC, rates events a second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Another number whenever anything but `now` and the histories is another.
    pub shape: u64,
    /// The process.
    pub about: About,
    /// Sources, streams, groups, sinks, queries, in the order of the file.
    pub nodes: Vec<Node>,
    /// How events get from one to the next.
    pub edges: Vec<Edge>,
    /// Columns that the nodes stand in, from left to right.
    pub columns: usize,
    /// From the highest node to the lowest, in heights of a node.
    pub height: f64,
    /// All of it together.
    pub now: Now,
}

/// What does not change while a topology runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// Of the program.
    pub version: String,
    /// The topology file.
    pub file: String,
    /// The process, as it names its group members.
    pub instance: String,
    /// When the process started.
    pub started_us: i64,
    /// 1, and one more with each edit of the file that was applied.
    pub generation: u64,
    /// Since when this generation runs.
    pub since_us: i64,
    /// The last edit, where it was refused: what runs is older than the file.
    pub refused: Option<Refused>,
    /// Whether events and actions ask for a token.
    pub token: bool,
    /// Where the traces are shown, where any are made. `{host}` stands for the host that this is
    /// asked at.
    pub jaeger: Option<String>,
    /// The service's name in the traces.
    pub service: Option<String>,
    /// What each route promises.
    pub promises: Vec<String>,
}

/// An edit that changed nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// When.
    pub time_us: i64,
    /// What is wrong with it: lines `file:line:column: what`.
    pub faults: Vec<String>,
}

/// A component of the topology.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// `sink.db`
    pub id: String,
    /// `source`, `stream`, `group`, `sink` or `query`
    pub room: String,
    /// Its name.
    pub name: String,
    /// What it is in a few words.
    pub detail: String,
    /// Keys and values, without secrets.
    pub settings: Vec<(String, String)>,
    /// Its column, from 0.
    pub column: usize,
    /// The height of its middle, in heights of a node.
    pub y: f64,
    /// How it is.
    pub now: NodeNow,
}

/// How a component is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeNow {
    /// `up`, `starting`, `waiting` (for what it needs), `down`, `done`, or `elsewhere`: it does
    /// not run in this process.
    pub state: String,
    /// Why it is down, or what it waits for.
    pub cause: Option<String>,
    /// Actors that run it, and how many of them work.
    pub actors: (u32, u32),
    /// Times that one of them was started anew.
    pub restarts: u64,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// Events that went through since the process started: made durable by a source, appended to
    /// a stream by what runs here, stored by a group or sink.
    pub events: u64,
    /// The same, a second.
    pub rate: f64,
    /// A stream: events it holds; `null` where the backend cannot tell.
    pub length: Option<u64>,
    /// A stream: events in each shard.
    pub shards: Vec<u64>,
    /// A stream: groups that the file does not name.
    pub others: Vec<Waiting>,
    /// A group: events that no member was given yet.
    pub lag: Option<u64>,
    /// A group: events that members hold.
    pub pending: Option<u64>,
    /// A group: when its oldest event that is not stored was appended.
    pub oldest_us: Option<i64>,
    /// A group: its members in all processes, at most [`MEMBERS_MAX`].
    pub members: Vec<ConsumerStatus>,
    /// A group: how many members there are.
    pub members_count: usize,
    /// A group: refusals of its sink, and events given up, since the process started.
    pub refused: u64,
    /// A group: events given up since the process started.
    pub dead: u64,
}

/// Members of a group that are listed.
pub const MEMBERS_MAX: usize = 100;

/// A group that is not in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Its name.
    pub name: String,
    /// Events that no member was given yet.
    pub lag: Option<u64>,
    /// Events that members hold.
    pub pending: Option<u64>,
}

/// A way from one node to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Edge {
    /// The number of the node that it comes from.
    pub from: usize,
    /// The number of the node that it leads to.
    pub to: usize,
    /// Columns that it passes on its way, and how high.
    pub passes: Vec<(usize, f64)>,
    /// Events a second, for each of the last seconds, oldest first; shorter after a start.
    pub history: Vec<f64>,
    /// How it is.
    pub now: EdgeNow,
}

/// How much passes an edge.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct EdgeNow {
    /// Events since the process started; `null` where nothing here counts them.
    pub total: Option<u64>,
    /// Events a second, over the last three.
    pub rate: f64,
    /// Events in the last second.
    pub last: f64,
}

/// How the process is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Now {
    /// When this was.
    pub time_us: i64,
    /// Whether everything works.
    pub healthy: bool,
    /// What does not, and why.
    pub troubles: Vec<Trouble>,
    /// Events made durable by the sources of this process since it started.
    pub published: u64,
    /// The same, a second.
    pub published_rate: f64,
    /// Events that its groups have stored since it started.
    pub stored: u64,
    /// The same, a second.
    pub stored_rate: f64,
    /// Events that its groups have given up.
    pub dead: u64,
    /// Processors that it keeps busy.
    pub cpu: f64,
    /// Memory that it holds, in bytes.
    pub memory_bytes: Option<u64>,
}

/// What changes all the time: of the nodes and edges in the order of the [`State`] of that shape.
#[derive(Clone, Debug, Serialize)]
pub struct Tick<'s> {
    /// The state's.
    pub shape: u64,
    /// How the process is.
    pub now: &'s Now,
    /// How each node is.
    pub nodes: Vec<&'s NodeNow>,
    /// How each edge is.
    pub edges: Vec<EdgeNow>,
}

impl State {
    /// What of it changes all the time.
    pub fn tick(&self) -> Tick<'_> {
        Tick {
            shape: self.shape,
            now: &self.now,
            nodes: self.nodes.iter().map(|node| &node.now).collect(),
            edges: self.edges.iter().map(|edge| edge.now).collect(),
        }
    }
}
