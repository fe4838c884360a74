//! What runs: four small actors under one [`supervisor`], each in the hands of a [`keeper`] that
//! starts it anew whatever ends it.

mod crew;
mod inbox;
pub mod keeper;
pub mod member;
pub mod message;
pub mod reload;
pub mod sink;
pub mod source;
pub mod stream;
pub mod supervisor;
pub mod traced;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

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

/// How long a new life that an edit asks for waits for what the old one is at.
const RENEWAL_WAIT: Duration = Duration::from_secs(5);

/// Returns some time after a new life was asked for: what is under way then is given up, as if it
/// had failed.
async fn given_up(renewal: &CancellationToken) {
    renewal.cancelled().await;
    tokio::time::sleep(RENEWAL_WAIT).await;
}

/// What an actor is made from, which an edit of the topology may replace: the next life has it.
#[derive(Clone, Debug)]
pub struct Current<T>(Arc<Mutex<T>>);

impl<T: Clone> Current<T> {
    /// One that is `spec` until it is replaced.
    pub fn new(spec: T) -> Self {
        Self(Arc::new(Mutex::new(spec)))
    }

    /// What it is now.
    pub fn get(&self) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it.
    pub fn set(&self, spec: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = spec;
    }
}
