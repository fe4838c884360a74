//! The SVG: one file, no script, no font of its own, readable on light and dark.

use std::fmt::Write;

use super::layout::{Layout, Sizes, layout};
use super::{Graph, Node, Role};

/// The height of a node.
const NODE_H: f64 = 54.0;
/// How much room things take.
const SIZES: Sizes = Sizes { gap_x: 64.0, gap_y: 22.0, node: NODE_H, pass: 10.0 };
/// Space around everything.
const MARGIN: f64 = 28.0;
/// Height of the legend.
const LEGEND: f64 = 34.0;
/// Left of a node's text.
const INSET: f64 = 16.0;

/// Colours by role: on light, on dark.
const COLOURS: [Colour; 5] = [
    (Role::Source, "#2f855a", "#68d391"),
    (Role::Stream, "#2b6cb0", "#63b3ed"),
    (Role::Group, "#6b46c1", "#b794f4"),
    (Role::Sink, "#b7560c", "#f6ad55"),
    (Role::Query, "#5a6472", "#a3adba"),
];

/// Draws a graph.
pub(super) fn draw(graph: &Graph) -> String {
    let layout = layout(graph, SIZES, |node| node_width(&graph.nodes[node]));
    let width = (layout.width + 2.0 * MARGIN).max(legend_width(graph));
    let height = layout.height + 2.0 * MARGIN + LEGEND;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"topology\">"
    );
    style(&mut out);
    let _ = writeln!(out, "<rect class=\"ground\" width=\"100%\" height=\"100%\"/>");
    let _ = writeln!(out, "<g transform=\"translate({MARGIN} {MARGIN})\">");
    for (edge, (_, to)) in layout.edges.iter().zip(&graph.edges) {
        let dashed = graph.nodes[*to].role == Role::Query;
        connection(&layout, edge, dashed, &mut out);
    }
    for slot in &layout.slots {
        if let Some(node) = slot.node {
            let (x, width) = layout.columns[slot.column];
            boxed(&graph.nodes[node], x, slot.y - NODE_H / 2.0, width, &mut out);
        }
    }
    out.push_str("</g>\n");
    legend(graph, height - MARGIN, &mut out);
    out.push_str("</svg>\n");
    out
}

/// Colours go into rules and not into CSS variables, which many viewers do not know.
fn style(out: &mut String) {
    out.push_str(
        "<style>\n\
         text { font-family: ui-sans-serif, system-ui, sans-serif; font-size: 12px }\n\
         .name { font-size: 14px; font-weight: 600 }\n\
         .edge { fill: none; stroke-width: 1.6 }\n",
    );
    rules(&LIGHT, |(_, light, _)| light, out);
    out.push_str("@media (prefers-color-scheme: dark) {\n");
    rules(&DARK, |(_, _, dark)| dark, out);
    out.push_str("}\n</style>\n");
}

/// What has the same colour for every role.
struct Ground {
    ground: &'static str,
    boxes: &'static str,
    line: &'static str,
    text: &'static str,
    dim: &'static str,
    edge: &'static str,
}

const LIGHT: Ground = Ground {
    ground: "#ffffff",
    boxes: "#f7f9fb",
    line: "#d5dce4",
    text: "#1a202c",
    dim: "#5a6472",
    edge: "#94a0ae",
};

const DARK: Ground = Ground {
    ground: "#14181d",
    boxes: "#1e242b",
    line: "#37414c",
    text: "#edf1f5",
    dim: "#a3adba",
    edge: "#66727f",
};

type Colour = (Role, &'static str, &'static str);

fn rules(ground: &Ground, of: fn(Colour) -> &'static str, out: &mut String) {
    let Ground { ground, boxes, line, text, dim, edge } = ground;
    let _ = writeln!(
        out,
        ".ground {{ fill: {ground} }}\n.box {{ fill: {boxes}; stroke: {line} }}\n\
         text {{ fill: {dim} }}\n.name {{ fill: {text} }}\n\
         .edge {{ stroke: {edge} }}\n.tip {{ fill: {edge} }}"
    );
    for colour in COLOURS {
        let _ = writeln!(out, ".{} .bar {{ fill: {} }}", colour.0.noun(), of(colour));
    }
}

