//! What an event's journey is known by: the W3C Trace Context (<https://www.w3.org/TR/trace-context/>).
//!
//! An event carries its `traceparent` as it came. A `tracestate` stands behind it, after a space,
//! so that an event without one is no larger for it.

use std::fmt;

/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// A longer `tracestate` is left out: nobody has to carry more (section 3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

/// A span's place: its trace, and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span; never 0.
    pub span_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl Place {
    /// The place in [`crate::event::Event::trace`], or in a `traceparent`. `None` where that is
    /// not one.
    pub fn parse(trace: &str) -> Option<Self> {
        let bytes = trace.as_bytes();
        let (head, rest) = bytes.split_at_checked(LENGTH)?;
        let version = hex(&head[..2])?;
        let dashes = [head[2], head[35], head[52]] == [b'-'; 3];
        // What a later version adds comes behind another dash; we write a space there.
        let end = matches!((version, rest.first()), (_, None | Some(b' ')) | (1.., Some(b'-')));
        if version == 0xff || !dashes || !end {
            return None;
        }
        let place = Self {
            trace_id: hex(&head[3..35])?,
            span_id: u64::try_from(hex(&head[36..52])?).ok()?,
            sampled: hex(&head[53..])? & 1 == 1,
        };
        (place.trace_id != 0 && place.span_id != 0).then_some(place)
    }

    /// The first place of a new trace, which is recorded.
    pub fn begin() -> Self {
        Self { trace_id: fastrand::u128(1..), span_id: fastrand::u64(1..), sampled: true }
    }

    /// A new span's place in the same trace, which is recorded from here on.
    pub fn child(self) -> Self {
        Self { span_id: fastrand::u64(1..), sampled: true, ..self }
    }
}

impl fmt::Display for Place {
    /// The `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, span_id, sampled } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(*sampled))
    }
}

/// Lower-case digits alone are allowed.
fn hex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0u128, |number, digit| match digit {
        b'0'..=b'9' => Some(number << 4 | u128::from(digit - b'0')),
        b'a'..=b'f' => Some(number << 4 | u128::from(digit - b'a' + 10)),
        _ => None,
    })
}

/// What an event carries of these two headers or fields. `None` where the `traceparent` is none:
/// then the `tracestate` means nothing either.
pub fn carried(traceparent: &str, tracestate: Option<&str>) -> Option<Box<str>> {
    Place::parse(traceparent).filter(|_| !traceparent.contains(' '))?;
    Some(join(traceparent, tracestate))
}

/// A place and the `tracestate` that goes with it, as an event carries them.
pub fn text(place: Place, tracestate: Option<&str>) -> Box<str> {
    join(&place.to_string(), tracestate)
}

/// Both as they are, as an event carries them.
pub fn join(traceparent: &str, tracestate: Option<&str>) -> Box<str> {
    let plain = |state: &&str| {
        state.len() <= STATE_BYTES_MAX && state.bytes().all(|byte| (0x20..0x7f).contains(&byte))
    };
    match tracestate.map(str::trim).filter(|state| !state.is_empty()).filter(plain) {
        Some(state) => format!("{traceparent} {state}").into(),
        None => traceparent.into(),
    }
}

/// The `traceparent`, and the `tracestate` if there is one, of what an event carries.
pub fn split(trace: &str) -> (&str, Option<&str>) {
    match trace.split_once(' ') {
        Some((parent, state)) => (parent, Some(state)),
        None => (trace, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_place_reads_as_it_is_written() {
        let place = Place::parse(PARENT).unwrap();
        assert_eq!(place.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((place.span_id, place.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(place.to_string(), PARENT);
        let begun = Place::begin();
        assert_eq!(Place::parse(&begun.to_string()), Some(begun));
        let child = Place { sampled: false, ..begun }.child();
        assert!(
            child.sampled && child.trace_id == begun.trace_id && child.span_id != begun.span_id
        );
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        let later = format!("01{}-more", &PARENT[2..]);
        assert!(Place::parse(&later).is_some_and(|place| place.sampled));
        for wrong in [
            "",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &format!("{PARENT}0"),
            &format!("ff{}", &PARENT[2..]),
            &PARENT.to_uppercase(),
            &PARENT.replace("00f067aa0ba902b7", "0000000000000000"),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace('-', "_"),
            &"é".repeat(30),
        ] {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
            assert_eq!(carried(wrong, Some("a=1")), None, "{wrong}");
        }
    }

    #[test]
    fn a_tracestate_travels_behind() {
        let both = carried(PARENT, Some(" a=1,b=2 ")).unwrap();
        assert_eq!(split(&both), (PARENT, Some("a=1,b=2")));
        assert_eq!(Place::parse(&both), Place::parse(PARENT));
        for none in [None, Some(""), Some("a=\u{7}"), Some(&*"x".repeat(513))] {
            assert_eq!(carried(PARENT, none).as_deref(), Some(PARENT));
        }
        assert_eq!(split(PARENT), (PARENT, None));
    }
}
