//! What can be seen from outside: the [`board`] of components, [`metrics`], [`logs`] with what
//! they say of [`outages`], and [`traces`].

pub mod board;
pub mod logs;
pub mod metrics;
pub mod outages;
pub mod traces;
