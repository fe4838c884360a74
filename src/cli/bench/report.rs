//! What a bench says at its end, to people and to programs.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value as Json, json};

use super::oracle::Tally;

/// The parts of a hundred that are shown of the latencies.
const PERCENTILES: [(&str, f64); 4] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9)];

/// The verdict on a stream that keeps its promises.
pub const GOOD: &str = "good";
/// The verdict where one is not kept.
const BAD: &str = "bad";
/// The verdict where the bench could not go on.
const BROKEN: &str = "broken";

/// The verdict on all streams, of which so many were not tried: the worst of them.
pub fn verdict(reports: &[Report], untried: usize) -> &'static str {
    let is = |verdict| reports.iter().any(|report| report.verdict() == verdict);
    match (is(BAD), is(BROKEN) || untried > 0) {
        (true, _) => BAD,
        (false, true) => BROKEN,
        (false, false) => GOOD,
    }
}

/// What came of one stream's bench.
pub struct Report {
    /// The stream that it was like, and how it is set up, in words.
    pub what: String,
    /// Its kind.
    pub kind: &'static str,
    /// Events made durable.
    pub published: u64,
    /// Bytes of an event's body.
    pub body: usize,
    /// Until the last of them was durable.
    pub publishing: Duration,
    /// Until the last of them was stored by every group.
    pub delivering: Duration,
    /// Of all groups together.
    pub tally: Tally,
    /// Of all groups together; where it ended early, what was still on its way.
    pub lost: u64,
    /// Whether order was asked for.
    pub ordered: bool,
    /// Members killed.
    pub killed: u64,
    /// How often something failed for a while.
    pub interruptions: u64,
    /// Whether a member's death may leave an event twice in the stream, and one of the two after an
    /// acknowledgement: a queue makes copies, of one id.
    pub copies: bool,
    /// Why it ended early.
    pub broken: Option<String>,
    /// Where the backend promises less than that what is appended stays.
    pub weakness: Option<String>,
}

/// Adds what another group had.
pub fn add(all: &mut Tally, one: Tally) {
    all.stored += one.stored;
    all.redelivered += one.redelivered;
    all.doubled += one.doubled;
    all.disordered += one.disordered;
    all.fenced += one.fenced;
    all.foreign += one.foreign;
    all.examples.extend(one.examples);
    // Both have the same bounds.
    let _ = all.latencies.add(&one.latencies);
}

fn rate(events: u64, time: Duration) -> f64 {
    events as f64 / time.as_secs_f64().max(1e-6)
}

fn ms(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1000.0
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        let Tally { doubled, disordered, foreign, .. } = self.tally;
        let doubled = if self.may_double() { 0 } else { doubled };
        self.broken.is_none() && self.lost + doubled + disordered + foreign == 0
    }

    fn may_double(&self) -> bool {
        self.copies && self.killed + self.interruptions > 0
    }

    fn verdict(&self) -> &'static str {
        match (self.is_good(), &self.broken) {
            (true, _) => GOOD,
            (false, Some(_)) => BROKEN,
            (false, None) => BAD,
        }
    }

    /// A program's view.
    pub fn json(&self) -> Json {
        let tally = &self.tally;
        let mut latency = serde_json::Map::new();
        for (name, percentile) in PERCENTILES {
            latency.insert(name.to_owned(), json!(ms(&tally.latencies, percentile)));
        }
        latency.insert("max".to_owned(), json!(tally.latencies.max() as f64 / 1000.0));
        json!({
            "stream": self.what,
            "kind": self.kind,
            "verdict": self.verdict(),
            "broken": self.broken,
            "published": self.published,
            "published_per_second": rate(self.published, self.publishing).round(),
            "publish_seconds": self.publishing.as_secs_f64(),
            "delivered": tally.stored,
            "delivered_per_second": rate(tally.stored, self.delivering).round(),
            "deliver_seconds": self.delivering.as_secs_f64(),
            "latency_ms": latency,
            "lost": self.broken.is_none().then_some(self.lost),
            "undelivered": self.lost,
            "doubled": tally.doubled,
            "out_of_order": self.ordered.then_some(tally.disordered),
            "foreign": tally.foreign,
            "redelivered": tally.redelivered,
            "fenced": tally.fenced,
            "killed": self.killed,
            "interruptions": self.interruptions,
            "examples": tally.examples,
            "weakness": self.weakness,
        })
    }

    /// A person's view.
    pub fn text(&self) -> String {
        let mut lines = Lines::default();
        self.figures(&mut lines);
        self.checks(&mut lines);
        for example in &self.tally.examples {
            lines.add("", example, "");
        }
        if let Some(weakness) = &self.weakness {
            lines.add("note", format!("accepted may not mean durable: {weakness}"), "");
        }
        match &self.broken {
            Some(why) => lines.add("verdict", format!("broken: {why}"), ""),
            None => lines.add("verdict", self.verdict(), ""),
        }
        lines.0
    }

    /// How much, how fast, and how late.
    fn figures(&self, lines: &mut Lines) {
        let Tally { stored, latencies, .. } = &self.tally;
        let published = rate(self.published, self.publishing);
        let mib = published * self.body as f64 / f64::from(1 << 20);
        let seconds = self.publishing.as_secs_f64();
        lines.add(
            "published",
            format!("{} in {seconds:.2} s: {published:.0}/s, {mib:.1} MiB/s", self.published),
            "durable, as far as the backend is set up to be",
        );
        let delivered = rate(*stored, self.delivering);
        lines.add(
            "delivered",
            format!("{stored} in {:.2} s: {delivered:.0}/s", self.delivering.as_secs_f64()),
            "of all groups together, each event once",
        );
        let shown = PERCENTILES.iter().map(|(name, percentile)| {
            format!("{} {:.2}, ", name.replace('_', "."), ms(latencies, *percentile))
        });
        lines.add(
            "latency",
            format!("{}max {:.2} ms", shown.collect::<String>(), latencies.max() as f64 / 1000.0),
            "from when an event was due until a group had it",
        );
        if self.killed > 0 {
            lines.add("killed", self.killed, "members that let go of nothing");
        }
        if self.interruptions > 0 {
            let means = "times that the stream failed, and worked again";
            lines.add("interrupted", self.interruptions, means);
        }
    }

    /// What the oracle found.
    fn checks(&self, lines: &mut Lines) {
        let Tally { redelivered, fenced, doubled, disordered, foreign, .. } = self.tally;
        let means = "of what a member had before and did not ack in time: the sink keeps one";
        lines.add("redelivered", redelivered, means);
        if self.ordered {
            let means = "deliveries to who had lost the shard: the sink turns them away";
            lines.add("fenced", fenced, means);
        }
        match &self.broken {
            None => lines.add("lost", self.lost, "durable, and never delivered to a group"),
            Some(_) => {
                let means = "durable, and not delivered to a group before it ended";
                lines.add("undelivered", self.lost, means);
            }
        }
        let means = match self.may_double() {
            true => "delivered again after an ack in time: a queue does where a member dies",
            false => "delivered again after an ack in time",
        };
        lines.add("doubled", doubled, means);
        match self.ordered {
            true => lines.add("out of order", disordered, "after a later event of its key"),
            false => lines.add("out of order", "not asked for", "the groups are not ordered"),
        }
        if foreign > 0 {
            lines.add("foreign", foreign, "not issued, or with another body");
        }
    }
}

