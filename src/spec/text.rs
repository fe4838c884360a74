//! Text for people: values as messages show them, without secrets, and near misses.

use std::fmt;

/// Characters of a value that a message shows.
const SHOWN_MAX: usize = 60;

/// A string that is never printed: its `Debug` and `Display` hide it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to compare or to send, not to print.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `text` with every URL's password in it replaced by `***`: between the user and the last `@`
/// of the URL, and in query parameters whose names speak of one. Hides too much rather than too
/// little.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "\"'`<>".contains(c));
        let (url, tail) = after.split_at(end.unwrap_or(after.len()));
        redact_one(url, &mut out);
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// The part of a URL behind `://`.
fn redact_one(url: &str, out: &mut String) {
    let rest = match url.rsplit_once('@') {
        Some((login, rest)) => {
            match login.split_once(':') {
                Some((user, _)) => out.extend([user, ":***@"]),
                None => out.extend([login, "@"]),
            }
            rest
        }
        None => url,
    };
    let Some((path, query)) = rest.split_once('?') else {
        out.push_str(rest);
        return;
    };
    out.push_str(path);
    for (i, pair) in query.split('&').enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) if names_a_secret(name) => out.extend([name, "=***"]),
            _ => out.push_str(pair),
        }
    }
}

fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token", "key"].iter().any(|word| name.contains(word))
}

/// A value as a message shows it: on one line, without secrets, cut where it is long.
pub fn shown(text: &str) -> String {
    let text = redact(text);
    let mut chars = text.chars();
    let mut out: String = chars.by_ref().take(SHOWN_MAX).flat_map(visible).collect();
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// `text` on one line, whatever names it quotes.
pub fn one_line(text: &str) -> String {
    text.chars().flat_map(visible).collect()
}

/// What could break a line or a terminal is escaped; the rest stays as it was written.
fn visible(c: char) -> impl Iterator<Item = char> {
    let escape = c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let (escaped, plain) = if escape { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    escaped.into_iter().flatten().chain(plain)
}

/// Words that a near miss is looked for among: comparing takes time.
const CANDIDATES_MAX: usize = 500;

/// The candidate that `word` was most likely meant to be.
pub fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(word);
    // Longer words are no near miss of a name (at most 63), and comparing them takes time.
    if folded.chars().count() > 80 {
        return None;
    }
    let allowed = match folded.chars().count() {
        0 => return None,
        1..=3 => 1,
        4..=7 => 2,
        _ => 3,
    };
    // `keyfile` for `key`, or `ack` for `acked`, is as near as one wrong letter.
    let distance = |candidate: &str| {
        let candidate = fold(candidate);
        let (short, long) = if candidate.len() < folded.len() {
            (&candidate, &folded)
        } else {
            (&folded, &candidate)
        };
        if short.len() >= 3 && long.starts_with(short) {
            return usize::from(short.len() < long.len());
        }
        // Most are out by their length alone; comparing takes longer.
        if long.len() - short.len() > 3 * allowed {
            return usize::MAX;
        }
        strsim::damerau_levenshtein(&folded, &candidate)
    };
    candidates
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(|candidate| *candidate != word)
        .map(|candidate| (distance(candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= allowed
                && (*distance == 0 || *distance < folded.len().min(candidate.len()))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn fold(word: &str) -> String {
    word.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// `, did you mean …?`, or nothing.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    near(word, candidates).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default()
}

/// Words that a list names.
const LISTED_MAX: usize = 20;

/// `` `a`, `b` and `c` `` with the given last word; "none" of nothing, and the first few of very
/// many.
pub fn listed<'a>(words: impl IntoIterator<Item = &'a str>, last: &str) -> String {
    let mut all = words.into_iter();
    let mut words: Vec<String> =
        all.by_ref().take(LISTED_MAX).map(|word| format!("`{}`", shown(word))).collect();
    match all.count() {
        0 => {}
        more => words.push(format!("{more} more")),
    }
    match words.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [init @ .., end] => format!("{} {last} {end}", init.join(", ")),
    }
}

/// A time, in microseconds since 1970 UTC, as RFC 3339 with milliseconds.
pub fn time_text(time_us: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(time_us).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// `1 shard`, `2 shards`
pub fn counted(count: impl fmt::Display, noun: &str) -> String {
    let text = count.to_string();
    let plural = if text == "1" { "" } else { "s" };
    format!("{text} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("redis://:hunter2@localhost", "redis://:***@localhost"),
            ("postgres://me:a/b@c?d@host/db?x=1", "postgres://me:***@host/db?x=1"),
            (
                "postgres://me@host/db?password=hunter2&x=1",
                "postgres://me@host/db?password=***&x=1",
            ),
            (
                "from redis://u:p@a to \"amqp://u:p@b\"",
                "from redis://u:***@a to \"amqp://u:***@b\"",
            ),
            ("no url: a@b", "no url: a@b"),
        ] {
            assert_eq!(redact(url), shown);
        }
        assert_eq!(format!("{0:?} {0}", Secret::new("hunter2")), "*** ***");
    }

    #[test]
    fn a_shown_value_stays_on_one_short_line() {
        assert_eq!(shown("a\nb\u{1b}[0m\u{202e}é"), "a\\nb\\u{1b}[0m\\u{202e}é");
        assert_eq!(shown(&"x".repeat(61)), format!("{}…", "x".repeat(60)));
    }

    #[test]
    fn times_and_counts_read_well() {
        assert_eq!(time_text(1_700_000_000_123_456), "2023-11-14T22:13:20.123Z");
        let all = [counted(0, "shard"), counted(1, "shard"), counted(21, "shard")];
        assert_eq!(all, ["0 shards", "1 shard", "21 shards"]);
    }

    #[test]
    fn near_misses_are_found_and_nonsense_is_not() {
        let kinds = ["embedded", "redis", "rabbitmq", "postgres"];
        for (word, meant) in [
            ("Redis", Some("redis")),
            ("rabbit", Some("rabbitmq")),
            ("postgresql", Some("postgres")),
            ("embeded", Some("embedded")),
            ("postgres_sink", Some("postgres")),
            ("kafka", None),
            ("", None),
        ] {
            assert_eq!(near(word, kinds), meant, "{word}");
        }
        assert_eq!(near("fo", ["from", "to"]), Some("to"));
        assert_eq!(near("a", ["b"]), None);
    }
}
