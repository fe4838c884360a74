//! From the `columns` of a database sink to the values of a row: shared by every sink that writes
//! tables.

mod convert;
mod extract;
mod types;

pub use convert::{Datum, Unreadable, from_json, from_text, is_json, time_text, timestamp};
pub use types::Type;

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::event::Delivery;
use crate::spec::text::did_you_mean;
use crate::spec::{Column, Complaint, Selector};
use extract::Tree;

/// A column, and what goes into it.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// The column's name in the table.
    pub name: String,
    /// What goes into it.
    pub from: Selector,
    /// What it holds.
    pub ty: Type,
    /// The type's name, as a refusal shows it.
    pub ty_name: String,
}

/// Makes rows of events.
#[derive(Debug)]
pub struct Mapping {
    columns: Vec<Mapped>,
    /// The slot of each column that takes a member.
    slots: Vec<Option<usize>>,
    tree: Tree,
}

impl Mapping {
    /// A mapping into these columns, in this order.
    pub fn new(columns: Vec<Mapped>) -> Self {
        let mut tree = Tree::default();
        let slots = columns
            .iter()
            .enumerate()
            .map(|(at, column)| match &column.from {
                Selector::Member(path) => Some(tree.ask(path, at)),
                _ => None,
            })
            .collect();
        Self { columns, slots, tree }
    }

    /// The columns, in the order of a row's values.
    pub fn columns(&self) -> &[Mapped] {
        &self.columns
    }

    /// What a refusal says of an event without a value for a column of the sink's `key`.
    pub fn complain_no_key(column: &str) -> String {
        format!("column `{column}` is of the sink's `key`, and the event has no value for it")
    }

    /// Appends the event's row to `row`: a value a column. A member that the body does not have is
    /// NULL. Errs, and appends nothing, when the event does not fit: what is wrong with it.
    pub fn read<'a>(
        &self,
        delivery: &'a Delivery,
        found: &mut Vec<Option<&'a RawValue>>,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<(), String> {
        let before = row.len();
        let filled = self.fill(delivery, found, row);
        if filled.is_err() {
            row.truncate(before);
        }
        filled
    }

    fn fill<'a>(
        &self,
        delivery: &'a Delivery,
        found: &mut Vec<Option<&'a RawValue>>,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<(), String> {
        if !self.tree.is_empty() {
            let body = std::str::from_utf8(&delivery.event.body)
                .map_err(|_| "the body is not JSON: it is not UTF-8")?;
            found.clear();
            found.resize(self.columns.len(), None);
            self.tree.read(body, found)?;
        }
        for (column, slot) in self.columns.iter().zip(&self.slots) {
            row.push(match slot {
                Some(slot) => match found[*slot] {
                    Some(raw) => from_json(raw.get(), column.ty)
                        .map_err(|Unreadable| column.complain(raw.get()))?,
                    None => Datum::Null,
                },
                None => column.select(delivery)?,
            });
        }
        Ok(())
    }
}

