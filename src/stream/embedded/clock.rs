//! The time that leases are counted in: it goes on while the machine sleeps, never jumps, and
//! starts anew with every boot.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine was started. Means something only together with [`boot`].
pub(super) fn now_ms() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// Which start of which machine [`now_ms`] counts from.
pub(super) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
