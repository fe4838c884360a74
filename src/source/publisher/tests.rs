use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::source::door::Door;

fn values(pairs: Vec<(&'static str, Value)>) -> Values {
    let mut values = Values::default();
    pairs.into_iter().for_each(|(name, value)| values.set(name, value));
    values
}

fn layout(range: Option<(u64, u64)>, instances: u64) -> Values {
    let mut values = values(vec![("instances", Value::Int(instances as i64))]);
    if let Some((first, last)) = range {
        values.set("n", Value::Range(first, last));
    }
    values
}

fn open(values: Values, instance: u64) -> Box<dyn Source> {
    let spec = SourceSpec {
        door: Door::new(1),
        name: "numbers".into(),
        kind: &KIND,
        to: "s".to_owned(),
        origin: "here".to_owned(),
        key: None,
        counter: None,
        values,
    };
    let site = Site {
        data_dir: PathBuf::from("data"),
        instance: "i".to_owned(),
        until_idle: false,
        runs: true,
    };
    (KIND.open)(&spec, &site, instance).unwrap()
}

/// What a stream does with an append: compare, then all or nothing.
#[derive(Clone, Default)]
struct Stream {
    slots: BTreeMap<String, Position>,
    numbers: Vec<u64>,
}

impl Stream {
    fn stored(&self) -> Vec<Slot> {
        self.slots.clone().into_iter().collect()
    }

    fn append(&mut self, batch: &Batch) -> bool {
        if batch.moves.iter().any(|step| self.slots.get(&step.slot) != step.from.as_ref()) {
            return false;
        }
        for step in &batch.moves {
            self.slots.insert(step.slot.clone(), step.to.clone().unwrap());
        }
        self.numbers.extend(batch.events.iter().map(|event| event.id.sequence()));
        true
    }
}

/// These futures never wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

fn batch(source: &mut Box<dyn Source>) -> Option<Batch> {
    match now(source.next()).unwrap() {
        Pull::Batch(batch) => Some(batch),
        Pull::Spent => None,
        Pull::Idle => panic!("nothing is due"),
    }
}

fn bodies(batch: &Batch) -> Vec<&str> {
    batch.events.iter().map(|event| std::str::from_utf8(&event.body).unwrap()).collect()
}

#[test]
fn a_range_is_sent_once_and_by_each_instance_its_share() {
    let mut stream = Stream::default();
    for instance in 1..=3 {
        let mut source = open(layout(Some((1, 4000)), 3), instance);
        now(source.seek(&stream.stored())).unwrap();
        // Several batches are made before the first is stored.
        let batches: Vec<_> = std::iter::from_fn(|| batch(&mut source)).collect();
        assert_eq!(batches.len(), 2);
        assert!(batches.iter().all(|batch| stream.append(batch)));
        assert!(batch(&mut source).is_none(), "spent stays spent");
    }
    assert_eq!(stream.numbers, (1..=4000).collect::<Vec<_>>());
    let mut again = open(layout(Some((1, 4000)), 3), 2);
    now(again.seek(&stream.stored())).unwrap();
    assert!(batch(&mut again).is_none());
    now(again.seek(&[])).unwrap();
    assert_eq!(batch(&mut again).unwrap().events[0].id.sequence(), 1335, "an empty stream");
}

fn in_rounds(rounds: i64, instances: u64) -> Values {
    let mut values = layout(Some((1, 2500)), instances);
    values.set("rounds", Value::Int(rounds));
    values.set("body", Value::Str("{round}/{n}".to_owned()));
    values
}

#[test]
fn every_round_is_sent_once_however_often_it_is_killed_and_more_are_sent_when_asked_for() {
    let (mut stream, mut sent, mut ids) = (Stream::default(), Vec::new(), Vec::new());
    for (rounds, instances, lives) in [(2, 2, 3), (4, 3, 9), (4, 2, 1)] {
        for life in 1..=lives {
            for instance in 1..=instances {
                let mut source = open(in_rounds(rounds, instances), instance);
                now(source.seek(&stream.stored())).unwrap();
                let batches = std::iter::from_fn(|| batch(&mut source));
                for batch in batches.take(if life == lives { usize::MAX } else { 2 }) {
                    assert!(stream.append(&batch));
                    sent.extend(bodies(&batch).into_iter().map(str::to_owned));
                    ids.extend(batch.events.iter().map(|event| event.id));
                }
                assert!(life < lives || batch(&mut source).is_none());
            }
        }
    }
    let of_round = |round| (1..=2500).map(move |n| format!("{round}/{n}"));
    let mut wanted: Vec<String> = (1..=4).flat_map(of_round).collect();
    wanted.sort();
    sent.sort();
    assert!(sent == wanted);
    ids.sort();
    assert!(ids.is_sorted_by(|one, next| one < next), "a round's events are new ones");
    // Back to what was before the last round of one instance.
    stream.slots.retain(|name, _| !name.ends_with("#4"));
    let mut source = open(in_rounds(4, 1), 1);
    now(source.seek(&stream.stored())).unwrap();
    assert_eq!(bodies(&batch(&mut source).unwrap())[0], "4/1");
}

#[test]
fn without_a_range_it_goes_on_where_it_was() {
    let mut stream = Stream::default();
    let mut source = open(layout(None, 2), 2);
    now(source.seek(&[])).unwrap();
    let first = batch(&mut source).unwrap();
    assert_eq!(first.events.len(), BATCH_EVENTS);
    assert!(stream.append(&first));
    let lost = batch(&mut source).unwrap();
    let mut source = open(layout(None, 2), 2);
    now(source.seek(&stream.stored())).unwrap();
    let again = batch(&mut source).unwrap();
    let ids = |batch: &Batch| batch.events.iter().map(|event| event.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&lost), "made again, they are the same events");
    assert_eq!(again.moves, lost.moves);
    assert!(stream.append(&again) && !stream.append(&lost));
    assert_eq!(stream.numbers, (1..=2000).map(|n| 2 * n).collect::<Vec<_>>());
}

