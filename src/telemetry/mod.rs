//! What can be seen from outside: the [`board`] of components, [`metrics`], [`logs`] and
//! [`traces`].

pub mod board;
pub mod logs;
pub mod metrics;
pub mod traces;
