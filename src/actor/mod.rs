//! What runs: four small actors under one [`supervisor`], each in the hands of a [`keeper`] that
//! starts it anew whatever ends it.

mod inbox;
pub mod keeper;
pub mod member;
pub mod message;
pub mod sink;
pub mod source;
pub mod stream;
pub mod supervisor;
pub mod traced;

use std::sync::Arc;

use tokio::sync::RwLock;

use crate::spec::Site;
use crate::telemetry::board::Board;

/// What all actors of a process share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The process.
    pub site: Site,
    /// Where actors write how they are.
    pub board: Arc<Board>,
    /// Held for reading by every write of a sink, and for writing while an event that may have
    /// killed a process before is delivered alone: if the process dies then, it was that event.
    pub suspicion: Arc<RwLock<()>>,
}
