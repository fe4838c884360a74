//! What can go wrong.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What went wrong: a fragment that says what and where; [`source`](StdError::source) says why.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for makes no sense: the text says what is wrong and what would be right. It
    /// is the same however often it is asked for.
    Invalid(String),
    /// A body could not be written as JSON.
    Json(serde_json::Error),
    /// The stream takes no more: its slowest group is too far behind (`max_backlog`). Nothing of
    /// what the error is about was stored.
    Full {
        /// The stream's name.
        stream: String,
        /// Events that the slowest group has yet to acknowledge.
        behind: u64,
    },
    /// The stream's backend cannot be reached, or could not do it. Whether it has done it is open;
    /// asking again is safe.
    Away {
        /// What failed, and where.
        what: String,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// Whether the same call may succeed later, with nothing changed in this program.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Away { .. })
    }

    pub(super) fn away(what: String, source: anyhow::Error) -> Self {
        Self::Away { what, source: source.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(text) => f.write_str(text),
            Self::Json(_) => f.write_str("the body cannot be written as JSON"),
            Self::Full { stream, behind } => write!(
                f,
                "stream {stream} is full: its slowest group is {behind} events behind (start its \
                 consumers, drop it with `aqueduct group drop`, or raise `max_backlog`)"
            ),
            Self::Away { what, .. } => write!(f, "failed to {what}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Invalid(_) | Self::Full { .. } => None,
            Self::Json(error) => Some(error),
            Self::Away { source, .. } => Some(&**source),
        }
    }
}

/// The first wait after something failed; it doubles from there.
const WAIT_FIRST: Duration = Duration::from_millis(50);
/// The longest: as often as this a server that is away is tried.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How long something is tried again.
pub(super) struct Tries {
    what: String,
    end: Instant,
    wait: Duration,
}

impl Tries {
    /// Tries of `what` ("publish to stream orders") until `end`.
    pub fn until(end: Instant, what: String) -> Self {
        Self { what, end, wait: WAIT_FIRST }
    }

    /// Waits before the next try; `error` where there is no time for one.
    pub async fn again(&mut self, error: anyhow::Error) -> Result<(), Error> {
        tracing::debug!("failed to {}: {error:#}", self.what);
        match self.wait().await {
            true => Ok(()),
            false => Err(self.over(error)),
        }
    }

    /// When there is no time for another.
    pub fn end(&self) -> Instant {
        self.end
    }

    /// There is no time left, and `error` is what the last one came to.
    pub fn over(&self, error: anyhow::Error) -> Error {
        Error::away(self.what.clone(), error)
    }

    /// Waits before the next try. `false`: there is no time for one.
    pub async fn wait(&mut self) -> bool {
        // Who failed at once with others should not come back at once with them.
        let wait = self.wait.mul_f64(0.5 + fastrand::f64() / 2.0);
        if Instant::now() + wait >= self.end {
            return false;
        }
        self.wait = (self.wait * 2).min(WAIT_MAX);
        sleep(wait).await;
        true
    }
}
