//! Dead letters: for each shard a hash, with a field for each event and group, and a JSON object
//! for people and programs to read.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, Result, ensure};
use redis::{Cmd, Value};
use serde::{Deserialize, Serialize};

use super::entry::{Times, bytes, put_entry_id};
use super::held::Life;
use super::state::{SCRIPTS, Stream};
use crate::client::redis::odd;
use crate::event::{Delivery, Event, EventId, now_us};
use crate::fault;
use crate::source::Dead;
use crate::stream::{DeadLetter, GroupSpec};

/// Whose a dead letter is where the stream has no group. No group can have this name.
const NOBODY: &str = "-";

/// A dead letter as it is kept. The number of attempts comes last: a script puts it there.
#[derive(Serialize, Deserialize)]
struct Letter {
    id: String,
    group: String,
    reason: String,
    /// When it was given up.
    dead: String,
    source: String,
    time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    /// The body, where it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body in hexadecimal digits, where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_hex: Option<String>,
    attempts: u32,
}

impl Letter {
    fn new(event: &Event, group: &str, reason: &str) -> Self {
        let body = std::str::from_utf8(&event.body).ok().map(str::to_owned);
        let time = |time_us| String::from_utf8_lossy(Times::default().text(time_us)).into_owned();
        Self {
            id: event.id.to_string(),
            group: group.to_owned(),
            reason: reason.to_owned(),
            dead: time(now_us()),
            source: event.source.to_string(),
            time: time(event.time_us),
            key: event.key.as_deref().map(str::to_owned),
            kind: event.kind.as_deref().map(str::to_owned),
            shard: event.shard,
            traceparent: event.trace.as_deref().map(str::to_owned),
            body_hex: body.is_none().then(|| hex(&event.body)),
            body,
            attempts: 0,
        }
    }

    /// The letter up to its number of attempts, and what follows that.
    fn halves(&self) -> Result<(String, &'static str)> {
        let mut text = serde_json::to_string(self)?;
        // `0}`
        text.truncate(text.len() - 2);
        Ok((text, "}"))
    }

