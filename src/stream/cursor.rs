//! Cursors: where a group stands in each shard, and how it is put elsewhere.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use super::Retain;
use crate::spec::text::time_text;

/// A place in a shard: that of an event, or the one behind the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offset {
    /// How many events the shard had before it: streams in a database.
    Number(u64),
    /// An entry's id: Redis.
    Entry {
        /// When the entry was added, in milliseconds since 1970 UTC.
        ms: u64,
        /// Tells entries of one millisecond apart.
        seq: u64,
    },
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Entry { ms, seq } => write!(f, "{ms}-{seq}"),
        }
    }
}

/// Reads what is printed: `1500`, or of Redis `1732181234567-0`.
impl FromStr for Offset {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('-') {
            Some((ms, seq)) => Ok(Self::Entry { ms: ms.parse()?, seq: seq.parse()? }),
            None => Ok(Self::Number(text.parse()?)),
        }
    }
}

/// Where a group stands in one shard, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardCursor {
    /// The shard.
    pub shard: u32,
    /// The oldest event that it holds; the end, where it holds none.
    pub oldest: Offset,
    /// The cursor: the group has acked every event before it, and not the one there.
    pub position: Offset,
    /// Every event before it was delivered, or passed over.
    pub delivered: Offset,
    /// Where the next event comes.
    pub end: Offset,
    /// Events before `delivered` that are not acked.
    pub pending: u64,
    /// Events from `delivered` to the end; `None` where the backend cannot tell.
    pub lag: Option<u64>,
}

/// Where a cursor is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The oldest event that the shard holds.
    Earliest,
    /// Behind its newest event.
    Latest,
    /// The first event that was appended at this time or later, in microseconds since 1970 UTC by
    /// the clock of whoever keeps the stream.
    Time(i64),
    /// This place.
    At(Offset),
}

/// What is asked of [`Backend::move_cursor`](super::Backend::move_cursor).
#[derive(Clone, Debug)]
pub struct CursorMove {
    /// The group's name.
    pub group: String,
    /// How long its members may be silent: one that was heard of within that time runs.
    pub lease: Duration,
    /// Only in this shard.
    pub shard: Option<u32>,
    /// Where to.
    pub to: To,
    /// Also while the group runs.
    pub force: bool,
}

impl CursorMove {
    /// The shards it is about, of a stream that has so many. Errs where it makes no sense there.
    pub fn shards(&self, count: u32) -> Result<Range<u32>, Refused> {
        match (self.shard, self.to) {
            (Some(shard), _) if shard >= count => Err(Refused::Wrong(format!(
                "the stream has no shard {shard} ({count} {}, from 0)",
                if count == 1 { "shard" } else { "shards" }
            ))),
            (Some(shard), _) => Ok(shard..shard + 1),
            (None, To::At(offset)) if count > 1 => Err(Refused::Wrong(format!(
                "each of the {count} shards counts its own offsets, and {offset} does not say of \
                 which (name one with `--shard`; `earliest`, `latest` and a time are for all)"
            ))),
            (None, _) => Ok(0..count),
        }
    }
}

/// What a move did in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The shard.
    pub shard: u32,
    /// Where the cursor was.
    pub from: Offset,
    /// Where it is.
    pub to: Offset,
    /// Acked events that will be delivered again; `None`: more than [`COUNTED_MAX`].
    pub again: Option<u64>,
    /// Events that were not acked and will not be delivered; `None`: more than [`COUNTED_MAX`].
    pub skipped: Option<u64>,
}

/// Events that a backend counts one by one, at most, where it knows no offsets.
pub const COUNTED_MAX: u64 = 1_000_000;

impl Moved {
    /// What a move from `was` to `to` does, of which `pending_before` pending events stand before
    /// `to` and `between` events from there to what was delivered, or the other way round.
    pub(super) fn new(
        was: &ShardCursor,
        to: Offset,
        pending_before: u64,
        between: Option<u64>,
    ) -> Self {
        let pending_behind = was.pending.saturating_sub(pending_before);
        let (again, skipped) = match to < was.delivered {
            true => (between.map(|all| all.saturating_sub(pending_behind)), Some(pending_before)),
            false => (Some(0), between.map(|all| all + pending_before)),
        };
        Self { shard: was.shard, from: was.position, to, again, skipped }
    }
}

