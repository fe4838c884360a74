//! What takes longer than a test may: the reader's time is given.

#[path = "../../../tests/support/servers.rs"]
mod servers;

use std::time::Duration;

use servers::Rabbit;

use super::*;
use crate::event::{Delivery, Origin, Sequence};
use crate::spec::Value;
use crate::stream::{Append, GroupSpec, Retain};

/// Longer than any of these tests, and than what the broker waits for.
const LEASE: Duration = Duration::from_secs(7200);
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn spec(url: &str) -> StreamSpec {
    let group = GroupSpec {
        name: "g".into(),
        from: "s".into(),
        to: "sink".into(),
        members: 1,
        latest: true,
        batch: 3,
        lease: LEASE,
        attempts: 5,
        dead: "s.dead".into(),
        ordered: false,
        counter: None,
        values: Values::default(),
    };
    let mut values = Values::default();
    values.set("url", Value::Str(url.to_owned()));
    values.set("queue_type", Value::Str("classic".to_owned()));
    StreamSpec {
        name: "s".into(),
        kind: &KIND,
        shards: 1,
        retain: Retain::Acked,
        max_backlog: 1000,
        groups: vec![group],
        values,
    }
}

async fn opened(spec: &StreamSpec, data_dir: &std::path::Path) -> Arc<Broker> {
    let (url, names) = (spec.values.str("url").to_owned(), Names::new(spec).unwrap());
    let link = Link::connect(&url, "a test").await.unwrap();
    let made = declare::declare(&link, &names, spec, false).await.unwrap();
    Arc::new(Broker {
        counter: Counter::new(link.channel().await.unwrap()),
        in_flight: InFlight::of(&url, "s"),
        site: Site {
            data_dir: data_dir.to_owned(),
            instance: "here".into(),
            until_idle: false,
            runs: true,
        },
        settling: Settling { since: Instant::now(), made },
        settled: OnceCell::new_with(Some(())),
        publisher: OnceCell::new(),
        checkpoint: OnceCell::new(),
        spec: spec.clone(),
        url,
        names,
        link,
    })
}

async fn member(broker: &Arc<Broker>, name: &str) -> Member {
    let group = broker.spec.groups[0].clone();
    Member::open(broker.clone(), ReaderSpec { group, member: name.to_owned() }).await.unwrap()
}

/// So many events, however they come.
async fn taken(member: &Member, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let more = member.fetch(count - all.len(), 1 << 20, 20 * SECOND).await.unwrap();
        assert!(!more.is_empty(), "{} of {count}", all.len());
        all.extend(more);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_longer_than_ten_minutes_is_handed_back_and_not_counted() {
    let (server, folder) = (Rabbit::start(), tempfile::tempdir().unwrap());
    let broker = opened(&spec(&server.url("v0")), folder.path()).await;
    let id = |n| EventId::new(Origin::new(Sequence::Count, &[b"test"]), n, 7);
    let events = (0..6).map(|n| Event::new(id(n), "body".into(), "input".into(), 1)).collect();
    let append = Append { origin: "test".into(), moves: Vec::new(), events };
    StreamWriter::open(broker.clone()).await.unwrap().append(&[append]).await.unwrap();
    // Three are in the first one's hand, under a lease that goes on, and three are read ahead.
    let first = member(&broker, "first").await;
    let held = taken(&first, 3).await;
    let tickets: Vec<_> = held.iter().map(|held| held.ticket).collect();
    first.tend_in(9 * MINUTE).await.unwrap();
    assert_eq!(first.renew(&tickets).await.unwrap(), []);
    first.tend_in(11 * MINUTE).await.unwrap();
    assert_eq!(first.renew(&tickets).await.unwrap(), tickets);
    // The broker does not wait for the first one any more: all is another's, for the first time.
    let second = member(&broker, "second").await;
    let mut all = taken(&second, 6).await;
    assert!(all.iter().all(|it| it.deliveries == 1), "handing back is no delivery");
    all.sort_by_key(|it| it.event.id.sequence());
    assert_eq!(all.iter().map(|it| it.event.id.sequence()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}
