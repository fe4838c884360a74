//! When the next event is due.

use std::time::Duration;

use tokio::time::Instant;

/// A steady schedule: event `i` is due `i` periods after the first one, whatever became late in
/// between, so that it does not drift.
#[derive(Debug)]
pub(super) struct Pace {
    period_s: f64,
    /// When the first was due.
    start: Option<Instant>,
    /// Places of the schedule that were taken, or given up.
    taken: u64,
}

impl Pace {
    /// A schedule of one event in `period_s` seconds. `None`: no limit.
    pub fn new(period_s: f64) -> Option<Self> {
        (period_s > 0.0 && period_s.is_finite()).then_some(Self { period_s, start: None, taken: 0 })
    }

    /// Events that are due at `now`. What is more than a second late is given up, so that a stall
    /// is not followed by a flood.
    pub fn due(&mut self, now: Instant) -> u64 {
        let start = *self.start.get_or_insert(now);
        let places = (now.duration_since(start).as_secs_f64() / self.period_s) as u64;
        let places = places.saturating_add(1);
        let late_max = (1.0 / self.period_s).max(1.0) as u64;
        self.taken = self.taken.max(places.saturating_sub(late_max));
        places.saturating_sub(self.taken)
    }

    /// The next event is the first.
    pub fn restart(&mut self) {
        (self.start, self.taken) = (None, 0);
    }

    /// `count` events were sent.
    pub fn take(&mut self, count: u64) {
        self.taken += count;
    }

    /// Returns when an event is due.
    pub async fn wait(&self) {
        match self.next() {
            Some(due) => tokio::time::sleep_until(due).await,
            None if self.start.is_none() => {}
            None => std::future::pending().await,
        }
    }

    /// When the next event is due; `None` before the first look, or beyond the clock's end.
    fn next(&self) -> Option<Instant> {
        let after = Duration::try_from_secs_f64(self.period_s * self.taken as f64).ok()?;
        // Rounded up, or `due` could find it a fraction of a nanosecond early.
        self.start?.checked_add(after.checked_add(Duration::from_nanos(1))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_gives_one_at_a_time_and_does_not_drift() {
        let mut pace = Pace::new(1.0).unwrap();
        let start = Instant::now();
        for second in 0..1000 {
            // Always looked at too late, by another bit each time.
            let now = start + Duration::from_millis(second * 1000 + second % 900);
            assert_eq!(pace.due(now), 1);
            pace.take(1);
            assert_eq!(pace.due(now), 0);
            let next = pace.next().unwrap() - start;
            assert_eq!(next, Duration::from_secs(second + 1) + Duration::from_nanos(1));
        }
    }

    #[test]
    fn a_stall_is_followed_by_a_second_s_worth_at_most() {
        let start = Instant::now();
        for (rate, most) in [(1000.0, 1000), (0.2, 1), (1.0, 1), (2.5, 2)] {
            let mut pace = Pace::new(1.0 / rate).unwrap();
            assert_eq!(pace.due(start), 1);
            pace.take(1);
            let late = start + Duration::from_secs(3600);
            assert_eq!(pace.due(late), most);
            pace.take(most);
            assert_eq!(pace.due(late), 0, "the rest is given up");
            let next = pace.next().unwrap();
            assert!(next > late && next <= late + Duration::from_secs_f64(1.1 / rate));
            assert_eq!(pace.due(next), 1);
        }
    }

    #[test]
    fn a_rate_is_met_however_often_one_looks() {
        let start = Instant::now();
        for gap_us in [7, 1000, 33_333, 900_000] {
            let mut pace = Pace::new(1.0 / 12_345.0).unwrap();
            let mut sent = 0;
            for look in 0..=(10_000_000 / gap_us) {
                let due = pace.due(start + Duration::from_micros(look * gap_us));
                pace.take(due);
                sent += due;
            }
            let seconds = (10_000_000 / gap_us * gap_us) as f64 / 1e6;
            assert!((sent as f64 - 12_345.0 * seconds).abs() <= 1.5, "{sent} at {gap_us} us");
        }
    }

    #[test]
    fn nothing_is_too_slow_or_too_fast_for_it() {
        assert!(Pace::new(0.0).is_none());
        let start = Instant::now();
        let mut slow = Pace::new(f64::MAX).unwrap();
        assert_eq!(slow.due(start), 1);
        slow.take(1);
        assert_eq!((slow.due(start), slow.next()), (0, None));
        let mut fast = Pace::new(f64::MIN_POSITIVE).unwrap();
        assert_eq!(fast.due(start), 1);
        fast.take(1);
        assert!(fast.due(start + Duration::from_secs(1)) > 1_000_000_000);
    }
}
