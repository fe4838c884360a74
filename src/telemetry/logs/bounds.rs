//! No line of the log comes without end: of lines that one place in the program writes about one
//! component, the first few are written, then one a minute, and how many were left out.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines in a row.
const LINES: u32 = 10;
/// After this there is room for one more.
const REFILL: Duration = Duration::from_secs(60);
/// How long it takes until it is said how many were left out; the last of these from there on.
const TOLD: [Duration; 3] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600)];
/// Places and components that are told apart.
const KEYS_MAX: usize = 1000;
/// Characters of a line that stands for those left out.
const SAMPLE_CHARS: usize = 300;
/// The target of the lines that tell; they are not bounded themselves.
const TARGET: &str = "aqueduct::left_out";
/// Fields that say whom a line is about.
const WHO: [&str; 9] =
    ["component", "group", "source", "stream", "query", "sink", "exchange", "path", "place"];

/// What was written of late, in the whole process.
static BOUNDS: LazyLock<Mutex<Bounds>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Bounds {
    places: HashMap<u64, Place>,
}

struct Place {
    lines: u32,
    refilled: Instant,
    left_out: u64,
    sample: String,
    /// When it is told, and how often it was since there was quiet.
    due: Instant,
    told: usize,
}

impl Bounds {
    /// Whether a line is to be written; `sample` is it, where it is not.
    fn admit(
        &mut self,
        who: u64,
        place: u64,
        now: Instant,
        sample: impl FnOnce() -> String,
    ) -> bool {
        // Of too many to tell apart, those of one place share.
        let known = self.places.len() < KEYS_MAX || self.places.contains_key(&who);
        let place = self.places.entry(if known { who } else { place }).or_insert(Place {
            lines: 0,
            refilled: now,
            left_out: 0,
            sample: String::new(),
            due: now,
            told: 0,
        });
        let refill = (now - place.refilled).as_secs() / REFILL.as_secs();
        if refill > 0 {
            place.lines = place.lines.saturating_sub(refill.min(u64::from(LINES)) as u32);
            place.refilled = now;
        }
        if place.lines == 0 {
            place.told = 0;
        }
        if place.lines < LINES {
            place.lines += 1;
            return true;
        }
        if place.left_out == 0 {
            place.sample = sample();
            place.due = now + TOLD[place.told.min(TOLD.len() - 1)];
        }
        place.left_out += 1;
        false
    }

    /// What was left out and is to be told now, of all of them where it is the end.
    fn due(&mut self, now: Instant, end: bool) -> Vec<(u64, String)> {
        let mut due = Vec::new();
        for place in self.places.values_mut() {
            if place.left_out > 0 && (end || now >= place.due) {
                place.told += 1;
                due.push((std::mem::take(&mut place.left_out), std::mem::take(&mut place.sample)));
            }
        }
        let old = |place: &Place| now - place.refilled > REFILL * (LINES + 1);
        self.places.retain(|_, place| place.left_out > 0 || !old(place));
        due
    }
}

fn bounds() -> MutexGuard<'static, Bounds> {
    BOUNDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells how many lines were left out of late. To be called every now and then, and at the `end`.
pub fn tell(end: bool) {
    for (lines, sample) in bounds().due(Instant::now(), end) {
        tracing::warn!(target: TARGET, lines, "left out, like: {sample}");
    }
}

/// The format of lines, of which it leaves some of the level `info` and above empty: who asks for
/// more gets it. (A filter would be the place, but tracing-subscriber 0.3 forgets what a filter
/// says of an event that is of interest at all times.)
#[derive(Debug)]
pub struct Bounded<F>(pub F);

impl<S, N, F> FormatEvent<S, N> for Bounded<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match is_written(event) {
            true => self.0.format_event(context, writer, event),
            false => Ok(()),
        }
    }
}

fn is_written(event: &Event<'_>) -> bool {
    let metadata = event.metadata();
    if *metadata.level() > Level::INFO || metadata.target() == TARGET {
        return true;
    }
    let mut hasher = DefaultHasher::new();
    metadata.callsite().hash(&mut hasher);
    let place = hasher.finish();
    event.record(&mut Who(&mut hasher));
    bounds().admit(hasher.finish(), place, Instant::now(), || {
        let mut sample = Sample::default();
        event.record(&mut sample);
        format!("{}{}", sample.message, sample.fields).chars().take(SAMPLE_CHARS).collect()
    })
}

/// Tells lines of one place apart by whom they are about.
struct Who<'h>(&'h mut DefaultHasher);

impl Visit for Who<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if WHO.contains(&field.name()) {
            format!("{value:?}").hash(self.0);
        }
    }
}

/// A line, as text.
#[derive(Default)]
struct Sample {
    message: String,
    fields: String,
}

impl Visit for Sample {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if WHO.contains(&name) => write!(self.fields, " {name}={value:?}"),
            _ => Ok(()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_its_first_lines_a_sample_a_minute_and_counts() {
        let (mut bounds, start) = (Bounds::default(), Instant::now());
        let (mut written, mut told, mut left_out) = (0, 0, 0);
        for tenth in 0..36_000 {
            let now = start + Duration::from_millis(100) * tenth;
            written += u64::from(bounds.admit(1, 0, now, || "a line".to_owned()));
            for (lines, sample) in bounds.due(now, false) {
                assert_eq!(sample, "a line");
                (told, left_out) = (told + 1, left_out + lines);
            }
        }
        assert!(bounds.admit(2, 0, start, String::new), "somebody else's line");
        left_out += bounds.due(start, true).iter().map(|(lines, _)| lines).sum::<u64>();
        assert_eq!(written + left_out, 36_000);
        assert_eq!(written, 10 + 59);
        assert!((5..10).contains(&told), "{told}");
    }

    #[test]
    fn after_some_quiet_the_first_lines_are_written_again() {
        let (mut bounds, start) = (Bounds::default(), Instant::now());
        let mut burst = |now| (0..100).filter(|_| bounds.admit(1, 0, now, String::new)).count();
        assert_eq!(burst(start), 10);
        assert_eq!(burst(start + REFILL), 1);
        assert_eq!(burst(start + REFILL * 20), 10);
    }

    #[test]
    fn places_without_end_take_no_memory_without_end() {
        let (mut bounds, start) = (Bounds::default(), Instant::now());
        (0..100_000).for_each(|who| _ = bounds.admit(who + 10, who % 3, start, String::new));
        assert!(bounds.places.len() <= KEYS_MAX + 3);
        bounds.due(start, true);
        bounds.due(start + Duration::from_secs(3600), true);
        assert!(bounds.places.is_empty());
    }
}