/// Lines of a report: a name, a value, and what that means.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display, means: &str) {
        let means = if means.is_empty() { String::new() } else { format!("  ({means})") };
        // A string takes everything.
        let _ = writeln!(self.0, "  {name:<13}{value}{means}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            what: "embedded".to_owned(),
            kind: "embedded",
            published: 10,
            body: 256,
            publishing: Duration::from_secs(1),
            delivering: Duration::from_secs(2),
            tally: Tally { stored: 10, ..Tally::default() },
            lost: 0,
            ordered: true,
            killed: 0,
            interruptions: 0,
            copies: false,
            broken: None,
            weakness: None,
        }
    }

    #[test]
    fn a_verdict_can_be_bad_or_broken() {
        let good = report();
        assert!(good.is_good() && good.text().contains("verdict      good"));
        let bad = |tally: Tally| Report { tally, ..report() };
        for report in [
            Report { lost: 1, ..report() },
            bad(Tally { doubled: 1, ..Tally::default() }),
            bad(Tally { disordered: 1, ..Tally::default() }),
            bad(Tally { foreign: 1, ..Tally::default() }),
        ] {
            assert!(!report.is_good() && report.text().contains("verdict      bad"));
            assert_eq!(report.json()["verdict"], "bad");
        }
        let broken = Report { broken: Some("it is away".to_owned()), lost: 3, ..report() };
        assert!(!broken.is_good() && broken.text().contains("verdict      broken: it is away"));
        assert_eq!(
            (&broken.json()["lost"], &broken.json()["undelivered"]),
            (&Json::Null, &json!(3))
        );
        for fine in
            [Tally { redelivered: 9, ..Tally::default() }, Tally { fenced: 9, ..Tally::default() }]
        {
            assert!(bad(fine).is_good());
        }
    }

    #[test]
    fn of_several_streams_the_worst_counts() {
        let good = report;
        let bad = || Report { lost: 1, ..report() };
        let broken = || Report { broken: Some("it is away".to_owned()), ..report() };
        assert_eq!(verdict(&[good(), good()], 0), "good");
        assert_eq!(verdict(&[good(), broken()], 0), "broken");
        assert_eq!(verdict(&[bad(), broken()], 0), "bad");
        assert_eq!(verdict(&[good()], 1), "broken", "nobody knows of the other");
        assert_eq!(verdict(&[], 1), "broken");
    }

    #[test]
    fn only_a_queue_may_double_and_only_where_a_member_died() {
        let doubled = |copies, killed| {
            let tally = Tally { doubled: 1, ..Tally::default() };
            Report { tally, copies, killed, ..report() }
        };
        assert!(doubled(true, 1).is_good());
        assert!(!doubled(true, 0).is_good() && !doubled(false, 1).is_good());
    }
}