    fn read(self) -> Option<DeadLetter> {
        let time = |text: &str| Times::default().read(text.as_bytes());
        let body = match (self.body, self.body_hex) {
            (Some(body), _) => body.into_bytes(),
            (None, hex) => unhex(hex?.as_bytes())?,
        };
        let event = Event {
            key: self.key.map(Into::into),
            kind: self.kind.map(Into::into),
            shard: self.shard,
            trace: self.traceparent.map(Into::into),
            ..Event::new(self.id.parse().ok()?, body.into(), self.source.into(), time(&self.time)?)
        };
        Some(DeadLetter {
            event,
            group: self.group,
            reason: self.reason,
            attempts: self.attempts,
            time_us: time(&self.dead)?,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// The field of a letter.
fn field(id: EventId, group: &str) -> String {
    format!("{id}/{group}")
}

/// Files an event as a dead letter and acks it, unless it is not this member's any more.
pub(super) async fn bury(
    stream: &Stream,
    group: &GroupSpec,
    Life { name, cursors }: &Life,
    delivery: &Delivery,
    reason: &str,
) -> Result<()> {
    let number = delivery.ticket.shard as usize;
    let Some(shard) = stream.shards.get(number) else { return Ok(()) };
    let keys = [&*shard.stream, &*shard.dead(&group.dead), &*shard.cursor(&name.group)];
    let (before, after) = Letter::new(&delivery.event, &group.name, reason).halves()?;
    let answer = stream
        .redis
        .run(&SCRIPTS.bury, &keys, |cmd| {
            cmd.arg(&name.group).arg(&name.member);
            put_entry_id((delivery.ticket.hold, delivery.ticket.offset), cmd);
            cmd.arg(field(delivery.event.id, &group.name)).arg(before).arg(after);
            cmd.arg(&cursors[number]);
        })
        .await;
    stream.of_group(answer).await?;
    Ok(())
}

/// Files what never was in the stream, in the first shard, as a dead letter of each group.
pub(super) async fn file(stream: &Stream, dead: &[Dead]) -> Result<()> {
    let shard = &stream.shards[0];
    let status = super::status::status(stream).await?;
    let mut groups: Vec<String> = status.groups.into_iter().map(|group| group.name).collect();
    if groups.is_empty() {
        groups.push(NOBODY.to_owned());
    }
    for group in groups {
        let declared = stream.spec.groups.iter().find(|declared| *declared.name == *group);
        let key = shard.dead(&declared.map_or_else(|| default_name(stream), |it| it.dead.clone()));
        for Dead { event, reason } in dead {
            let letter = serde_json::to_string(&Letter::new(event, &group, reason))?;
            let mut cmd = redis::cmd("HSETNX");
            cmd.arg(&key).arg(field(event.id, &group)).arg(letter);
            stream.redis.ask(&key, &cmd).await?;
        }
    }
    Ok(())
}

fn default_name(stream: &Stream) -> String {
    format!("{}.dead", stream.spec.name)
}

/// What the hashes of a stream's letters are called.
pub(super) fn names(stream: &Stream) -> BTreeSet<String> {
    let declared = stream.spec.groups.iter().map(|group| group.dead.clone());
    declared.chain([default_name(stream)]).collect()
}

/// A letter, and where it is.
struct Kept {
    shard: usize,
    key: String,
    field: Vec<u8>,
    letter: DeadLetter,
}

/// All of a stream's letters, oldest first.
async fn all(stream: &Stream) -> Result<Vec<Kept>> {
    let names = names(stream);
    let mut all = Vec::new();
    for (shard, keys) in stream.shards.iter().enumerate() {
        for key in names.iter().map(|name| keys.dead(name)) {
            let answer = stream.redis.ask(&key, redis::cmd("HGETALL").arg(&key)).await?;
            let Value::Array(answer) = answer else { return Err(odd("dead letters")) };
            let mut answer = answer.into_iter().map(bytes);
            while let (Some(field), Some(letter)) = (answer.next(), answer.next()) {
                let read = serde_json::from_slice::<Letter>(&letter).ok().and_then(Letter::read);
                let letter = read.with_context(|| {
                    let field = String::from_utf8_lossy(&field).into_owned();
                    format!("field {field:?} of {key} is no dead letter of ours (remove it)")
                })?;
                all.push(Kept { shard, key: key.clone(), field, letter });
            }
        }
    }
    all.sort_by(|one, other| {
        let order = |it: &Kept| (it.letter.time_us, it.letter.event.id);
        order(one).cmp(&order(other)).then_with(|| one.field.cmp(&other.field))
    });
    Ok(all)
}

/// These letters, or all where none are named.
async fn some(stream: &Stream, wanted: &[EventId]) -> Result<Vec<Kept>> {
    let wanted: HashSet<EventId> = wanted.iter().copied().collect();
    let mut kept = all(stream).await?;
    kept.retain(|kept| wanted.is_empty() || wanted.contains(&kept.letter.event.id));
    Ok(kept)
}

/// All dead letters of a stream, oldest first.
pub(super) async fn list(stream: &Stream) -> Result<Vec<DeadLetter>> {
    Ok(all(stream).await?.into_iter().map(|kept| kept.letter).collect())
}

/// Puts dead letters into the stream again, each for its group alone.
pub(super) async fn replay(stream: &Stream, wanted: &[EventId]) -> Result<u64> {
    let mut times = Times::default();
    let mut count = 0;
    for Kept { shard, key, field, letter } in some(stream, wanted).await? {
        let group = letter.group;
        let event = Event { only_group: Some(group.as_str().into()), ..letter.event };
        let put = |cmd: &mut Cmd| {
            cmd.arg(field).arg(&group);
            stream.format.put(&event, false, &mut times, cmd);
        };
        let keys = [&*stream.shards[shard].stream, &key];
        fault::point("replay.before", std::iter::once(&event));
        // One script: the event is in the stream, and the letter gone, or neither.
        let answer = stream.redis.run(&SCRIPTS.replay, &keys, put).await?;
        fault::point("replay.after", std::iter::once(&event));
        ensure!(
            answer != Value::Int(-1),
            "dead letter {} is of group {group:?}, which the stream has no more (bring the group \
             back, or drop the letter)",
            event.id
        );
        count += u64::from(answer == Value::Int(1));
    }
    Ok(count)
}

/// Forgets dead letters.
pub(super) async fn forget(stream: &Stream, wanted: &[EventId]) -> Result<u64> {
    let mut count = 0;
    for Kept { key, field, .. } in some(stream, wanted).await? {
        let gone = stream.redis.ask(&key, redis::cmd("HDEL").arg(&key).arg(field)).await?;
        count += u64::from(gone == Value::Int(1));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Origin, Sequence};

    #[test]
    fn a_letter_comes_back() {
        let id = EventId::new(Origin::new(Sequence::Bytes, &[b"o"]), 7, 7);
        for body in [&b"text \"x\""[..], b"\xff\x00", b""] {
            let event = Event {
                key: Some("k".into()),
                kind: Some("paid".into()),
                shard: Some(7),
                trace: Some("t".into()),
                ..Event::new(id, body.to_vec().into(), "input".into(), -5)
            };
            let (before, after) = Letter::new(&event, "g", "no").halves().unwrap();
            let read: Letter = serde_json::from_str(&format!("{before}3{after}")).unwrap();
            let letter = read.read().unwrap();
            assert_eq!((&letter.event, &*letter.group, letter.attempts), (&event, "g", 3));
        }
        assert_eq!(unhex(b"0g"), None);
    }
}
