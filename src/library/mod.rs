//! The library: streams and groups for a program of one's own, on the backends that the actors run.
//!
//! - [`place`]: where a stream is; it goes through the checks of the topology file.
//! - [`message`], [`producer`]: the way in.
//! - [`group`], [`consumer`], [`batch`]: the way out, with [`hand`] and [`shared`] behind them:
//!   what a consumer holds, and who keeps it.
//! - [`handler`]: the program, where a topology has a sink.

mod batch;
mod consumer;
mod error;
mod group;
mod hand;
mod handler;
mod message;
mod place;
mod producer;
mod shared;

pub use batch::{Batch, Iter, Received, Settled};
pub use consumer::Consumer;
pub use error::Error;
pub use group::Group;
pub use message::Message;
pub(crate) use place::spec_at;
pub use place::{Stream, StreamBuilder};
pub use producer::Producer;
