//! What only the RabbitMQ backend does: other programs on its queues, attempts without a broker
//! that counts them, and a broker that dies, comes back, or comes back empty.

#[path = "support/streams.rs"]
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aqueduct::event::Event;
use aqueduct::spec::Value;
use aqueduct::stream::{Append, Appended, Backend, GroupSpec, Reader};
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use streams::servers::{Rabbit, free_port};
use streams::*;

const BOTH: [&str; 2] = ["quorum", "classic"];

fn url(at: &Place) -> String {
    at.spec.values.str("url").to_owned()
}

/// Another program's channel.
async fn other(url: &str) -> Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

async fn publish(channel: &Channel, queue: &str, properties: BasicProperties, body: &[u8]) {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let sent = channel.basic_publish("".into(), queue.into(), options, body, properties).await;
    let confirmed = sent.unwrap().await.unwrap();
    assert!(confirmed.is_ack() && confirmed.take_message().is_none());
}

async fn ready(channel: &Channel, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let asked = channel.queue_declare(queue.into(), options, FieldTable::default());
    asked.await.unwrap().message_count()
}

fn with_queue(name: &str, queue: &str) -> GroupSpec {
    let mut group = group(name);
    group.values.set("queue", Value::Str(queue.into()));
    group
}

/// What `open` says where it fails.
async fn refusal(at: &Place) -> String {
    match (at.spec.kind.open)(at.spec.clone(), at.site()).await {
        Ok(_) => panic!("it opened"),
        Err(error) => format!("{error:#}"),
    }
}

