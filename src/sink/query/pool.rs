//! A few connections that are made when they are needed and kept for the next question.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Connections to read a sink's rows with, at most.
const CONNECTIONS_MAX: usize = 4;

/// The connections that nobody uses.
pub(crate) struct Pool<C> {
    free: Mutex<Vec<C>>,
    turns: Semaphore,
}

/// The right to use one connection.
pub(crate) struct Turn<'p, C> {
    pool: &'p Pool<C>,
    _permit: Option<SemaphorePermit<'p>>,
}

impl<C> Pool<C> {
    pub(crate) fn new() -> Self {
        Self { free: Mutex::default(), turns: Semaphore::new(CONNECTIONS_MAX) }
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&self) -> Turn<'_, C> {
        // It is never closed.
        Turn { pool: self, _permit: self.turns.acquire().await.ok() }
    }

    /// A turn, if there is one at once.
    pub(crate) fn try_turn(&self) -> Option<Turn<'_, C>> {
        Some(Turn { pool: self, _permit: Some(self.turns.try_acquire().ok()?) })
    }
}

impl<C> Turn<'_, C> {
    /// A connection that was used before.
    pub(crate) fn take(&self) -> Option<C> {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a connection that is as good as new. One that is not is dropped instead.
    pub(crate) fn give(&self, connection: C) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Closes what nobody uses: it is of a server that is gone.
    pub(crate) fn clear(&self) {
        let old =
            std::mem::take(&mut *self.pool.free.lock().unwrap_or_else(PoisonError::into_inner));
        drop(old);
    }
}
