//! What can be seen from outside: the [`board`] of components, [`metrics`], [`logs`] with what
//! they say of [`outages`], [`traces`] and [`taps`].

pub mod board;
pub mod logs;
pub mod metrics;
pub mod outages;
pub mod taps;
pub mod traces;