impl Mapped {
    /// The value of a selector.
    fn select<'a>(&self, delivery: &'a Delivery) -> Result<Datum<'a>, String> {
        let event = &delivery.event;
        match &self.from {
            Selector::Body => self.body(&event.body),
            Selector::Id => match self.ty {
                Type::Any | Type::Text | Type::Uuid => Ok(Datum::Uuid(event.id.uuid())),
                Type::Bytes => Ok(Datum::Bytes(event.id.to_bytes().to_vec().into())),
                _ => self.text(Cow::Owned(event.id.to_string())),
            },
            Selector::Time => match self.ty {
                Type::Any | Type::Text | Type::Timestamp => Ok(Datum::Time(event.time_us)),
                _ => self.text(Cow::Owned(time_text(event.time_us))),
            },
            Selector::Source => self.name(&event.source),
            Selector::Stream => self.name(&delivery.stream),
            Selector::Key => self.opt_text(event.key.as_deref()),
            Selector::Kind => self.opt_text(event.kind.as_deref()),
            Selector::Trace => {
                self.opt_text(event.trace.as_deref().and_then(|it| it.split('-').nth(1)))
            }
            // `Mapping` gives every member a slot.
            Selector::Member(_) => Ok(Datum::Null),
        }
    }

    fn name<'a>(&self, name: &'a std::sync::Arc<str>) -> Result<Datum<'a>, String> {
        match self.ty {
            Type::Any | Type::Text => Ok(Datum::Name(name)),
            _ => self.text(Cow::Borrowed(name)),
        }
    }

    fn opt_text<'a>(&self, text: Option<&'a str>) -> Result<Datum<'a>, String> {
        text.map_or(Ok(Datum::Null), |text| self.text(Cow::Borrowed(text)))
    }

    fn text<'a>(&self, text: Cow<'a, str>) -> Result<Datum<'a>, String> {
        from_text(text.clone(), self.ty).map_err(|Unreadable| self.complain(&format!("{text:?}")))
    }

    /// The whole body; as bytes where it is no text and the column does not ask for more.
    fn body<'a>(&self, body: &'a [u8]) -> Result<Datum<'a>, String> {
        match (std::str::from_utf8(body), self.ty) {
            (_, Type::Bytes) => Ok(Datum::Bytes(body.into())),
            (Ok(text), _) => self.text(Cow::Borrowed(text)),
            (Err(_), Type::Any | Type::Text | Type::Json) => Ok(Datum::Bytes(body.into())),
            (Err(_), _) => Err(self.complain("a body that is not UTF-8")),
        }
    }

    /// What a refusal says of a value that is not of the column's type.
    pub fn complain(&self, value: &str) -> String {
        const SHOWN: usize = 60;
        let mut shown: String = value.chars().take(SHOWN).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        format!("column `{}` is {}: {shown} does not read as one", self.name, self.ty_name)
    }
}

/// What is wrong with `columns` whatever the table is, in a database that compares names like
/// `same` and also has the types that `has_type` knows.
pub fn check(
    columns: &[Column],
    same: fn(&str, &str) -> bool,
    has_type: fn(&str) -> bool,
) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |message| complaints.push(Complaint { key: "columns", message });
    if columns.is_empty() {
        complain("no column is named (name at least one, or leave `columns` out)".into());
    }
    for (at, column) in columns.iter().enumerate() {
        if let Some(other) = columns[..at].iter().find(|other| same(&other.name, &column.name)) {
            let hint = if other.name == column.name { "" } else { " (its SQL knows no case)" };
            complain(format!("column `{}` is named twice{hint}", column.name));
        }
        let Some(name) = &column.ty else { continue };
        let Some(ty) = Type::parse(name) else {
            if has_type(name) {
                continue;
            }
            complain(unknown_type(&column.name, name));
            continue;
        };
        let (selector, allowed) = match column.from {
            Selector::Id => ("@id", &[Type::Uuid, Type::Text, Type::Bytes][..]),
            Selector::Time => ("@time", &[Type::Timestamp, Type::Text][..]),
            _ => continue,
        };
        if !allowed.contains(&ty) {
            let allowed = match column.from {
                Selector::Id => "uuid, text or a type of bytes",
                _ => "timestamptz or text",
            };
            complain(format!(
                "column `{}` is {name}, which {selector} is not (allowed: {allowed})",
                column.name
            ));
        }
    }
    complaints
}

