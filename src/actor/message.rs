//! What actors say to each other. Data is only ever sent with a reply, and a sender has a bounded
//! number of batches out: that, and not the size of a mailbox, is the back-pressure.

use std::sync::Arc;

use actix::Message;

use super::reload::Changes;
use crate::event::{Delivery, Stored};
use crate::source::{Dead, Slot};
use crate::stream;
use crate::topology::edition::Edition;
use crate::topology::{Faults, Topology};

/// Why an actor did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// It could not, said why, and starts anew: nobody's fault but the outside's.
    Failed(Arc<str>),
    /// It died with the message in hand: it may have been the message.
    Died,
}

/// Source, or group → stream: append these events.
#[derive(Debug, Message)]
#[rtype(result = "Result<stream::Appended, Down>")]
pub struct Append {
    /// The events, and the checkpoint's steps.
    pub append: stream::Append,
    /// Whether to wait while the stream is full; otherwise the answer is `Full`.
    pub wait: bool,
}

/// Source → stream: where does my checkpoint stand?
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<Slot>, Down>")]
pub struct Slots {
    /// The source's `origin`.
    pub origin: Arc<str>,
}

/// Source → stream: these can be no events (a line that is too long): bury them for each group.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Down>")]
pub struct Bury {
    /// Each with the reason.
    pub dead: Vec<Dead>,
}

/// Member → sink: store these.
#[derive(Debug, Message)]
#[rtype(result = "Result<Stored, Down>")]
pub struct Deliver {
    /// The events, shared with the member.
    pub batch: Arc<Vec<Delivery>>,
    /// In a write of its own: what happens is this delivery's doing. An `exclusive` one also has
    /// the sender hold [`super::Shared::suspicion`] for writing.
    pub alone: Alone,
}

/// Whether a delivery may share a write with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// It may.
    No,
    /// A write of its own.
    Yes,
    /// A write of its own, and no other sink writes meanwhile: the sender sees to that.
    Exclusive,
}

/// Anyone → stream: how are you?
#[derive(Debug, Message)]
#[rtype(result = "Result<stream::StreamStatus, Down>")]
pub struct Status;

/// Keeper → supervisor: an actor ended, and will start anew.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Exited {
    /// Which (`sink.db`).
    pub name: String,
    /// Why.
    pub cause: String,
}

/// Anyone → supervisor: what is there, and how is it?
#[derive(Debug, Message)]
#[rtype(result = "super::supervisor::Snapshot")]
pub struct Inspect;

/// Watcher → supervisor: have this run instead of what runs.
#[derive(Debug, Message)]
#[rtype(result = "Result<Applied, Faults>")]
pub struct Reload {
    /// The file as it is now, checked. Sources that stay have the doors they had.
    pub topology: Topology,
}

/// An edit that was applied.
#[derive(Clone, Debug)]
pub struct Applied {
    /// What runs now.
    pub edition: Arc<Edition>,
    /// What that changed.
    pub changes: Changes,
}

/// Anyone → supervisor: stop in flow order, and answer when all is quiet or the time is up.
#[derive(Debug, Message)]
#[rtype(result = "super::supervisor::Drained")]
pub struct Drain;
