//! When an event is no longer delivered among others, and how long it waits between deliveries of
//! its own: the same for the members of a topology and for the library's consumers.

use std::time::Duration;

use crate::event::Delivery;

/// How often an event may have been handed out before it is a suspect: once, and once again after
/// a crash that was most likely not its doing.
const INNOCENT_DELIVERIES: u32 = 2;
/// How many deaths within its delivery make a batch's events suspects.
const INNOCENT_DEATHS: u32 = 1;
/// The wait between the first two attempts of a suspect; it doubles from there.
const ATTEMPT_FIRST: Duration = Duration::from_millis(50);
/// The longest wait between two attempts.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// Whether an event is to be delivered alone. `deaths`: how often its batch was lost in the hands
/// of whoever this member delivered it to.
pub fn is_suspect(delivery: &Delivery, deaths: u32) -> bool {
    deaths > INNOCENT_DEATHS || delivery.deliveries > INNOCENT_DELIVERIES || delivery.attempts > 0
}

/// How long it waits after this many attempts.
pub fn wait_after(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10);
    (ATTEMPT_FIRST * (1 << doublings)).min(ATTEMPT_MAX)
}