fn unknown_type(column: &str, name: &str) -> String {
    let known = Type::NAMES.iter().map(|(known, _)| *known);
    let hint = did_you_mean(&name.to_lowercase(), known);
    format!(
        "column `{column}`: unknown type `{name}`{hint} (allowed: bigint, integer, smallint, \
         double precision, real, numeric, text, varchar, boolean, timestamptz, timestamp, uuid, \
         json, jsonb, bytea, blob)"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::event::{Event, EventId, Ticket};

    fn delivery(body: &'static [u8]) -> Delivery {
        let id = EventId::hashed(&[body]);
        let mut event = Event::new(id, Bytes::from_static(body), Arc::from("input"), 1_000_000);
        event.kind = Some("paid".into());
        event.trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
        let ticket = Ticket { shard: 0, hold: 0, offset: 0 };
        Delivery {
            event,
            stream: Arc::from("lines"),
            ticket,
            deliveries: 1,
            attempts: 0,
            fence: None,
        }
    }

    fn mapped(name: &str, from: &str, ty: &str) -> Mapped {
        let from = Selector::NAMED
            .iter()
            .find(|(known, _)| *known == from)
            .map(|(_, selector)| selector.clone())
            .unwrap_or_else(|| Selector::Member(from.split('.').map(String::from).collect()));
        let kind = Type::parse(ty).unwrap_or(Type::Any);
        Mapped { name: name.into(), from, ty: kind, ty_name: ty.into() }
    }

    #[test]
    fn a_row_takes_from_the_event_and_its_body() {
        let mapping = Mapping::new(vec![
            mapped("n", "user.n", "bigint"),
            mapped("again", "user.n", "text"),
            mapped("none", "x", "text"),
            mapped("source", "@source", "text"),
            mapped("stream", "@stream", ""),
            mapped("trace", "@trace", "text"),
            mapped("key", "@key", "text"),
            mapped("type", "@type", "text"),
            mapped("time", "@time", "timestamptz"),
        ]);
        let delivery = delivery(br#"{"user":{"n":"42"}}"#);
        let mut row = Vec::new();
        mapping.read(&delivery, &mut Vec::new(), &mut row).unwrap();
        let expected = [
            Datum::Int(42),
            Datum::Text("42".into()),
            Datum::Null,
            Datum::Name(&delivery.event.source),
            Datum::Name(&delivery.stream),
            Datum::Text("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            Datum::Null,
            Datum::Text("paid".into()),
            Datum::Time(1_000_000),
        ];
        assert_eq!(row, expected);
    }

    #[test]
    fn a_refusal_says_what_would_be_right_and_leaves_no_half_row() {
        let mapping = Mapping::new(vec![mapped("a", "a", ""), mapped("number", "n", "bigint")]);
        let (good, bad) = (delivery(br#"{"n":1}"#), delivery(br#"{"a":1,"n":"abc"}"#));
        let (mut row, mut found) = (Vec::new(), Vec::new());
        mapping.read(&good, &mut found, &mut row).unwrap();
        assert_eq!(
            mapping.read(&bad, &mut found, &mut row).unwrap_err(),
            "column `number` is bigint: \"abc\" does not read as one"
        );
        assert_eq!(row, [Datum::Null, Datum::Int(1)]);
    }

    #[test]
    fn a_body_loses_nothing() {
        let text = Mapping::new(vec![mapped("data", "@body", "text")]);
        let bytes = delivery(b"\xff\n");
        let mut row = Vec::new();
        text.read(&bytes, &mut Vec::new(), &mut row).unwrap();
        assert_eq!(row, [Datum::Bytes(b"\xff\n".as_slice().into())]);
    }

    #[test]
    fn faults_of_columns_are_all_told() {
        let column = |name: &str, from, ty: &str| Column {
            name: name.into(),
            from,
            ty: Some(ty.into()).filter(|ty: &String| !ty.is_empty()),
        };
        let columns = [
            column("a", Selector::Body, "bigin"),
            column("A", Selector::Id, "integer"),
            column("b", Selector::Time, "varchar(30)"),
        ];
        let found = check(&columns, str::eq_ignore_ascii_case, |_| false);
        let messages: Vec<_> = found.iter().map(|complaint| complaint.message.as_str()).collect();
        assert_eq!(messages.len(), 3, "{messages:?}");
        assert!(messages[0].contains("unknown type `bigin`, did you mean `bigint`?"));
        assert!(messages[1].contains("named twice"));
        assert!(messages[2].contains("is integer, which @id is not"));
    }
}
