//! What can be seen from outside: the [`board`] of components, and [`metrics`].

pub mod board;
pub mod logs;
pub mod metrics;