/// Why a cursor was not moved. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// These members of the group run.
    Running(Vec<String>),
    /// There is no such group, shard or place: what there is.
    Wrong(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(members) => {
                write!(f, "the group runs, with {}", members.join(", "))
            }
            Self::Wrong(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// The stream has no such group.
    pub(super) fn no_group(stream: &str, group: &str) -> Self {
        Self::Wrong(format!("stream {stream} has no group {group}"))
    }

    /// `at` is not within what the shard holds.
    fn not_there(shard: &ShardCursor, at: Offset) -> Self {
        let ShardCursor { shard, oldest, end, .. } = shard;
        let holds = match oldest == end {
            true => format!("which holds nothing (its next event comes at {end})"),
            false => format!("which holds {oldest} to {end} (the end, where its next event comes)"),
        };
        Self::Wrong(format!("offset {at} is not in shard {shard}, {holds}"))
    }

    /// Events of this time were there and are not any more.
    fn gone(shard: &ShardCursor, time_us: i64, oldest_us: Option<i64>) -> Self {
        let ShardCursor { shard, .. } = shard;
        let time = time_text(time_us);
        let left = match oldest_us {
            Some(oldest) => format!("its oldest event is of {}", time_text(oldest)),
            None => "it holds none".to_owned(),
        };
        Self::Wrong(format!(
            "shard {shard} does not hold all events since {time} any more, {left} (`earliest` goes \
             to the oldest that there is)"
        ))
    }
}

/// What is known of the events that a shard does not hold any more.
#[derive(Default)]
pub(super) struct Dropped {
    /// There were some.
    pub any: bool,
    /// When its oldest event was appended, if it has one, in microseconds since 1970 UTC.
    pub oldest_us: Option<i64>,
    /// All that is gone was appended before this time, where that is known.
    pub before_us: Option<i64>,
}

impl Dropped {
    /// Where events are dropped by age, what is gone is older than that.
    pub fn by(retain: Retain, now_us: i64) -> Option<i64> {
        match retain {
            Retain::Age(age) => Some(now_us - i64::try_from(age.as_micros()).ok()?),
            Retain::Acked | Retain::Forever => None,
        }
    }
}

impl ShardCursor {
    /// Where `to` is in this shard; `at_time` finds the first event of that time or later. Errs
    /// where that is not within what the shard holds.
    pub(super) fn find(
        &self,
        to: To,
        at_time: Offset,
        dropped: &Dropped,
    ) -> Result<Offset, Refused> {
        match to {
            To::Earliest => Ok(self.oldest),
            To::Latest => Ok(self.end),
            To::At(at) if (self.oldest..=self.end).contains(&at) => Ok(at),
            To::At(at) => Err(Refused::not_there(self, at)),
            To::Time(time) => {
                let known = dropped.before_us.is_some_and(|before| time >= before);
                let early = at_time <= self.oldest && dropped.oldest_us.is_none_or(|it| time < it);
                match dropped.any && early && !known {
                    true => Err(Refused::gone(self, time, dropped.oldest_us)),
                    false => Ok(at_time.clamp(self.oldest, self.end)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAS: ShardCursor = ShardCursor {
        shard: 1,
        oldest: Offset::Number(100),
        position: Offset::Number(150),
        delivered: Offset::Number(180),
        end: Offset::Number(250),
        pending: 20,
        lag: Some(70),
    };

    #[test]
    fn an_offset_is_read_as_it_is_printed() {
        for text in ["0", "18446744073709551615", "1732181234567-0", "0-18446744073709551615"] {
            assert_eq!(text.parse::<Offset>().unwrap().to_string(), text);
        }
        for text in ["", "-", "1-", "-1", "1-2-3", "1.5", "x", "18446744073709551616"] {
            assert!(text.parse::<Offset>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_comes_again_and_what_is_skipped_is_told() {
        let moved = |to, before, between| {
            let moved = Moved::new(&WAS, Offset::Number(to), before, Some(between));
            (moved.again.unwrap(), moved.skipped.unwrap())
        };
        assert_eq!(moved(100, 0, 80), (60, 0), "20 of 80 were to come anyway");
        assert_eq!(moved(160, 8, 20), (8, 8), "12 pending ones and 8 acked ones come");
        assert_eq!(moved(180, 20, 0), (0, 20));
        assert_eq!(moved(250, 20, 70), (0, 90));
    }

    #[test]
    fn what_is_not_there_is_refused_and_says_what_is() {
        let nothing = Dropped { any: false, oldest_us: Some(5_000_000), before_us: None };
        let find = |to| WAS.find(to, Offset::Number(100), &nothing);
        assert_eq!(find(To::Earliest), Ok(Offset::Number(100)));
        assert_eq!(find(To::Latest), Ok(Offset::Number(250)));
        assert_eq!(find(To::At(Offset::Number(250))), Ok(Offset::Number(250)));
        assert_eq!(find(To::Time(1_000_000)), Ok(Offset::Number(100)));
        for at in [Offset::Number(99), Offset::Number(251), Offset::Entry { ms: 150, seq: 0 }] {
            let Err(Refused::Wrong(why)) = find(To::At(at)) else { panic!("{at} was found") };
            assert!(why.contains("holds 100 to 250"), "{why}");
        }
        let dropped = Dropped { any: true, ..nothing };
        let find = |time, at| WAS.find(To::Time(time), Offset::Number(at), &dropped);
        assert!(find(1_000_000, 100).unwrap_err().to_string().contains("1970-01-01T00:00:05"));
        assert_eq!(find(5_000_000, 100), Ok(Offset::Number(100)));
        assert_eq!(find(6_000_000, 120), Ok(Offset::Number(120)));
        let by_age = Dropped { before_us: Some(500_000), ..dropped };
        let early = WAS.find(To::Time(1_000_000), Offset::Number(100), &by_age);
        assert_eq!(early, Ok(Offset::Number(100)));
    }

    #[test]
    fn an_offset_alone_is_of_no_shard_of_several() {
        let order = |shard, to| CursorMove {
            group: "g".into(),
            lease: Duration::ZERO,
            shard,
            to,
            force: false,
        };
        let at = To::At(Offset::Number(5));
        assert_eq!(order(None, at).shards(1), Ok(0..1));
        assert_eq!(order(Some(3), at).shards(8), Ok(3..4));
        assert_eq!(order(None, To::Earliest).shards(8), Ok(0..8));
        assert!(order(None, at).shards(8).unwrap_err().to_string().contains("--shard"));
        assert!(order(Some(8), at).shards(8).unwrap_err().to_string().contains("no shard 8"));
    }
}
