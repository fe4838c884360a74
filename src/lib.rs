//! Aqueduct carries events from where they happen to where they are kept.
//!
//! ```text
//!  publisher ┐                       ┌ member 1 ┐
//!  tail      ├─Append─▶ stream ──────┤ member 2 ├─Deliver─▶ sink ─▶ SQLite, a file
//!  http      ┘  ◀durable             └ member n ┘ ◀stored      (or another stream)
//! ```
//!
//! The modules, in the order in which an event meets them:
//!
//! - [`event`]: what flows.
//! - [`spec`]: how a kind declares its keys, and the checked values it gets.
//! - [`source`], [`stream`], [`sink`]: the plug-ins, a file a kind.
//! - [`topology`]: the file a user writes: read, checked, promised, drawn.

#![forbid(unsafe_code)]

pub mod cli;
pub mod event;
pub mod sink;
pub mod source;
pub mod spec;
pub mod stream;
pub mod topology;
