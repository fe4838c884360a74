//! What can be seen from outside: the [`board`] of components, [`metrics`], [`logs`], [`traces`]
//! and [`taps`].

pub mod board;
pub mod logs;
pub mod metrics;
pub mod taps;
pub mod traces;
