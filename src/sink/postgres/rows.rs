//! The events of a batch as the rows of a `COPY`, one behind the other in one buffer.

use crate::event::{Delivery, EventId, Refusal};
use crate::sink::columns::{Datum, Mapping};

use super::plan::Plan;
use super::text;

/// What `COPY`'s binary format begins with: its signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// And what it ends with.
const TRAILER: &[u8] = b"\xff\xff";
/// What a buffer keeps from one batch to the next, at most.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The memory of a connection, used again for each batch.
#[derive(Default)]
pub(super) struct Buffer {
    /// All rows.
    bytes: Vec<u8>,
    /// Some of them.
    some: Vec<u8>,
}

/// The events that fit the columns.
#[derive(Default)]
pub(super) struct Rows {
    /// Which event of the batch each row is.
    pub(super) index: Vec<usize>,
    pub(super) ids: Vec<EventId>,
    /// Which columns each leaves to their defaults: a bit for each of `Plan::defaulting`.
    pub(super) masks: Vec<u64>,
    /// Where each begins in the buffer.
    starts: Vec<usize>,
    /// Events whose id another event of the batch has too: itself, and the one that is the row.
    pub(super) twins: Vec<(usize, usize)>,
}

/// Reads a batch into rows: in the order of their ids where those are a column, so that an index
/// on it is met in its order and writers of the same events wait for each other in turn; unless
/// they are `ordered`.
pub(super) fn read(
    plan: &Plan,
    batch: &[&Delivery],
    buffer: &mut Buffer,
    refusals: &mut Vec<Refusal>,
    ordered: bool,
) -> Rows {
    let (order, twins) = order(batch, plan.id.is_some() && !ordered);
    let mut rows = Rows { twins, ..Rows::default() };
    let bytes = &mut buffer.bytes;
    bytes.clear();
    bytes.shrink_to(KEPT_BYTES_MAX);
    buffer.some.shrink_to(KEPT_BYTES_MAX);
    if plan.binary {
        bytes.extend(HEADER);
    }
    let (mut found, mut values) = (Vec::new(), Vec::new());
    for index in order {
        let delivery = batch[index];
        let start = bytes.len();
        values.clear();
        let read = plan.mapping.read(delivery, &mut found, &mut values);
        let number = rows.index.len() as i32;
        match read.and_then(|()| encode(plan, number, &values, bytes)) {
            Ok(mask) => {
                rows.index.push(index);
                rows.ids.push(delivery.event.id);
                rows.masks.push(mask);
                rows.starts.push(start);
            }
            Err(reason) => {
                bytes.truncate(start);
                refusals.push(Refusal { index, reason });
            }
        }
    }
    rows.starts.push(bytes.len());
    if plan.binary {
        bytes.extend(TRAILER);
    }
    rows
}

/// The order of a batch's events, each id once, and the events left out for that.
fn order(batch: &[&Delivery], by_id: bool) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    let id = |at: &usize| batch[*at].event.id;
    if batch.windows(2).all(|pair| pair[0].event.id < pair[1].event.id) {
        return (order, Vec::new());
    }
    order.sort_by_key(id);
    let mut twins = Vec::new();
    order.dedup_by(|at, first| {
        let same = id(at) == id(first);
        if same {
            twins.push((*at, *first));
        }
        same
    });
    if !by_id {
        order.sort_unstable();
    }
    (order, twins)
}

/// Appends a row. Answers its mask.
fn encode(
    plan: &Plan,
    number: i32,
    values: &[Datum<'_>],
    out: &mut Vec<u8>,
) -> Result<u64, String> {
    let columns = plan.mapping.columns();
    if let Some(at) = plan.key.iter().find(|at| values[**at] == Datum::Null) {
        return Err(Mapping::complain_no_key(&columns[*at].name));
    }
    let nulls = plan.defaulting.iter().enumerate().filter(|(_, at)| values[**at] == Datum::Null);
    let mask = nulls.fold(0_u64, |mask, (bit, _)| mask | 1 << bit);
    let fields = values.len() - mask.count_ones() as usize + usize::from(plan.staged);
    if plan.binary {
        out.extend((fields as i16).to_be_bytes());
        if plan.staged {
            out.extend(4_i32.to_be_bytes());
            out.extend(number.to_be_bytes());
        }
    } else if plan.staged {
        out.extend(number.to_string().as_bytes());
    }
    let mut first = !plan.staged;
    for (at, value) in values.iter().enumerate() {
        if plan.is_left_out(at, mask) {
            continue;
        }
        let (wire, column) = (&plan.wires[at], &columns[at]);
        if plan.binary {
            wire.put(column, value, out)?;
            continue;
        }
        if !std::mem::replace(&mut first, false) {
            out.push(b'\t');
        }
        text::put_field(wire, column, value, out)?;
    }
    if !plan.binary {
        out.push(b'\n');
    }
    Ok(mask)
}

impl Rows {
    /// What a `COPY` of these rows, in ascending order, sends.
    pub(super) fn data<'b>(
        &self,
        which: &[usize],
        binary: bool,
        buffer: &'b mut Buffer,
    ) -> &'b [u8] {
        if which.len() == self.index.len() {
            return &buffer.bytes;
        }
        let (header, trailer) = if binary { (HEADER, TRAILER) } else { (&[][..], &[][..]) };
        buffer.some.clear();
        buffer.some.extend(header);
        for row in which {
            buffer.some.extend(&buffer.bytes[self.starts[*row]..self.starts[row + 1]]);
        }
        buffer.some.extend(trailer);
        &buffer.some
    }

    /// What a `COPY` of these rows' ids into `aqueduct_seen` sends, in the order of the ids.
    pub(super) fn ids_data<'b>(
        &self,
        which: &[usize],
        table: &str,
        buffer: &'b mut Buffer,
    ) -> &'b [u8] {
        let mut ids: Vec<EventId> = which.iter().map(|row| self.ids[*row]).collect();
        ids.sort_unstable();
        let out = &mut buffer.some;
        out.clear();
        out.extend(HEADER);
        for id in ids {
            out.extend(2_i16.to_be_bytes());
            out.extend((table.len() as i32).to_be_bytes());
            out.extend(table.as_bytes());
            out.extend(16_i32.to_be_bytes());
            out.extend(id.to_bytes());
        }
        out.extend(TRAILER);
        out
    }

    /// The ids of these rows, in text with commas between.
    pub(super) fn ids_text(&self, which: &[usize]) -> String {
        let mut out = String::with_capacity(which.len() * 37);
        for row in which {
            let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
            out.push_str(self.ids[*row].uuid().hyphenated().encode_lower(&mut text));
            out.push(',');
        }
        out.pop();
        out
    }
}

/// What a `COPY` of no rows sends.
pub(super) fn nothing(binary: bool) -> Vec<u8> {
    match binary {
        true => [HEADER, TRAILER].concat(),
        false => Vec::new(),
    }
}
