//! The stream backend that needs no server: SQLite, in one file of this machine, which any number
//! of processes may open. The model is [`sql`](super::sql)'s; here is what is SQLite's own:
//!
//! - [`db`]: one open file: its connections, its transactions, and what happens when somebody
//!   puts an older copy in its place ([`files`]).
//! - [`tx`]: how a transaction runs the model's statements.
//! - [`schema`]: how the tables are created and told from somebody else's.
//! - [`alive`]: which processes live, by file locks.
//! - [`clock`]: the time that leases are counted in.

mod alive;
mod clock;
mod db;
mod files;
mod schema;
mod tx;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use self::db::Db;
use super::{Backend, Capabilities, Kind, StreamSpec, sql};
use crate::spec::{Default as KeyDefault, Key, Site, Ty};

/// `kind = "embedded"`
pub static KIND: Kind = Kind {
    name: "embedded",
    doc: "A SQLite database on this machine. It needs no server; several streams and processes may \
          share a file.",
    keys: &[Key {
        name: "path",
        ty: Ty::Path,
        default: KeyDefault::Derived("streams.db in runtime.data_dir"),
        doc: "The database file. Restore an older copy of it without its -wal and -shm files.",
    }],
    group_keys: &[],
    capabilities: Capabilities {
        foreign_identity: false,
        history: true,
        shards: true,
        transactional_checkpoint: true,
        ordered: true,
    },
    check: |_| Vec::new(),
    place: |spec| {
        let file = spec.values.opt_str("path").unwrap_or("streams.db in the data directory");
        format!("stream {} in {file}", spec.name)
    },
    claims: |_| Vec::new(),
    open: |spec, site| Box::pin(open(spec, site)),
};

async fn open(spec: StreamSpec, site: Site) -> Result<Arc<dyn Backend>> {
    let path: PathBuf =
        spec.values.opt_path("path").unwrap_or_else(|| site.data_dir.join("streams.db"));
    sql::backend::open(Db::open(&path).await?, spec, &site).await
}
