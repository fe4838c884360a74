//! Where the nodes of a topology stand, for who draws them otherwise than here.

use super::layout::{Sizes, layout};
use super::{Graph, Role};
use crate::spec::Room;
use crate::topology::Topology;

/// In heights of a node: how far apart nodes of a column are, and what an edge takes that passes.
const SIZES: Sizes = Sizes { gap_x: 1.0, gap_y: 0.28, node: 1.0, pass: 0.2 };

/// A topology, placed in columns from left to right. Heights are counted in heights of a node.
#[derive(Clone, Debug)]
pub struct Placed {
    /// In the order of the file: sources, streams, groups, sinks, queries.
    pub nodes: Vec<PlacedNode>,
    /// Between the nodes' indices.
    pub edges: Vec<PlacedEdge>,
    /// How many columns there are.
    pub columns: usize,
    /// From the top of the highest node to the foot of the lowest.
    pub height: f64,
}

/// A node, and where it stands.
#[derive(Clone, Debug)]
pub struct PlacedNode {
    /// What it is.
    pub room: Room,
    /// `NAME` in `[sink.NAME]`.
    pub name: String,
    /// What it is in a few words, without a secret.
    pub detail: String,
    /// Its column, from 0.
    pub column: usize,
    /// Its middle.
    pub y: f64,
}

/// An edge, and the columns that it passes on its way.
#[derive(Clone, Debug)]
pub struct PlacedEdge {
    /// The node that it comes from.
    pub from: usize,
    /// The node that it leads to.
    pub to: usize,
    /// Columns between these two, and how high it passes them.
    pub passes: Vec<(usize, f64)>,
}

/// Places a topology.
pub fn place(topology: &Topology) -> Placed {
    let graph = Graph::of(topology);
    let layout = layout(&graph, SIZES, |_| 1.0);
    let mut nodes: Vec<PlacedNode> = Vec::with_capacity(graph.nodes.len());
    // The first slots are the nodes', in their order; those of passing edges follow.
    for (node, slot) in graph.nodes.iter().zip(&layout.slots) {
        let (name, detail) = (node.name.clone(), node.detail.clone());
        let room = match node.role {
            Role::Source => Room::Source,
            Role::Stream => Room::Stream,
            Role::Group => Room::Group,
            Role::Sink => Room::Sink,
            Role::Query => Room::Query,
        };
        nodes.push(PlacedNode { room, name, detail, column: slot.column, y: slot.y });
    }
    let edges = graph.edges.iter().zip(&layout.edges).map(|((from, to), slots)| {
        let between = slots.iter().filter(|slot| layout.slots[**slot].node.is_none());
        let passes = between.map(|slot| (layout.slots[*slot].column, layout.slots[*slot].y));
        PlacedEdge { from: *from, to: *to, passes: passes.collect() }
    });
    let edges = edges.collect();
    Placed { nodes, edges, columns: layout.columns.len(), height: layout.height }
}