#[test]
fn the_default_body_is_the_message_of_the_command() {
    let Default::Toml(text) = KIND.keys[0].default else { panic!("body has a default") };
    let table: toml::Table = format!("body = {text}").parse().unwrap();
    let body = serde_json::to_value(&table["body"]).unwrap();
    for values in [values(vec![("body", Value::Json(body))]), Values::default()] {
        let mut source = open(values, 1);
        now(source.seek(&[])).unwrap();
        let batch = batch(&mut source).unwrap();
        let event = &batch.events[41];
        let time = template::rfc3339(event.time_us);
        let wanted = format!(r##"{{"message":"Message #42","type":"test","timestamp":"{time}"}}"##);
        assert_eq!(bodies(&batch)[41], wanted);
        assert_eq!(&*event.source, "numbers");
        let message: Json = serde_json::from_slice(&message("test", 42)).unwrap();
        assert_eq!(message["message"], "Message #42");
        assert_eq!(message.to_string().len(), wanted.len());
    }
    let odd: Json = serde_json::from_slice(&message("a\"{n}", 1)).unwrap();
    assert_eq!(odd["type"], "a\"{n}", "a type given on the command line is no template");
}

#[test]
fn a_batch_ends_with_the_event_that_reaches_its_bytes() {
    let body = "x".repeat(300 * 1024);
    let mut source = open(values(vec![("body", Value::Str(body))]), 1);
    now(source.seek(&[])).unwrap();
    assert_eq!(batch(&mut source).unwrap().events.len(), 4);
    assert_eq!(batch(&mut source).unwrap().events[0].id.sequence(), 5);
}

#[test]
fn the_last_numbers_an_id_can_hold_are_sent_and_then_it_is_spent() {
    let mut source = open(layout(None, 1), 1);
    let order = SEQUENCE_MAX - 1;
    now(source.seek(&[("1..+1".to_owned(), Position { order, note: String::new() })])).unwrap();
    let numbers: Vec<u64> =
        batch(&mut source).unwrap().events.iter().map(|event| event.id.sequence()).collect();
    assert_eq!(numbers, [SEQUENCE_MAX - 1, SEQUENCE_MAX]);
    assert!(batch(&mut source).is_none());
}

#[tokio::test]
async fn at_a_pace_it_is_idle_until_the_next_is_due() {
    let every = Duration::from_millis(20);
    for pace in [("every", Value::Duration(every)), ("rate", Value::Float(100.0))] {
        let begin = Instant::now();
        let mut source = open(values(vec![pace, ("instances", Value::Int(2))]), 1);
        source.seek(&[]).await.unwrap();
        source.wait().await;
        let mut sent = 0;
        while sent < 5 {
            match source.next().await.unwrap() {
                Pull::Batch(batch) => sent += batch.events.len(),
                Pull::Idle => {
                    assert!(source.wait().now_or_never().is_none(), "dropped while it waits");
                    source.wait().await;
                }
                Pull::Spent => panic!("there is no end"),
            }
        }
        assert!(begin.elapsed() >= every * 4, "the first at once, the others when they are due");
    }
}

#[test]
fn no_limit_is_no_limit() {
    for none in [("rate", Value::Float(0.0)), ("every", Value::Duration(Duration::ZERO))] {
        let mut source = open(values(vec![none]), 1);
        now(source.seek(&[])).unwrap();
        assert_eq!(batch(&mut source).unwrap().events.len(), BATCH_EVENTS);
        now(source.wait());
    }
}

#[test]
fn keys_that_do_not_fit_each_other_are_complaints() {
    let complaints = |pairs| -> Vec<String> {
        let complaints = (KIND.check)(&values(pairs));
        complaints.iter().map(|c| format!("{}: {}", c.key, c.message)).collect()
    };
    let every = ("every", Value::Duration(Duration::from_secs(1)));
    assert_eq!(
        complaints(vec![every.clone(), ("rate", Value::Float(1.0))]),
        ["rate: every and rate both set the pace (give one of them)"]
    );
    assert_eq!(
        complaints(vec![("n", Value::Range(1, 3)), ("instances", Value::Int(4)), every.clone()]),
        ["instances: 4 instances for 3 numbers (at most one for each number)"]
    );
    assert_eq!(
        complaints(vec![("n", Value::Range(0, 1 << 44))]),
        ["n: 17592186044416 is past the last number an id can hold (17592186044415)"]
    );
    let rounds = || ("rounds", Value::Int(2));
    assert!(complaints(vec![rounds()])[0].starts_with("rounds: numbers without an end"));
    let trigger = ("trigger", Value::Str("http".to_owned()));
    assert_eq!(
        complaints(vec![rounds(), trigger, ("n", Value::Range(1, 3))]),
        ["rounds: each request is a round of its own (leave rounds or trigger out)"]
    );
    let bad = complaints(vec![("body", Value::Json(serde_json::json!({"a": "{nn} {sorce}"})))]);
    assert!(bad.len() == 2 && bad[1].starts_with("body: unknown placeholder {sorce}, did you"));
    assert_eq!(complaints(vec![("body", Value::Str("{uiid}".to_owned()))]).len(), 1);
    assert!(complaints(vec![every, ("n", Value::Range(0, SEQUENCE_MAX))]).is_empty());
}

/// One life of a process: its `n`, and for each of its instances how many batches the stream took
/// before it was killed.
type Life = (Option<(u64, u64)>, Vec<usize>);

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let range = prop::option::of((1u64..200, 0u64..6000).prop_map(|(a, b)| (a, a + b + 5)));
    prop::collection::vec((range, prop::collection::vec(0usize..4, 1..6)), 1..6)
}

