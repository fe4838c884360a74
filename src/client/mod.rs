//! Clients that several plug-ins share: how to reach a server, how to notice that it is gone, and
//! what its errors mean to a user, and how that is [`said`] once.

pub mod postgres;
pub mod redis;
pub mod said;
