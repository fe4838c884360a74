//! The topology as a picture: Mermaid, DOT, or an SVG laid out here.

mod layout;
mod placed;
mod svg;

use std::fmt::Write;
use std::str::FromStr;

pub use placed::{Placed, PlacedEdge, PlacedNode, place};

use super::Topology;
use crate::spec::text::shown;

/// What a picture is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Mermaid flowchart, for Markdown.
    Mermaid,
    /// Graphviz.
    Dot,
    /// A picture, readable on light and dark.
    Svg,
}

impl Format {
    /// Their names, as the command line takes them.
    pub const NAMES: [&str; 3] = ["mermaid", "dot", "svg"];
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "mermaid" => Ok(Format::Mermaid),
            "dot" => Ok(Format::Dot),
            "svg" => Ok(Format::Svg),
            _ => Err(format!("unknown format `{name}` (mermaid, dot or svg)")),
        }
    }
}

/// Draws a topology.
pub fn draw(topology: &Topology, format: Format) -> String {
    let graph = Graph::of(topology);
    match format {
        Format::Mermaid => mermaid(&graph),
        Format::Dot => dot(&graph),
        Format::Svg => svg::draw(&graph),
    }
}

/// What a node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Source,
    Stream,
    Group,
    Sink,
    Query,
}

impl Role {
    const ALL: [Role; 5] = [Role::Source, Role::Stream, Role::Group, Role::Sink, Role::Query];

    fn noun(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Stream => "stream",
            Role::Group => "group",
            Role::Sink => "sink",
            Role::Query => "query",
        }
    }
}

#[derive(Debug)]
struct Node {
    role: Role,
    name: String,
    /// What it is, in a few words, without a secret.
    detail: String,
}

/// Nodes, and edges between their indices.
#[derive(Debug)]
struct Graph {
    nodes: Vec<Node>,
    edges: Vec<(usize, usize)>,
}

impl Graph {
    fn of(topology: &Topology) -> Self {
        let mut graph = Self { nodes: Vec::new(), edges: Vec::new() };
        for source in &topology.sources {
            let count = (source.kind.instances)(&source.values);
            let detail = counted(source.kind.name, count, "instance");
            graph.add(Role::Source, &source.name, detail);
        }
        for stream in &topology.streams {
            let detail = counted(stream.kind.name, stream.shards.into(), "shard");
            graph.add(Role::Stream, &stream.name, detail);
        }
        for group in &topology.groups {
            let ordered = if group.ordered { ", ordered" } else { "" };
            let s = if group.members == 1 { "" } else { "s" };
            let detail = format!("{} member{s}{ordered}", group.members);
            graph.add(Role::Group, &group.name, detail);
        }
        for sink in &topology.sinks {
            let place = shown(&(sink.kind.place)(&sink.values));
            let detail = if place.is_empty() {
                sink.kind.name.to_owned()
            } else {
                format!("{} · {place}", sink.kind.name)
            };
            graph.add(Role::Sink, &sink.name, detail);
        }
        for query in &topology.queries {
            graph.add(Role::Query, &query.name, format!("GET {}", query.path));
        }
        graph.connect(topology);
        graph
    }

    fn add(&mut self, role: Role, name: &str, detail: String) {
        self.nodes.push(Node { role, name: name.to_owned(), detail });
    }

    fn connect(&mut self, topology: &Topology) {
        let find = |nodes: &[Node], role: Role, name: &str| {
            nodes.iter().position(|node| node.role == role && node.name == name)
        };
        let mut edges = Vec::new();
        let mut edge = |from: Option<usize>, to: Option<usize>| edges.extend(from.zip(to));
        let nodes = &self.nodes;
        for source in &topology.sources {
            let from = find(nodes, Role::Source, &source.name);
            edge(from, find(nodes, Role::Stream, &source.to));
        }
        for group in &topology.groups {
            let node = find(nodes, Role::Group, &group.name);
            edge(find(nodes, Role::Stream, &group.from), node);
            let sink = find(nodes, Role::Sink, &group.to);
            edge(node, sink.or_else(|| find(nodes, Role::Stream, &group.to)));
        }
        for query in &topology.queries {
            let from = find(nodes, Role::Sink, &query.sink);
            edge(from, find(nodes, Role::Query, &query.name));
        }
        self.edges = edges;
    }
}

/// `embedded`, or `embedded · 4 shards`.
fn counted(kind: &str, count: u64, noun: &str) -> String {
    if count > 1 { format!("{kind} · {count} {noun}s") } else { kind.to_owned() }
}

fn mermaid(graph: &Graph) -> String {
    let mut out = String::from("flowchart LR\n");
    let escaped = |text: &str| -> String {
        // Mermaid reads entities with `#` where HTML has `&`, and Markdown in labels.
        text.chars().fold(String::new(), |mut out, c| {
            if c.is_alphanumeric() || " .,-_/=·…".contains(c) {
                out.push(c);
            } else {
                let _ = write!(out, "#{};", c as u32);
            }
            out
        })
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        let (open, close) = match node.role {
            Role::Source => ("([", "])"),
            Role::Stream => ("[[", "]]"),
            Role::Group => ("(", ")"),
            Role::Sink => ("[(", ")]"),
            Role::Query => ("[/", "/]"),
        };
        let (name, detail, role) = (escaped(&node.name), escaped(&node.detail), node.role.noun());
        let _ = writeln!(out, "  {role}{i}{open}\"{name}<br/><small>{detail}</small>\"{close}");
    }
    for (from, to) in &graph.edges {
        let (a, b) = (graph.nodes[*from].role, graph.nodes[*to].role);
        let arrow = if b == Role::Query { "-.->" } else { "-->" };
        let _ = writeln!(out, "  {}{from} {arrow} {}{to}", a.noun(), b.noun());
    }
    out
}

fn dot(graph: &Graph) -> String {
    let mut out = String::from(
        "digraph aqueduct {\n  rankdir=LR;\n  node [fontname=\"sans-serif\", fontsize=11];\n",
    );
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    for (i, node) in graph.nodes.iter().enumerate() {
        let (shape, role) = match node.role {
            Role::Source => ("shape=oval", "source"),
            Role::Stream => ("shape=box3d", "stream"),
            Role::Group => ("shape=box, style=rounded", "group"),
            Role::Sink => ("shape=cylinder", "sink"),
            Role::Query => ("shape=note", "query"),
        };
        let label = format!("{}\\n{}", escaped(&node.name), escaped(&node.detail));
        let _ = writeln!(out, "  {role}{i} [label=\"{label}\", {shape}];");
    }
    for (from, to) in &graph.edges {
        let (a, b) = (graph.nodes[*from].role, graph.nodes[*to].role);
        let style = if b == Role::Query { " [style=dashed]" } else { "" };
        let _ = writeln!(out, "  {}{from} -> {}{to}{style};", a.noun(), b.noun());
    }
    out.push_str("}\n");
    out
}
