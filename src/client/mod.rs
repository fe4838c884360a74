//! Clients that several plug-ins share: how to reach a server, how to notice that it is gone, and
//! what its errors mean to a user.

pub mod postgres;
pub mod redis;
