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
//! - [`client`]: how servers are reached that several plug-ins use.
//! - [`source`], [`stream`], [`sink`]: the plug-ins, a file a kind.
//! - [`topology`]: the file a user writes: read, checked, promised, drawn.
//! - [`telemetry`]: what can be seen from outside.
//! - [`actor`]: what runs the plug-ins, and starts anew what ends.
//! - [`web`], [`cli`]: how people and programs see and steer it.

#![forbid(unsafe_code)]

pub mod actor;
pub mod cli;
pub mod client;
pub mod event;
mod fault;
pub mod sink;
pub mod source;
pub mod spec;
pub mod stream;
pub mod telemetry;
pub mod topology;
pub mod web;
