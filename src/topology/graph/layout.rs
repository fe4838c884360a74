//! Places nodes in columns from left to right (Sugiyama, Tagawa and Toda, 1981): a column for each
//! step of the way, an order in each column with few crossings, and heights that keep edges flat.

use std::collections::HashMap;

use super::{Graph, Role};

/// How much room things take.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Space between columns.
    pub(super) gap_x: f64,
    /// Space between nodes of a column.
    pub(super) gap_y: f64,
    /// The height of a node.
    pub(super) node: f64,
    /// The height that an edge takes where it passes a column.
    pub(super) pass: f64,
}

/// How often the order and the heights are improved.
const SWEEPS: usize = 12;

/// A node, or where an edge passes a column.
pub(super) struct Slot {
    /// The node; `None` for an edge that passes.
    pub(super) node: Option<usize>,
    pub(super) column: usize,
    /// The middle.
    pub(super) y: f64,
    height: f64,
}

/// Everything placed.
pub(super) struct Layout {
    pub(super) slots: Vec<Slot>,
    /// Each edge as the slots it leads through.
    pub(super) edges: Vec<Vec<usize>>,
    /// Left edge and width of each column.
    pub(super) columns: Vec<(f64, f64)>,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// Lays a graph out. `width_of` tells how wide a node has to be.
pub(super) fn layout(graph: &Graph, sizes: Sizes, width_of: impl Fn(usize) -> f64) -> Layout {
    let columns_of = columns(graph);
    let height = sizes.node;
    let mut slots: Vec<Slot> = (0..graph.nodes.len())
        .map(|node| Slot { node: Some(node), column: columns_of[node], y: 0.0, height })
        .collect();
    let edges = through(graph, &columns_of, sizes.pass, &mut slots);
    let count = slots.iter().map(|slot| slot.column + 1).max().unwrap_or(0);
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (i, slot) in slots.iter().enumerate() {
        order[slot.column].push(i);
    }
    let neighbours = neighbours(&edges, slots.len());
    arrange(&mut order, &neighbours, slots.len());
    settle(&order, &neighbours, sizes.gap_y, &mut slots);
    let mut x = 0.0;
    let mut columns = Vec::with_capacity(count);
    for column in &order {
        let nodes = column.iter().filter_map(|slot| slots[*slot].node);
        let width = nodes.map(&width_of).fold(0.0, f64::max);
        columns.push((x, width));
        x += width + sizes.gap_x;
    }
    let top = |slot: &Slot| slot.y - slot.height / 2.0;
    let first = slots.iter().map(top).fold(f64::INFINITY, f64::min);
    slots.iter_mut().for_each(|slot| slot.y -= first);
    let height = slots.iter().map(|slot| slot.y + slot.height / 2.0).fold(0.0, f64::max);
    Layout { slots, edges, columns, width: (x - sizes.gap_x).max(0.0), height }
}

/// The column of each node: streams as far to the right as the longest way to them, sources right
/// before their stream.
fn columns(graph: &Graph) -> Vec<usize> {
    let mut columns = vec![0; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        columns[i] = usize::from(node.role != Role::Source);
    }
    // Each pass carries the columns one edge further; there are no circles.
    for _ in 0..graph.nodes.len() {
        let mut moved = false;
        for (from, to) in &graph.edges {
            if columns[*to] <= columns[*from] {
                columns[*to] = columns[*from] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    for (from, to) in &graph.edges {
        if graph.nodes[*from].role == Role::Source {
            columns[*from] = columns[*to] - 1;
        }
    }
    // What nothing leads to stands with its like.
    let lonely = |i: usize| !graph.edges.iter().any(|(from, to)| *from == i || *to == i);
    for i in (0..graph.nodes.len()).filter(|i| lonely(*i)) {
        let like = (0..graph.nodes.len())
            .filter(|j| graph.nodes[*j].role == graph.nodes[i].role && !lonely(*j));
        columns[i] = like.map(|j| columns[j]).max().unwrap_or(columns[i]);
    }
    close_up(&mut columns);
    columns
}

/// Leaves no column empty.
fn close_up(columns: &mut [usize]) {
    let mut used: Vec<usize> = columns.to_vec();
    used.sort_unstable();
    used.dedup();
    for column in columns {
        *column = used.partition_point(|used| used < column);
    }
}

/// Each edge with a slot in every column it passes.
fn through(
    graph: &Graph,
    columns: &[usize],
    height: f64,
    slots: &mut Vec<Slot>,
) -> Vec<Vec<usize>> {
    let mut edges = Vec::with_capacity(graph.edges.len());
    for (from, to) in &graph.edges {
        let mut path = vec![*from];
        for column in columns[*from] + 1..columns[*to] {
            path.push(slots.len());
            slots.push(Slot { node: None, column, y: 0.0, height });
        }
        path.push(*to);
        edges.push(path);
    }
    edges
}

/// For each slot: those before it and those behind it.
type Neighbours = Vec<(Vec<usize>, Vec<usize>)>;

fn neighbours(edges: &[Vec<usize>], count: usize) -> Neighbours {
    let mut all = vec![(Vec::new(), Vec::new()); count];
    for edge in edges {
        for pair in edge.windows(2) {
            all[pair[0]].1.push(pair[1]);
            all[pair[1]].0.push(pair[0]);
        }
    }
    all
}

/// Orders each column by the mean place of the neighbours, left to right and back, and keeps the
/// order that had the fewest crossings.
fn arrange(order: &mut [Vec<usize>], neighbours: &Neighbours, count: usize) {
    let mut rank = vec![0.0; count];
    let note = |column: &[usize], rank: &mut Vec<f64>| {
        column.iter().enumerate().for_each(|(i, slot)| rank[*slot] = i as f64);
    };
    order.iter().for_each(|column| note(column, &mut rank));
    let mut best = (crossings(order, neighbours, count), order.to_vec());
    for sweep in 0..SWEEPS {
        let forth = sweep % 2 == 0;
        for step in 0..order.len() {
            let at = if forth { step } else { order.len() - 1 - step };
            let keys: HashMap<usize, f64> = (order[at].iter())
                .map(|slot| {
                    let (before, behind) = &neighbours[*slot];
                    let of = if forth { before } else { behind };
                    (*slot, mean(of.iter().map(|slot| rank[*slot])).unwrap_or(rank[*slot]))
                })
                .collect();
            order[at].sort_by(|a, b| keys[a].total_cmp(&keys[b]));
            note(&order[at], &mut rank);
        }
        let crossed = crossings(order, neighbours, count);
        if crossed < best.0 {
            best = (crossed, order.to_vec());
        }
    }
    order.clone_from_slice(&best.1);
}

/// Pairs of edges between neighbouring columns that cross.
fn crossings(order: &[Vec<usize>], neighbours: &Neighbours, count: usize) -> usize {
    let mut rank = vec![0; count];
    for column in order {
        column.iter().enumerate().for_each(|(i, slot)| rank[*slot] = i);
    }
    order.iter().map(|column| inversions(column, neighbours, &rank)).sum()
}

/// Two edges cross where the one that starts higher ends lower.
fn inversions(column: &[usize], neighbours: &Neighbours, rank: &[usize]) -> usize {
    let mut ends: Vec<usize> = Vec::new();
    let mut crossed = 0;
    for slot in column {
        let mut next: Vec<usize> = neighbours[*slot].1.iter().map(|to| rank[*to]).collect();
        // Those before it that end below; its own edges cross none of each other.
        crossed +=
            next.iter().map(|end| ends.len() - ends.partition_point(|it| it <= end)).sum::<usize>();
        ends.append(&mut next);
        ends.sort_unstable();
    }
    crossed
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// Moves each slot to the height of its neighbours, as far as the others of its column let it.
fn settle(order: &[Vec<usize>], neighbours: &Neighbours, gap: f64, slots: &mut [Slot]) {
    for column in order {
        let wanted = vec![0.0; column.len()];
        place(column, &wanted, gap, slots);
    }
    for sweep in 0..SWEEPS {
        let columns: Vec<&Vec<usize>> =
            if sweep % 2 == 0 { order.iter().collect() } else { order.iter().rev().collect() };
        for column in columns {
            let wanted: Vec<f64> = (column.iter())
                .map(|slot| {
                    let (before, behind) = &neighbours[*slot];
                    let around = before.iter().chain(behind).map(|slot| slots[*slot].y);
                    mean(around).unwrap_or(slots[*slot].y)
                })
                .collect();
            place(column, &wanted, gap, slots);
        }
    }
}

/// The heights nearest to those wanted (least squares) that keep the order and the gaps: pool
/// adjacent violators.
fn place(column: &[usize], wanted: &[f64], gap: f64, slots: &mut [Slot]) {
    // Without the gaps above it, a slot's height only has to be no less than the one before.
    let mut above = 0.0;
    let mut offsets = Vec::with_capacity(column.len());
    for (i, slot) in column.iter().enumerate() {
        if i > 0 {
            let last = slots[column[i - 1]].height;
            above += last / 2.0 + gap + slots[*slot].height / 2.0;
        }
        offsets.push(above);
    }
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (want, offset) in wanted.iter().zip(&offsets) {
        let mut pool = (want - offset, 1);
        while let Some((sum, count)) = pools.last().copied()
            && sum / count as f64 >= pool.0 / pool.1 as f64
        {
            pool = (pool.0 + sum, pool.1 + count);
            pools.pop();
        }
        pools.push(pool);
    }
    let flat =
        pools.iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / *count as f64, *count));
    for ((slot, offset), base) in column.iter().zip(offsets).zip(flat) {
        slots[*slot].y = base + offset;
    }
}
