//! `postgres`: rows of a table in a PostgreSQL database, each event once.
//!
//! A batch goes by `COPY` straight into the table. Only when that meets an id which is there
//! already are the ids looked up first, and only while duplicates keep coming.

mod array;
mod catalogue;
mod number;
mod ordered;
mod plan;
mod query;
mod rows;
mod seen;
mod text;
mod wire;
mod write;

use std::sync::Arc;

use anyhow::{Result, bail};
use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::columns::Type;
use super::table::{self, Config, Dialect};
use super::{Capabilities, Kind, Sink, SinkSpec, fence};
use crate::client::postgres::{Server, Session, check_name, quote};
use crate::event::{Delivery, Refusal, Stored};
use crate::spec::{Complaint, Default, Key, Site, Ty, Values, text as shown};
use plan::Plan;
use rows::Buffer;

/// The kind.
pub static KIND: Kind = Kind {
    name: "postgres",
    doc: "Rows of a table in a PostgreSQL database, each event exactly once.",
    system: Some("postgresql"),
    keys: KEYS,
    capabilities: Capabilities { idempotent: Ok(()), fencing: true },
    check,
    claims: |values| Some(place(values)),
    place,
    look,
    writers: |values| values.uint("connections").max(1) as usize,
    open,
    reader: Some(query::open),
};

static KEYS: &[Key] = &[
    Key {
        name: "url",
        ty: Ty::Url(&["postgres", "postgresql"]),
        default: Default::Required,
        doc: "The server and database: `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with \
              libpq's parameters behind a `?` (`sslmode`, `sslrootcert`, …).",
    },
    Key {
        name: "table",
        ty: Ty::Str,
        default: Default::Required,
        doc: "The table that gets a row for each event, with its schema or without \
              (`schema.table`). Its case counts; a name with a dot in it goes in double quotes.",
    },
    Key {
        name: "connections",
        ty: Ty::Int(1, 100),
        default: Default::Toml("2"),
        doc: "How many batches may be written at once, each on a connection of its own.",
    },
    Key {
        name: "columns",
        ty: Ty::Columns,
        default: Default::Derived(
            "`event_id`, `data` (the body as JSONB; a body that is not JSON as a JSON string) and \
             `inserted_at`",
        ),
        doc: "What goes into which column: a member of the JSON body (`number = \"number\"`, \
              dotted for nested ones), or `@body @id @time @source @stream @key @type @trace`; \
              `{ from = \"number\", type = \"bigint\" }` names the type a column is created with \
              (without: `text`, `uuid` for `@id`, `timestamptz` for `@time`). An existing table's \
              columns have the types they have. A missing member is NULL, or the column's default \
              where it is NOT NULL and has one; columns that are not named get their defaults.",
    },
    table::CREATE,
    table::ID_COLUMN,
    table::MODE,
    table::KEY,
    table::SEEN,
];

static DIALECT: Dialect = Dialect {
    same: |a, b| a == b,
    quote,
    has_type: plan::may_be_type,
    declare: plan::declare,
    holds_id: |ty| matches!(ty, Type::Uuid | Type::Text | Type::Bytes),
    id_type: "uuid",
    body_type: "jsonb",
    inserted_at: "timestamptz NOT NULL DEFAULT now()",
};

/// A table's name: its schema, if it is named, and its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    schema: Option<String>,
    table: String,
}

impl Name {
    /// Reads `table`, `schema.table` and `"any.schema"."any.table"`.
    fn parse(text: &str) -> Result<Self> {
        let mut parts = vec![String::new()];
        let mut quoted = false;
        for c in text.chars() {
            match c {
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                _ => parts.iter_mut().last().into_iter().for_each(|part| part.push(c)),
            }
        }
        for part in &parts {
            check_name(part)?;
        }
        let mut parts = parts.into_iter().rev();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(table), schema, None) => Ok(Self { schema, table }),
            _ => bail!(
                "`{text}` is no table (`table`, `schema.table`, or a name with a dot in \
                        double quotes)"
            ),
        }
    }

    /// As SQL calls it.
    fn sql(&self) -> String {
        self.beside(&self.table)
    }

    /// A table of this name in the same schema, as SQL calls it.
    fn beside(&self, table: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(table)),
            None => quote(table),
        }
    }
}

fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |key, message| complaints.push(Complaint { key, message });
    if let Err(error) = Server::new(values.str("url"), "check") {
        complain("url", format!("{error} (postgres://USER:PASSWORD@HOST:PORT/DATABASE)"));
    }
    match Name::parse(values.str("table")) {
        Ok(name) if [plan::SEEN, fence::TABLE].contains(&&*name.table) => complain(
            "table",
            format!("`{}` is a table of aqueduct's own (name another)", name.table),
        ),
        Ok(_) => {}
        Err(error) => complain("table", error.to_string()),
    }
    let mapped = values.opt_columns("columns").unwrap_or_default().iter();
    let names = mapped.map(|column| ("columns", column.name.as_str()));
    for (key, name) in names.chain(values.opt_str("id_column").map(|name| ("id_column", name))) {
        if let Err(error) = check_name(name) {
            complain(key, error.to_string());
        }
    }
    complaints.extend(table::check(values, &DIALECT));
    complaints
}

/// `table "t" in HOST:PORT/DATABASE`; `public` is what a table without a schema usually is in.
fn place(values: &Values) -> String {
    let table = match Name::parse(values.str("table")) {
        Ok(Name { schema: Some(schema), table }) if schema != "public" => {
            format!("{schema}.{table}")
        }
        Ok(Name { table, .. }) => table,
        Err(_) => values.str("table").into(),
    };
    match Server::new(values.str("url"), "") {
        Ok(server) => {
            let address = server.address().to_lowercase();
            format!("table \"{table}\" in {address}/{}", server.database())
        }
        Err(_) => format!("table \"{table}\" in {}", shown::redact(values.str("url"))),
    }
}

fn look(values: &Values) -> Option<String> {
    let server = Server::new(values.str("url"), "").ok()?;
    let options = server.options();
    let table = Name::parse(values.str("table")).ok()?.sql();
    let order = match values.opt_columns("columns") {
        None => "ORDER BY inserted_at DESC ",
        Some(_) => "",
    };
    let host = match options.get_socket() {
        Some(directory) => directory.display().to_string(),
        None => options.get_host().into(),
    };
    Some(format!(
        "psql -h {host} -p {} -U {} -d {} -c 'SELECT * FROM {table} {order}LIMIT 5'",
        options.get_port(),
        options.get_username(),
        server.database()
    ))
}

fn open(spec: SinkSpec, _site: Site) -> BoxFuture<'static, Result<Box<dyn Sink>>> {
    Box::pin(async move { Ok(Box::new(Table::open(&spec).await?) as _) })
}

/// A table, open for writing.
struct Table {
    server: Arc<Server>,
    plan: Plan,
    /// `None` while a batch is under way: whoever stops waiting for that leaves none behind.
    session: Option<Session>,
    buffer: Buffer,
    caution: write::Caution,
    /// The table of fences is there.
    fences: bool,
}

#[async_trait]
impl Sink for Table {
    async fn store(&mut self, batch: &[&Delivery]) -> Result<Vec<Refusal>> {
        write::store(self, batch).await
    }

    async fn store_ordered(&mut self, batch: &[&Delivery]) -> Result<Stored> {
        ordered::store(self, batch).await
    }

    async fn check(&mut self) -> Result<()> {
        match &mut self.session {
            Some(session) => session.ping(&self.server).await,
            None => Ok(()), // the next batch connects
        }
    }
}

impl Table {
    async fn open(spec: &SinkSpec) -> Result<Self> {
        let config = Config::new(&spec.values, &DIALECT);
        let name = Name::parse(&config.table)?;
        let server = Arc::new(Server::new(spec.values.str("url"), &spec.name)?);
        let mut session = server.connect().await?;
        let pid = session.pid();
        let open = async {
            let found = match catalogue::read(&server, &mut session, &name).await? {
                Some(found) => found,
                None => catalogue::create(&server, &mut session, &config, &name).await?,
            };
            let plan = Plan::new(&config, &name, &found, &server)?;
            plan.prepare(&server, &mut session).await?;
            Ok::<_, anyhow::Error>(plan)
        };
        let plan = server.watch(pid, open).await??;
        let (buffer, caution) = (Buffer::default(), write::Caution::default());
        Ok(Self { server, plan, session: Some(session), buffer, caution, fences: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_with_its_schema_or_without() {
        let name = |schema: Option<&str>, table: &str| Name {
            schema: schema.map(String::from),
            table: table.into(),
        };
        assert_eq!(Name::parse("Lines").unwrap(), name(None, "Lines"));
        assert_eq!(Name::parse("a.b").unwrap(), name(Some("a"), "b"));
        assert_eq!(Name::parse("\"a.b\"").unwrap(), name(None, "a.b"));
        assert_eq!(Name::parse("a.b").unwrap().sql(), "\"a\".\"b\"");
        for wrong in ["", "a.", "a.b.c"] {
            assert!(Name::parse(wrong).is_err(), "{wrong}");
        }
    }
}
