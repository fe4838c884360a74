//! Questions that are asked at once share one answer.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::answer::Found;
use crate::web::problem::Problem;

type Outcome = Result<Arc<Found>, Problem>;
type Flying = Arc<Mutex<HashMap<String, Shared<BoxFuture<'static, Outcome>>>>>;

/// The questions that the database is asked now.
#[derive(Default)]
pub struct Flights(Flying);

impl Flights {
    /// The answer to the question `key`: of who is at it already, else of `ask`, which goes on
    /// whoever still waits for it.
    pub fn join<F>(&self, key: String, ask: impl FnOnce() -> F) -> impl Future<Output = Outcome>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut flying = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flying.get(&key) {
            return flight.clone();
        }
        let (answer, landed) = (ask(), Landed { flying: self.0.clone(), key: key.clone() });
        let task = tokio::spawn(async move {
            let _landed = landed;
            answer.await
        });
        let gone = |_| Err(Problem::away("the answer was lost"));
        let flight = task.map(move |done| done.unwrap_or_else(gone)).boxed().shared();
        flying.insert(key, flight.clone());
        flight
    }
}

/// Dropped, the question is asked no more, also after a panic.
struct Landed {
    flying: Flying,
    key: String,
}

impl Drop for Landed {
    fn drop(&mut self) {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