proptest! {
    #[test]
    fn no_edit_of_n_or_instances_skips_or_doubles_a_number(lives in lives(), last in 1u64..9000) {
        let mut stream = Stream::default();
        for (range, stored) in lives {
            let instances = stored.len() as u64;
            for (instance, batches) in stored.into_iter().enumerate() {
                let mut source = open(layout(range, instances), instance as u64 + 1);
                now(source.seek(&stream.stored())).unwrap();
                for batch in std::iter::from_fn(|| batch(&mut source)).take(batches) {
                    prop_assert!(stream.append(&batch));
                }
            }
        }
        let mut source = open(layout(Some((1, last)), 1), 1);
        now(source.seek(&stream.stored())).unwrap();
        for batch in std::iter::from_fn(|| batch(&mut source)) {
            prop_assert!(stream.append(&batch));
        }
        let mut numbers = stream.numbers;
        numbers.sort_unstable();
        prop_assert!(numbers.is_sorted_by(|a, b| a < b), "one was doubled");
        numbers.retain(|n| *n <= last);
        prop_assert_eq!(numbers.len() as u64, last, "one was skipped");
    }

    #[test]
    fn a_stream_put_back_gets_what_it_lacks(older in 0usize..5, newer in 0usize..5, k in 1u64..4) {
        let mut stream = Stream::default();
        let mut sources: Vec<_> = (1..=k).map(|i| open(layout(Some((1, 9000)), k), i)).collect();
        let mut copy = stream.clone();
        for source in &mut sources {
            now(source.seek(&[])).unwrap();
            for turn in 0..older + newer {
                let Some(batch) = batch(source) else { break };
                prop_assert!(stream.append(&batch));
                if turn < older {
                    copy.append(&batch);
                }
            }
        }
        stream = copy;
        for source in &mut sources {
            if let Some(batch) = batch(source) {
                prop_assert_eq!(stream.append(&batch), newer == 0);
            }
            now(source.seek(&stream.stored())).unwrap();
            for batch in std::iter::from_fn(|| batch(source)) {
                prop_assert!(stream.append(&batch));
            }
        }
        stream.numbers.sort_unstable();
        prop_assert_eq!(stream.numbers, (1..=9000).collect::<Vec<_>>());
    }
}
