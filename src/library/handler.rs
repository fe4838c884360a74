//! The program itself, as the sink that a group of the library delivers to.

use anyhow::bail;

use crate::sink::{Capabilities, Kind};

/// What a group of the library may deliver to.
pub(super) static KINDS: &[&Kind] = &[&KIND];

/// The kind. No actor opens it.
pub(super) static KIND: Kind = Kind {
    name: "program",
    doc: "The program that pulls.",
    system: None,
    keys: &[],
    capabilities: Capabilities {
        idempotent: Err("what a program does is its own"),
        // By `Received::fence`, where it has something to keep from others.
        fencing: true,
    },
    check: |_| Vec::new(),
    claims: |_| None,
    place: |_| "this program".into(),
    look: |_| None,
    writers: |_| 1,
    open: |_, _| Box::pin(async { bail!("a program pulls its messages itself") }),
    reader: None,
};
