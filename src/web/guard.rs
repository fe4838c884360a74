//! Who may ask, and how much at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::HttpRequest;
use actix_web::http::header::AUTHORIZATION;
use subtle::{Choice, ConstantTimeEq};

use crate::spec::text::Secret;
use crate::topology::Http;

/// Bytes of bodies that may be in memory at once.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The limits of one `[http]` table.
pub struct Guard {
    tokens: Vec<Secret>,
    /// The largest body, in bytes, after decompression.
    pub body_max: usize,
    requests_max: usize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl Guard {
    /// A guard that lets nobody in yet.
    pub fn new(http: &Http) -> Arc<Self> {
        Arc::new(Self {
            tokens: http.tokens.clone(),
            body_max: http.max_body,
            requests_max: http.max_in_flight,
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }

    /// Whether it has the limits of `http`.
    pub fn is_of(&self, http: &Http) -> bool {
        self.tokens == http.tokens
            && self.body_max == http.max_body
            && self.requests_max == http.max_in_flight
    }

    /// Whether a token is asked for.
    pub fn asks(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Whether the request has one of the tokens, or none is asked for. How long it takes does not
    /// tell how much of a wrong one was right.
    pub fn knows(&self, request: &HttpRequest) -> bool {
        if self.tokens.is_empty() {
            return true;
        }
        let given = request.headers().get(AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
        });
        let Some(given) = given else { return false };
        let same = |token: &Secret| token.expose().as_bytes().ct_eq(given);
        self.tokens.iter().fold(Choice::from(0), |found, token| found | same(token)).into()
    }

    /// Lets a request in, unless there are too many. It is out when the pass is dropped.
    pub fn enter(self: &Arc<Self>) -> Option<Pass> {
        let under_way = self.requests.fetch_add(1, Ordering::Relaxed);
        let pass = Pass { guard: self.clone(), bytes: AtomicUsize::new(0) };
        (under_way < self.requests_max).then_some(pass)
    }
}

/// One request that is under way, and the bytes it holds.
pub struct Pass {
    guard: Arc<Guard>,
    bytes: AtomicUsize,
}

impl Pass {
    /// Takes room for more bytes. `false`: there is none.
    pub fn hold(&self, bytes: usize) -> bool {
        let held = self.guard.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        held + bytes <= BYTES_MAX
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.guard.requests.fetch_sub(1, Ordering::Relaxed);
        self.guard.bytes.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}