async fn try_open(at: &Place) -> Arc<dyn Backend> {
    let start = Instant::now();
    loop {
        match (at.spec.kind.open)(at.spec.clone(), at.site()).await {
            Ok(backend) => return backend,
            Err(error) => assert!(start.elapsed() < PATIENCE * 2, "{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_others_publish_to_is_used_as_it_is() {
    for of_others in BOTH {
        // Ours would be of the other type.
        let ours = if of_others == "quorum" { "classic" } else { "quorum" };
        let mut at = Place::rabbitmq(ours);
        at.spec.groups = vec![with_queue("g", "logs")];
        let channel = other(&url(&at)).await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(of_others.into()));
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1_000_000));
        let options = QueueDeclareOptions::durable();
        channel.queue_declare("logs".into(), options, arguments).await.unwrap();
        publish(&channel, "logs", BasicProperties::default(), b"before").await;

        let backend = at.open().await;
        let mut writer = backend.writer().await.unwrap();
        put(&mut writer, events(0..1)).await;
        let odd = BasicProperties::default()
            .with_message_id("m".repeat(255).as_str().into())
            .with_timestamp(1 << 60)
            .with_app_id("their app".into())
            .with_priority(200)
            .with_expiration("not a number".into());
        let plain = odd.clone().with_expiration("600000".into());
        publish(&channel, "logs", plain.clone(), b"their body").await;
        publish(&channel, "logs", plain, b"their body").await;
        let mut headers = FieldTable::default();
        headers.insert("source".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(i64::MIN));
        headers.insert("aqueduct-deliveries".into(), AMQPValue::LongLongInt(i64::MAX));
        headers.insert("time_us".into(), AMQPValue::Double(1.5));
        let strange = BasicProperties::default().with_app_id("aqueduct".into());
        publish(&channel, "logs", strange.with_headers(headers), &[0xff; 3]).await;

        let reader = at.member(&backend, "g").await;
        let taken = finish(&reader, 5).await;
        let bodies: Vec<_> = taken.iter().map(|it| it.event.body.to_vec()).collect();
        let expected: [&[u8]; 5] =
            [b"before", b"event 0", b"their body", b"their body", &[0xff; 3]];
        assert_eq!(bodies, expected);
        assert_eq!(taken[1].event, event(0));
        assert_eq!(&*taken[2].event.source, "their app");
        assert_eq!(taken[2].event.id, taken[3].event.id, "the same message id and body");
        assert_ne!(taken[0].event.id, taken[4].event.id);
        assert_eq!(group_status(&backend, "g").await.lag, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_message_keeps_its_id_through_attempts_and_letters() {
    for queue_type in BOTH {
        let at = Place::rabbitmq(queue_type);
        let backend = at.open().await;
        let channel = other(&url(&at)).await;
        publish(&channel, "s.g", BasicProperties::default(), b"nameless").await;
        let reader = at.member(&backend, "g").await;
        let held = take(&reader, 1).await.remove(0);
        assert_eq!(reader.charge(held.ticket).await.unwrap(), Some(1));
        drop(reader);
        // From here on it has a name.
        let reader = at.member(&backend, "g").await;
        let again = take(&reader, 1).await.remove(0);
        assert_eq!((again.event.id, again.attempts), (held.event.id, 1));
        assert_eq!(again.event.body, held.event.body);
        reader.bury(&again, "no").await.unwrap();
        let dead = backend.dead().await.unwrap();
        assert_eq!((dead[0].event.id, dead[0].attempts), (held.event.id, 1));
        assert_eq!(backend.replay_dead(&[held.event.id]).await.unwrap(), 1);
        assert_eq!(finish(&reader, 1).await[0].event.id, held.event.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_without_the_password() {
    let server = Rabbit::shared();
    let vhost = server.vhost();
    let name = vhost.rsplit_once('/').unwrap().1;
    let at = |url: &str| Place::rabbitmq_at(url, "quorum");
    let place = format!("127.0.0.1:{}", server.port);
    let cases = [
        (vhost.replace("guest:guest", "guest:secret"), "refused the login"),
        (server.url("no-such"), "no-such"),
        (format!("amqp://guest:secret@127.0.0.1:{}/{name}", free_port()), "start RabbitMQ"),
        (format!("amqp://guest:secret@no-such-host.invalid/{name}"), "no such host"),
        (vhost.replace("amqp://", "amqps://"), "amqp"),
    ];
    for (url, expected) in cases {
        let start = Instant::now();
        let said = refusal(&at(&url)).await;
        println!("{said}");
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
        assert!(!said.contains("secret") && !said.contains("guest:"), "{said}");
        assert!(start.elapsed() < Duration::from_secs(5), "{said} took {:?}", start.elapsed());
    }
    // Something else has the exchange's name.
    let channel = other(&vhost).await;
    let topic = lapin::ExchangeKind::Topic;
    let declared = channel.exchange_declare(
        "s".into(),
        topic,
        ExchangeDeclareOptions { durable: true, ..Default::default() },
        FieldTable::default(),
    );
    declared.await.unwrap();
    let said = refusal(&at(&vhost)).await;
    println!("{said}");
    assert!(said.contains("exchange `s`") && said.contains(&place) && said.contains("another one"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_accepts_and_says_nothing_is_given_up_soon() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let at = Place::rabbitmq_at(&format!("amqp://guest:secret@127.0.0.1:{port}/"), "quorum");
    let accepted = Arc::new(std::sync::Mutex::new(Vec::new()));
    tokio::spawn({
        let accepted = accepted.clone();
        async move {
            while let Ok((socket, _)) = silent.accept().await {
                accepted.lock().unwrap().push(socket);
            }
        }
    });
    for _ in 0..5 {
        let start = Instant::now();
        let said = refusal(&at).await;
        assert!(said.contains("no answer within 2 s"), "{said}");
        assert!(start.elapsed() < Duration::from_secs(4));
    }
    let left = accepted.lock().unwrap().len();
    assert!(left <= 3, "each try leaves a connection behind: {left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_group_nothing_is_taken_and_nothing_lost() {
    let at = Place::rabbitmq("quorum").groups(&[]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let step = moving("a", None, Some(1), events(0..3));
    let said = format!("{:#}", writer.append(std::slice::from_ref(&step)).await.unwrap_err());
    assert!(said.contains("declare a group"), "{said}");
    assert!(writer.slots("test").await.unwrap().is_empty());
    // With one, it is.
    let at = at.groups(&["g"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    assert_eq!(writer.append(&[step]).await.unwrap(), [Appended::Durable]);
    assert_eq!(numbers(&finish(&at.member(&backend, "g").await, 3).await), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peek_says_why_it_cannot() {
    let at = Place::rabbitmq("quorum");
    let error = at.open().await.peek(3).await.unwrap_err().to_string();
    assert!(error.contains("handing them out"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_have_a_queue_each_behind_a_direct_exchange() {
    let at = Place::rabbitmq("quorum").with(|spec| spec.shards = 3);
    let backend = at.open().await;
    let channel = other(&url(&at)).await;
    let mut writer = backend.writer().await.unwrap();
    let keyed = |n: u64| Event { key: Some(format!("key {n}").into()), ..event(n) };
    put(&mut writer, (0..300).map(keyed).collect()).await;
    let mut expected = BTreeMap::new();
    for n in 0..300 {
        *expected.entry(aqueduct::stream::shard_of(&format!("key {n}"), 3)).or_insert(0) += 1;
    }
    for (shard, count) in expected {
        assert_eq!(ready(&channel, &format!("s.g.{shard}")).await, count);
    }
    // Another program names the shard itself.
    let sent = channel.basic_publish(
        "s".into(),
        "2".into(),
        BasicPublishOptions { mandatory: true, ..Default::default() },
        b"theirs",
        BasicProperties::default(),
    );
    assert!(sent.await.unwrap().await.unwrap().take_message().is_none());
    let taken = finish(&at.member(&backend, "g").await, 301).await;
    let theirs = taken.iter().find(|it| it.event.body == "theirs").unwrap();
    assert_eq!(theirs.ticket.shard, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_counts_a_delivery_on_both_types_of_queue() {
    for queue_type in BOTH {
        let at = Place::rabbitmq(queue_type);
        let backend = at.open().await;
        let mut writer = backend.writer().await.unwrap();
        put(&mut writer, events(0..20)).await;
        // Counted as far as it matters.
        for deliveries in [1, 2, 3, 3] {
            let reader = at.member(&backend, "g").await;
            let held = take(&reader, 20).await;
            let all: BTreeSet<u32> = held.iter().map(|it| it.deliveries).collect();
            assert_eq!(all, [deliveries].into(), "{queue_type}");
            // It dies: its connection ends without a word.
            drop(reader);
        }
        // Handing back is no delivery.
        for _ in 0..2 {
            let reader = at.member(&backend, "g").await;
            let held = take(&reader, 20).await;
            assert!(held.iter().all(|it| it.deliveries == 3), "{queue_type}");
            reader.release(&tickets(&held)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_gives_no_more_than_asked_for_and_small_ones_many() {
    let at = Place::rabbitmq("quorum");
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let big = |number| Event { body: vec![7; 100_000].into(), ..event(number) };
    put(&mut writer, (0..20).map(big).collect()).await;
    let reader = at.member(&backend, "g").await;
    let mut left = 20;
    while left > 0 {
        let some = reader.fetch(3, 250_000, PATIENCE).await.unwrap();
        assert!((1..=2).contains(&some.len()), "{} of 100 kB in 250 kB", some.len());
        left -= some.len();
    }
    put(&mut writer, events(20..21)).await;
    assert_eq!(reader.fetch(1000, 1, PATIENCE).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_ahead_is_bounded_by_bytes() {
    let at = Place::rabbitmq("quorum");
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let channel = other(&url(&at)).await;
    for start in (0..200).step_by(20) {
        let big = |number| Event { body: vec![7; 1 << 20].into(), ..event(number) };
        put(&mut writer, (start..start + 20).map(big).collect()).await;
    }
    let reader = at.member(&backend, "g").await;
    finish(&reader, 120).await;
    // What is neither acked nor ready is with the member.
    let ahead = 80 - u64::from(ready(&channel, "s.g").await);
    assert!(ahead <= 50, "{ahead} MiB are ahead");
    assert_eq!(finish(&reader, 80).await.len(), 80);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_dropped_has_no_queue_any_more() {
    let at = Place::rabbitmq("quorum").groups(&["a", "gone"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..3)).await;
    let mut spec = at.spec.clone();
    spec.groups.pop();
    let backend = at.open_as(&spec).await;
    assert!(backend.drop_group("gone").await.unwrap());
    assert!(!backend.drop_group("gone").await.unwrap());
    let names = backend.status().await.unwrap().groups;
    assert_eq!(names.iter().map(|group| &*group.name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(group_status(&backend, "a").await.lag, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_queue_is_deleted_finds_out() {
    // Also where it was not looking when the broker said so, and has another queue.
    for pause in [Duration::ZERO, Duration::from_millis(1500)] {
        let at = Place::rabbitmq("classic").with(|spec| spec.shards = 2);
        let backend = at.open().await;
        let reader = at.member(&backend, "g").await;
        nothing(&reader).await;
        let channel = other(&url(&at)).await;
        channel.queue_delete("s.g.1".into(), QueueDeleteOptions::default()).await.unwrap();
        tokio::time::sleep(pause).await;
        let said = format!("{:#}", reader.fetch(1, BYTES, PATIENCE).await.unwrap_err());
        assert!(said.contains("queue `s.g.1` is gone"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_listed_by_several_at_once_and_by_others_put_there() {
    let at = Place::rabbitmq("quorum");
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..100)).await;
    let reader = at.member(&backend, "g").await;
    for delivery in take(&reader, 100).await {
        reader.bury(&delivery, &format!("reason {}", delivery.event.id)).await.unwrap();
    }
    let dead = aqueduct::source::Dead { event: event(200), reason: "too long".into() };
    backend.file_dead(std::slice::from_ref(&dead)).await.unwrap();
    backend.file_dead(&[dead]).await.unwrap();
    publish(&other(&url(&at)).await, "s.dead", BasicProperties::default(), b"theirs").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let backend = at.open().await;
        tasks.spawn(async move { backend.dead().await.unwrap() });
    }
    for letters in tasks.join_all().await {
        assert_eq!(letters.len(), 102);
        assert_eq!(letters[3].reason, format!("reason {}", letters[3].event.id));
    }
    let error = backend.replay_dead(&[]).await.unwrap_err().to_string();
    assert!(error.contains("group \"-\""), "{error}");
    assert_eq!(backend.replay_dead(&[event(5).id, event(6).id]).await.unwrap(), 2);
    assert_eq!(backend.drop_dead(&[]).await.unwrap(), 100);
    let mut left = numbers(&finish(&reader, 2).await);
    left.sort_unstable();
    assert_eq!(left, [5, 6]);
}

/// Members of one group that store what they get, and what they stored.
async fn store(reader: Arc<dyn Reader>, stored: &std::sync::Mutex<Vec<u64>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(batch) = reader.fetch(100, BYTES, Duration::from_millis(50)).await else { return };
        stored.lock().unwrap().extend(numbers(&batch));
        if reader.ack(&tickets(&batch)).await.is_err() {
            return;
        }
    }
}

/// Sends `from..to` in steps of ten, going back to where the checkpoint says after any error.
async fn send(at: &Place, to: u64) {
    'open: loop {
        let backend = try_open(at).await;
        let Ok(mut writer) = backend.writer().await else { continue };
        let Ok(slots) = writer.slots("test").await else { continue };
        let mut next = slots.first().map_or(0, |slot| slot.1.order);
        while next < to {
            let from = (next > 0).then_some(next);
            let step: Append = moving("a", from, Some(next + 10), events(next..next + 10));
            match writer.append(&[step]).await {
                Ok(answers) => assert_eq!(answers, [Appended::Durable]),
                Err(_) => continue 'open,
            }
            next += 10;
        }
        return;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_under_load_loses_nothing_and_one_that_comes_back_empty_gets_it_all_again()
{
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = Rabbit::start();
    let at = Arc::new(Place::rabbitmq_at(&server.url("v0"), "quorum"));
    let stored: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let reading = tokio::spawn({
        let (at, stored, stop) = (at.clone(), stored.clone(), stop.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let backend = try_open(&at).await;
                store(at.member(&backend, "g").await, &stored, &stop).await;
            }
        }
    });
    const TOTAL: u64 = 40_000;
    let sending = tokio::spawn({
        let at = at.clone();
        async move { send(&at, TOTAL).await }
    });
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(random.u64(300..1500))).await;
        if round == 1 {
            server.wipe()
        } else {
            server.kill()
        }
        tokio::task::block_in_place(|| server.up());
    }
    sending.await.unwrap();
    until("all is stored", async || {
        stored.lock().unwrap().iter().collect::<BTreeSet<_>>().len() as u64 == TOTAL
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    reading.await.unwrap();
    let backend = try_open(&at).await;
    until("nothing waits", async || group_status(&backend, "g").await.lag == Some(0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_outlives_a_broker_killed_right_after_its_queue_was_made() {
    let mut server = Rabbit::start();
    let at = Arc::new(Place::rabbitmq_at(&server.url("v0"), "quorum"));
    // It dies a second after the queue was made, and once more when the second append is over.
    let first = tokio::spawn({
        let at = at.clone();
        async move {
            let mut writer = at.open().await.writer().await.unwrap();
            writer.append(&[moving("a", None, Some(10), events(0..10))]).await
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.kill();
    let confirmed = first.await.unwrap().is_ok();
    tokio::task::block_in_place(|| server.up());
    let mut writer = try_open(&at).await.writer().await.unwrap();
    let step = moving("a", None, Some(10), events(0..10));
    let expected = if confirmed { Appended::Rewound } else { Appended::Durable };
    assert_eq!(writer.append(&[step]).await.unwrap(), [expected]);
    server.kill();
    tokio::task::block_in_place(|| server.up());
    let backend = try_open(&at).await;
    let reader = at.member(&backend, "g").await;
    assert_eq!(numbers(&finish(&reader, 10).await), (0..10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_gone_is_made_again_and_nothing_is_published_into_nowhere() {
    for queue_type in BOTH {
        let at = Place::rabbitmq(queue_type);
        let backend = at.open().await;
        let mut writer = backend.writer().await.unwrap();
        put(&mut writer, events(0..1)).await;
        let channel = other(&url(&at)).await;
        channel.queue_delete("s.g".into(), QueueDeleteOptions::default()).await.unwrap();
        let step = moving("a", None, Some(3), events(0..3));
        assert!(writer.append(std::slice::from_ref(&step)).await.is_err(), "{queue_type}");
        // As the stream's actor does after any error.
        let backend = at.open().await;
        let mut writer = backend.writer().await.unwrap();
        assert_eq!(writer.append(&[step]).await.unwrap(), [Appended::Durable]);
        let taken = finish(&at.member(&backend, "g").await, 3).await;
        assert_eq!(numbers(&taken), [0, 1, 2], "{queue_type}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_survive_a_broker_that_is_killed() {
    let mut server = Rabbit::start();
    for (queue_type, vhost) in BOTH.into_iter().zip(["v0", "v1"]) {
        let at = Place::rabbitmq_at(&server.url(vhost), queue_type);
        let backend = at.open().await;
        let mut writer = backend.writer().await.unwrap();
        put(&mut writer, events(0..3)).await;
        let reader = at.member(&backend, "g").await;
        let held = take(&reader, 3).await;
        assert_eq!(reader.charge(held[1].ticket).await.unwrap(), Some(1));
        assert_eq!(reader.charge(held[1].ticket).await.unwrap(), Some(2));
        reader.bury(&held[0], "no").await.unwrap();
        server.kill();
        assert!(
            reader.renew(&tickets(&held)).await.is_err() || {
                tokio::time::sleep(Duration::from_millis(200)).await;
                reader.renew(&tickets(&held)).await.is_err()
            }
        );
        tokio::task::block_in_place(|| server.up());
        let backend = try_open(&at).await;
        let reader = at.member(&backend, "g").await;
        // A classic queue may have forgotten an ack: then an older copy is there as well.
        let mut attempts: BTreeMap<u64, u32> = BTreeMap::new();
        while !(attempts.contains_key(&2) && attempts.get(&1) == Some(&2)) {
            let next = take(&reader, 1).await.remove(0);
            let known = attempts.entry(next.event.id.sequence()).or_default();
            *known = next.attempts.max(*known);
        }
        assert_eq!(attempts.get(&2), Some(&0), "{queue_type}");
        assert_eq!(backend.dead().await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_short_of_disk_holds_appends_and_not_acks() {
    let server = Rabbit::start();
    let at = Place::rabbitmq_at(&server.url("v0"), "quorum");
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let reader = at.member(&backend, "g").await;
    let held = take(&reader, 10).await;
    server.ctl(&["set_disk_free_limit", "999GB"]);
    let start = Instant::now();
    let said = loop {
        match writer.append(&[plain(events(10..11))]).await {
            // It takes a moment until the alarm is heard.
            Ok(_) => assert!(start.elapsed() < PATIENCE, "it goes on"),
            Err(error) => break format!("{error:#}"),
        }
    };
    println!("{said} ({:?})", start.elapsed());
    assert!(said.contains("takes no messages") && said.contains("disk"), "{said}");
    // What is delivered can be acked all the same.
    reader.ack(&tickets(&held)).await.unwrap();
    assert!(backend.status().await.is_ok());
    drop((writer, backend));
    server.ctl(&["set_disk_free_limit", "1MB"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let start = Instant::now();
    while writer.append(&[plain(events(11..12))]).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "it takes no messages again");
    }
}
