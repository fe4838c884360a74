//! How many new traces a source begins.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::topology::Sample;

/// The window of a rate.
const SECOND_US: i64 = 1_000_000;
/// More than these a second nobody looks at: a larger rate is this one.
const PER_SECOND_MAX: u64 = 100_000;

/// Decides for one source.
#[derive(Debug)]
pub struct Sampler {
    rule: RwLock<Arc<Rule>>,
}

/// By what it decides now.
#[derive(Debug)]
pub struct Rule(By);

#[derive(Debug)]
enum By {
    All,
    Ratio(f64),
    Rate(Window),
}

/// At most `limit` in any second, wherever that second begins.
#[derive(Debug)]
struct Window {
    limit: usize,
    /// Before this none may begin: what most events are turned away by.
    free_us: AtomicI64,
    begun: Mutex<VecDeque<i64>>,
}

impl Sampler {
    /// Decides by `sample`.
    pub fn new(sample: Sample) -> Self {
        Self { rule: RwLock::new(Rule::new(sample)) }
    }

    /// Decides by another `sample` from now on.
    pub fn set(&self, sample: Sample) {
        *self.rule.write().unwrap_or_else(PoisonError::into_inner) = Rule::new(sample);
    }

    /// By what it decides now: for one batch.
    pub fn rule(&self) -> Arc<Rule> {
        self.rule.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Rule {
    fn new(sample: Sample) -> Arc<Self> {
        Arc::new(Self(match sample {
            Sample::Ratio(ratio) if ratio >= 1.0 => By::All,
            Sample::Ratio(ratio) => By::Ratio(ratio),
            Sample::PerSecond(0) => By::All,
            Sample::PerSecond(limit) => By::Rate(Window {
                limit: limit.min(PER_SECOND_MAX) as usize,
                free_us: AtomicI64::new(i64::MIN),
                begun: Mutex::default(),
            }),
        }))
    }

    /// Whether an event that comes at `now_us` begins a trace; and when that trace begins, which
    /// is the time that counts.
    pub fn begin(&self, now_us: i64) -> Option<i64> {
        match &self.0 {
            By::All => Some(now_us),
            By::Ratio(ratio) => (fastrand::f64() < *ratio).then_some(now_us),
            By::Rate(window) => window.begin(now_us),
        }
    }
}

impl Window {
    fn begin(&self, now_us: i64) -> Option<i64> {
        let free_us = self.free_us.load(Ordering::Relaxed);
        // A clock that was set back by more than the window is no reason to wait for it.
        if now_us < free_us && free_us - now_us <= SECOND_US {
            return None;
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.back().is_some_and(|last| last.saturating_sub(now_us) > SECOND_US) {
            begun.clear();
        }
        // Instances of a source read the clock one before the other and come here in any order.
        let now_us = begun.back().map_or(now_us, |last| now_us.max(*last));
        if begun.len() == self.limit {
            if begun.front().is_some_and(|first| now_us - first < SECOND_US) {
                return None;
            }
            begun.pop_front();
        }
        begun.push_back(now_us);
        if begun.len() == self.limit
            && let Some(first) = begun.front()
        {
            self.free_us.store(first + SECOND_US, Ordering::Relaxed);
        }
        Some(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_the_rate_and_none_is_wasted() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let sampler = Sampler::new(Sample::PerSecond(10));
        let mut now_us = 1_000_000_000;
        let mut begun: Vec<i64> = Vec::new();
        while now_us < 1_020_000_000 {
            begun.extend(sampler.rule().begin(now_us - random.i64(0..50)));
            now_us += random.i64(0..200);
        }
        for window in begun.windows(11) {
            assert!(window[10] - window[0] >= SECOND_US, "{window:?}");
        }
        assert!((195..=200).contains(&begun.len()), "{}", begun.len());
        // A burst after silence has them all at once.
        let burst: Vec<_> = (0..50).filter_map(|_| sampler.rule().begin(2_000_000_000)).collect();
        assert_eq!(burst.len(), 10);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_end_it() {
        let sampler = Sampler::new(Sample::PerSecond(1));
        assert!(sampler.rule().begin(5_000_000_000).is_some());
        assert_eq!(sampler.rule().begin(5_000_500_000), None);
        assert!(sampler.rule().begin(1_000_000_000).is_some());
        assert_eq!(sampler.rule().begin(1_000_500_000), None);
    }

    #[test]
    fn ratios_and_words() {
        let count = |sample| {
            let sampler = Sampler::new(sample);
            (0..10_000).filter(|now_us| sampler.rule().begin(*now_us).is_some()).count()
        };
        assert_eq!(count(Sample::Ratio(1.0)), 10_000);
        assert_eq!(count(Sample::Ratio(0.0)), 0);
        assert_eq!(count(Sample::PerSecond(0)), 10_000);
        assert!((500..1500).contains(&count(Sample::Ratio(0.1))));
    }
}
