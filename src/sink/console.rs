//! `console`: events to standard output, a line each.

use std::io::Write;

use anyhow::{Context, Result};
use async_trait::async_trait;

use super::line::one_line;
use super::{Capabilities, Kind, Sink};
use crate::event::{Delivery, Refusal};

/// The kind.
pub static KIND: Kind = Kind {
    name: "console",
    doc: "A line for each event on standard output. A JSON body is put on one line; a text body \
          that holds newlines is printed as it is.",
    system: None,
    keys: &[],
    capabilities: Capabilities {
        idempotent: Err("standard output cannot tell what was printed before"),
        fencing: false,
    },
    check: |_| Vec::new(),
    claims: |_| None,
    place: |_| "standard output".into(),
    look: |_| None,
    writers: |_| 1,
    open: |_, _| Box::pin(async { Ok(Box::new(Console) as Box<dyn Sink>) }),
    reader: None,
};

struct Console;

#[async_trait]
impl Sink for Console {
    async fn store(&mut self, batch: &[&Delivery]) -> Result<Vec<Refusal>> {
        let lines = lines(batch);
        let print = move || {
            let mut output = std::io::stdout().lock();
            output.write_all(&lines).and_then(|()| output.flush())
        };
        let printed = tokio::task::spawn_blocking(print).await?;
        printed.context("standard output takes no more (what reads it has gone, or is full)")?;
        Ok(Vec::new())
    }
}

fn lines(batch: &[&Delivery]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(batch.iter().map(|it| it.event.body.len() + 1).sum());
    for delivery in batch {
        let body = &delivery.event.body;
        lines.extend_from_slice(one_line(body).as_deref().unwrap_or(body));
        lines.push(b'\n');
    }
    lines
}
