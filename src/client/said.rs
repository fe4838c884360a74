//! What is wrong is said once: a server that is away for an hour must not fill the disk with it.
//! The first line says the cause, then nothing while it repeats, but for a rare reminder; one line
//! says that it works again, and how long it did not.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often what goes on is said again.
const REMINDER: Duration = Duration::from_secs(600);
/// What has worked for so long works again.
const SETTLED: Duration = Duration::from_secs(3);
/// Other causes of one outage that are told; what comes after them is counted. A cause may hold a
/// number that is never the same.
const CAUSES_MAX: usize = 8;

/// What there is to say of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// It failed, and nobody knows of this cause yet.
    Failed,
    /// It goes on: how often it failed so far, and for how long.
    Still {
        /// Failures, this one included.
        times: u64,
        /// Since the first of them.
        away: Duration,
    },
}

/// What works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Works {
    /// From the first failure until it worked.
    pub away: Duration,
    /// How often it failed.
    pub times: u64,
}

/// What was said of something that may fail again and again. Whoever has it reports each failure
/// and each success.
#[derive(Debug, Default)]
pub struct Said {
    outage: Option<Outage>,
    /// The last one ended then, and it took so long to believe it.
    before: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    last: Instant,
    works_since: Option<Instant>,
    told: Instant,
    times: u64,
    causes: BTreeSet<Box<str>>,
    settled: Duration,
}

impl Said {
    /// It failed. What to log, if anything.
    pub fn failed(&mut self, cause: &str, now: Instant) -> Option<Line> {
        let Some(outage) = &mut self.outage else {
            // What fails, works and fails again has to work for longer each time until it is
            // believed: such lines would be without end, too.
            let settled = match self.before {
                Some((ended, settled)) if now - ended < REMINDER => (settled * 2).min(REMINDER),
                _ => SETTLED,
            };
            self.outage = Some(Outage {
                since: now,
                last: now,
                works_since: None,
                told: now,
                times: 1,
                causes: BTreeSet::from([cause.into()]),
                settled,
            });
            return Some(Line::Failed);
        };
        outage.times += 1;
        (outage.last, outage.works_since) = (now, None);
        if outage.causes.len() < CAUSES_MAX && !outage.causes.contains(cause) {
            outage.causes.insert(cause.into());
            return Some(Line::Failed);
        }
        if now - outage.told < REMINDER {
            return None;
        }
        outage.told = now;
        Some(Line::Still { times: outage.times, away: now - outage.since })
    }

    /// It worked. What to log, if it did not before, and has for long enough now.
    pub fn works(&mut self, now: Instant) -> Option<Works> {
        let outage = self.outage.as_mut()?;
        let since = *outage.works_since.get_or_insert(now);
        if now - outage.last < outage.settled {
            return None;
        }
        let works = Works { away: since - outage.since, times: outage.times };
        self.before = Some((now, outage.settled));
        self.outage = None;
        Some(works)
    }

    /// Whether it failed, and was not said to work since.
    pub fn is_out(&self) -> bool {
        self.outage.is_some()
    }
}

/// [`Said`], among threads and with the clock.
#[derive(Debug, Default)]
pub struct Telling(Mutex<Said>);

impl Telling {
    /// One that nothing was said of yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Said { outage: None, before: None }))
    }

    /// [`Said::failed`]
    pub fn failed(&self, cause: &str) -> Option<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failed(cause, Instant::now())
    }

    /// [`Said::works`]
    pub fn works(&self) -> Option<Works> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).works(Instant::now())
    }
}

impl Line {
    /// To follow what failed: nothing, or how long it has.
    pub fn so_far(&self) -> String {
        match self {
            Self::Failed => String::new(),
            Self::Still { times, away } => {
                format!(" (still, {times} times in {})", span_text(*away))
            }
        }
    }
}

impl std::fmt::Display for Works {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let times = if self.times == 1 { "time" } else { "times" };
        write!(f, "after {} (it failed {} {times})", span_text(self.away), self.times)
    }
}

/// `0.4 s`, `12 s`, `3 min 20 s`, `1 h 5 min`
pub fn span_text(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", span.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn an_hour_of_one_cause_is_a_handful_of_lines() {
        let (mut said, start) = (Said::default(), Instant::now());
        let mut lines = Vec::new();
        for tries in 0..1800 {
            lines.extend(said.failed("refused", start + 2 * S * tries));
        }
        assert_eq!(lines[0], Line::Failed);
        assert_eq!(lines.len(), 6, "a reminder each 10 minutes: {lines:?}");
        assert_eq!(lines[5], Line::Still { times: 1501, away: 3000 * S });
        assert_eq!(lines[5].so_far(), " (still, 1501 times in 50 min 0 s)");
        let last = start + 3598 * S;
        assert_eq!(said.works(last + S), None, "it may fail again");
        let works = said.works(last + 4 * S).unwrap();
        assert_eq!(works, Works { away: 3599 * S, times: 1800 });
        assert_eq!(works.to_string(), "after 59 min 59 s (it failed 1800 times)");
        assert_eq!(said.works(last + 5 * S), None, "said once");
    }

    #[test]
    fn a_new_cause_is_told_and_an_ever_new_one_is_not() {
        let (mut said, start) = (Said::default(), Instant::now());
        assert_eq!(said.failed("reset", start), Some(Line::Failed));
        assert_eq!(said.failed("refused", start), Some(Line::Failed));
        assert_eq!(said.failed("reset", start), None);
        let told = (0..1000).filter_map(|n| said.failed(&format!("port {n}"), start)).count();
        assert_eq!(told, CAUSES_MAX - 2);
    }

    #[test]
    fn what_comes_and_goes_is_soon_quiet() {
        let (mut said, start) = (Said::default(), Instant::now());
        let mut lines = 0;
        for second in 0..24 * 3600 {
            let now = start + S * second;
            // Away for 5 seconds in each minute, of a whole day.
            lines += match second % 60 {
                0..5 => said.failed("reset", now).map_or(0, |_| 1),
                _ => said.works(now).map_or(0, |_| 1),
            };
        }
        assert!(lines < 200, "{lines} lines");
    }
}
