//! Streams in a PostgreSQL database, which any number of processes on any number of machines may
//! share. The model is [`sql`](super::sql)'s; here is what is PostgreSQL's own:
//!
//! - [`db`]: one database and schema: its connections and transactions.
//! - [`tx`]: how a transaction runs the model's statements.
//! - [`schema`]: how the tables are created and told from those of another version.
//! - [`listen`]: the connection that hears when there is something new, and that holds a lock for
//!   as long as this process lives.
//! - [`alive`]: which processes live, by these locks.
//!
//! A lease's deadline is set and compared by the server's clock, so that machines need not agree
//! on the time.

mod alive;
mod db;
mod listen;
mod schema;
mod tx;

use std::sync::Arc;

use anyhow::Result;

use self::db::Db;
use super::{Backend, Capabilities, Kind, StreamSpec, sql};
use crate::client::postgres::{Server, check_name};
use crate::spec::{Complaint, Default as KeyDefault, Key, Site, Ty};

/// `kind = "postgres"`
pub static KIND: Kind = Kind {
    name: "postgres",
    doc: "A schema of a PostgreSQL database. Several streams and processes may share it. A process \
          keeps up to six connections for all its streams in it.",
    keys: &[
        Key {
            name: "url",
            ty: Ty::Url(&["postgres", "postgresql"]),
            default: KeyDefault::Required,
            doc: "The database: `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Not through a pooler \
                  that hands out connections by the transaction.",
        },
        Key {
            name: "schema",
            ty: Ty::Str,
            default: KeyDefault::Toml("\"aqueduct\""),
            doc: "The schema with the tables, created where it is missing and the user may.",
        },
    ],
    group_keys: &[],
    capabilities: Capabilities {
        foreign_identity: false,
        history: true,
        shards: true,
        transactional_checkpoint: true,
        ordered: true,
    },
    check: |values| match check_name(values.str("schema")) {
        Ok(()) => Vec::new(),
        Err(error) => vec![Complaint { key: "schema", message: error.to_string() }],
    },
    place: |spec| {
        let database = Server::new(spec.values.str("url"), "")
            .map(|server| format!("{} on {}", server.database(), server.address()));
        let (schema, database) = (spec.values.str("schema"), database.unwrap_or_default());
        format!("stream {} in schema {schema} of {database}", spec.name)
    },
    claims: |_| Vec::new(),
    open: |spec, site| Box::pin(open(spec, site)),
};

async fn open(spec: StreamSpec, site: Site) -> Result<Arc<dyn Backend>> {
    let db = Db::open(spec.values.str("url"), spec.values.str("schema")).await?;
    sql::backend::open(db, spec, &site).await
}