/// A box with a bar in the colour of its role, its name, and what it is.
fn boxed(node: &Node, x: f64, y: f64, width: f64, out: &mut String) {
    let role = node.role.noun();
    let (name, detail) = (escaped(&node.name), escaped(&node.detail));
    let text = x + INSET;
    let _ = writeln!(
        out,
        "<g class=\"{role}\"><title>{role} {name}: {detail}</title>\
         <rect class=\"box\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{NODE_H}\" rx=\"8\"/>\
         <rect class=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"4\" height=\"{}\" rx=\"2\"/>\
         <text class=\"name\" x=\"{text:.1}\" y=\"{:.1}\">{name}</text>\
         <text x=\"{text:.1}\" y=\"{:.1}\">{detail}</text></g>",
        y + 10.0,
        NODE_H - 20.0,
        y + 23.0,
        y + 41.0,
    );
}

/// A curve from the right of a box to the left of the next, level where it passes a column.
fn connection(layout: &Layout, edge: &[usize], dashed: bool, out: &mut String) {
    const TIP: f64 = 7.0;
    let (Some(first), Some(last)) = (edge.first(), edge.last()) else { return };
    let right = |slot: usize| {
        let (x, width) = layout.columns[layout.slots[slot].column];
        x + width
    };
    let left = |slot: usize| layout.columns[layout.slots[slot].column].0;
    let (mut x, mut y) = (right(*first), layout.slots[*first].y);
    let mut path = format!("M {x:.1} {y:.1}");
    for slot in &edge[1..] {
        let to_y = layout.slots[*slot].y;
        let to_x = if slot == last { left(*slot) - TIP } else { left(*slot) };
        let middle = (x + to_x) / 2.0;
        let _ = write!(path, " C {middle:.1} {y:.1} {middle:.1} {to_y:.1} {to_x:.1} {to_y:.1}");
        (x, y) = (to_x, to_y);
        if slot != last {
            x = right(*slot);
            let _ = write!(path, " H {x:.1}");
        }
    }
    let dash = if dashed { " stroke-dasharray=\"4 4\"" } else { "" };
    let _ = writeln!(out, "<path class=\"edge\" d=\"{path}\"{dash}/>");
    let (top, bottom, end) = (y - 4.5, y + 4.5, x + TIP);
    let _ = writeln!(
        out,
        "<path class=\"tip\" d=\"M {:.1} {top:.1} L {end:.1} {y:.1} L {:.1} {bottom:.1} Z\"/>",
        x - 1.0,
        x - 1.0
    );
}

fn present(graph: &Graph) -> impl Iterator<Item = Role> {
    Role::ALL.into_iter().filter(|role| graph.nodes.iter().any(|node| node.role == *role))
}

/// Width of one entry of the legend.
const ENTRY: f64 = 76.0;

fn legend_width(graph: &Graph) -> f64 {
    present(graph).count() as f64 * ENTRY + 2.0 * MARGIN
}

fn legend(graph: &Graph, y: f64, out: &mut String) {
    for (i, role) in present(graph).enumerate() {
        let x = MARGIN + i as f64 * ENTRY;
        let role = role.noun();
        let _ = writeln!(
            out,
            "<g class=\"{role}\"><rect class=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" \
             height=\"10\" rx=\"3\"/><text x=\"{:.1}\" y=\"{y:.1}\">{role}</text></g>",
            y - 9.5,
            x + 16.0
        );
    }
}

/// Wide enough for the text in any usual font: no font is measured here.
fn node_width(node: &Node) -> f64 {
    let name = text_width(&node.name) * 8.6;
    let detail = text_width(&node.detail) * 7.0;
    (name.max(detail) + INSET + 14.0).max(132.0)
}

/// In characters; those outside the Latin script count twice.
fn text_width(text: &str) -> f64 {
    text.chars().map(|c| if (c as u32) < 0x300 || c == '…' { 1.0 } else { 2.0 }).sum()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML 1.0 has no place for other control characters.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
