//! A simulation of autoscaling: the formula of Kubernetes' HorizontalPodAutoscaler with the numbers
//! of the shipped manifest, fed from the `/metrics` of the real program, starts and stops real
//! processes of the shipped topology on this machine, under a load that rises tenfold and falls.
//! There is no cluster: what a pod takes to be scheduled, and what machines of its own would add, is
//! not in it. A writer is made slow by its table, whose rows take some time each, as one far away
//! would be.
//!
//! `scripts/soak autoscale` runs the long form and draws `docs/autoscale.svg`.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/hpa.rs"]
mod hpa;
#[path = "support/kustomize.rs"]
mod kustomize;
#[path = "support/manifests.rs"]
mod manifests;
#[path = "support/plot.rs"]
mod plot;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;
#[path = "support/shipped.rs"]
mod shipped;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster::{Cluster, Pod};
use hpa::Hpa;
use kustomize::Workload;
use manifests::rendered;
use plot::Sample;
use process::{Place, eventually, scale};
use serde_json::Value;
use shipped::yaml;

/// Lines a second, before and after, and between.
const LOW: f64 = 500.0;
const HIGH: f64 = 5000.0;
/// Seconds between two looks of the autoscaler, and between two of Prometheus.
const SYNC: f64 = 15.0;
/// Seconds of low load before.
const BEFORE: f64 = 120.0;
/// Seconds of ours that may pass from the end of the high load until all is as before.
const LATE: f64 = 1200.0;
/// Of `drain`, in the shipped topology.
const DRAIN: Duration = Duration::from_secs(25);

const TABLE: &str = "
CREATE TABLE lines (event_id uuid PRIMARY KEY, line text, read_at timestamptz,
  stored_at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON lines FOR EACH ROW EXECUTE FUNCTION slow();";

/// What is appended to the file.
struct Load {
    input: std::fs::File,
    lines: u64,
    last: Instant,
    owed: f64,
}

impl Load {
    /// Writes what is due, at this rate since the last time.
    fn write(&mut self, rate: f64) {
        self.owed += self.last.elapsed().as_secs_f64() * rate;
        self.last = Instant::now();
        let mut text = String::new();
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            self.lines += 1;
            writeln!(text, "line {}", self.lines).unwrap();
        }
        self.input.write_all(text.as_bytes()).unwrap();
    }
}

/// One file into a table, through Redis: a process reads, as many as the autoscaler says write.
struct Flow {
    cluster: Cluster,
    pods: Vec<Value>,
    input: tempfile::TempDir,
    load: Load,
    _reader: (Place, Pod),
    writers: Vec<(Place, Pod)>,
    /// Writers that were told to end, and how long that took them.
    ended: Vec<std::thread::JoinHandle<Duration>>,
}

impl Flow {
    fn new() -> Self {
        let cluster = Cluster::start();
        cluster.postgres.psql(&cluster.database, TABLE);
        let input = tempfile::tempdir().unwrap();
        let pods = rendered("dev");
        let file = std::fs::File::create(input.path().join("input.txt")).unwrap();
        let load = Load { input: file, lines: 0, last: Instant::now(), owed: 0.0 };
        let _reader = pod(&cluster, &pods, "reader", input.path());
        Self { cluster, pods, input, load, _reader, writers: Vec::new(), ended: Vec::new() }
    }

    /// Starts writers, or tells the youngest to end.
    fn scale(&mut self, to: u32) {
        while self.writers.len() < to as usize {
            self.writers.push(pod(&self.cluster, &self.pods, "writer", self.input.path()));
        }
        for (place, mut pod) in self.writers.drain(to as usize..) {
            self.ended.push(std::thread::spawn(move || {
                let began = Instant::now();
                let status = pod.running.end();
                assert!(
                    status.success(),
                    "after {:?}: {status}: {}",
                    began.elapsed(),
                    pod.running.log()
                );
                drop(place);
                began.elapsed()
            }));
        }
    }

    /// The lag of the one group, which every writer tells: the highest, as by the adapter's rule.
    fn lag(&self) -> Option<f64> {
        self.writers.iter().filter_map(|(_, pod)| pod.lag()).reduce(f64::max)
    }
}

fn pod(cluster: &Cluster, pods: &[Value], workload: &str, input: &Path) -> (Place, Pod) {
    let (place, name) = (Place::new(""), format!("{workload}-{}", fastrand::u32(..)));
    let pod = cluster.pod(Workload::named(pods, workload), &name, "node", &place, input);
    (place, pod)
}

/// Runs the load, with `pace` seconds of the autoscaler in one of ours.
fn simulate(flow: &mut Flow, hpa: &mut Hpa, pace: f64, high: f64) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    // What Prometheus has seen: what the autoscaler is told is one look old.
    let mut seen = VecDeque::from([None]);
    let (began, mut next) = (Instant::now(), 0.0);
    flow.scale(hpa.min);
    loop {
        let at = began.elapsed().as_secs_f64() * pace;
        let is_high = (BEFORE..BEFORE + high).contains(&at);
        let rate = if is_high { HIGH } else { LOW };
        flow.load.write(rate);
        if at >= next {
            // A machine that is too slow for the pace looks less often.
            next = at + SYNC;
            seen.push_back(flow.lag());
            let told = seen.pop_front().flatten();
            let running = flow.writers.len() as u32;
            flow.scale(hpa.decide(at, running, told));
            let total = flow.cluster.rows();
            let stored = samples
                .last()
                .map_or(0.0, |last: &Sample| (total - last.total) as f64 * pace / (at - last.at));
            let (lag, processes) = (flow.lag(), flow.writers.len() as f64);
            samples.push(Sample { at, load: rate, stored, total, lag, processes });
            let over = at > BEFORE + high + 2.0 * SYNC && flow.writers.len() as u32 == hpa.min;
            if over && lag.is_some_and(|lag| lag <= hpa.target) {
                return samples;
            }
            let late = began.elapsed().as_secs_f64() - (BEFORE + high) / pace;
            assert!(late < LATE, "the writers never became as few as before: {samples:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn writers_come_and_go_with_a_tenfold_load() {
    let manifest: Value = yaml("deploy/kubernetes/base/hpa.yaml");
    let mut hpa = Hpa::new(&manifest);
    assert_eq!(hpa.metric, "aqueduct_group_lag");
    // How many times faster than in a cluster time goes by for the autoscaler.
    let pace = scale("AQUEDUCT_PACE", 60) as f64;
    // Beyond the time after which it lets one go, so that it has to find how many are enough.
    let high = scale("AQUEDUCT_HIGH_S", 600) as f64;
    let mut flow = Flow::new();
    let samples = simulate(&mut flow, &mut hpa, pace, high);
    eventually("every line is stored", || flow.cluster.rows() >= flow.load.lines);
    let rows = (flow.cluster.rows(), flow.cluster.different_lines());
    assert_eq!(rows, (flow.load.lines, flow.load.lines), "lost or doubled");
    let slowest = flow.ended.into_iter().map(|it| it.join().unwrap()).max().unwrap_or_default();
    assert!(slowest < DRAIN, "a writer took {slowest:?} to end");
    let most = samples.iter().map(|it| it.processes).fold(0.0, f64::max);
    let turns = turns(&samples);
    let late = samples.iter().filter(|it| it.load == HIGH && it.at > BEFORE + high / 2.0);
    let (within, of) = late.fold((0, 0), |(within, of), it| {
        let is_within = it.lag.is_some_and(|lag| lag <= hpa.target * it.processes);
        (within + u32::from(is_within), of + 1)
    });
    println!(
        "{} lines, each once; up to {most} writers, {turns} turns; lag within its target in {within} of {of} \
         looks of the second half of the high load; the slowest end of a writer took {slowest:?}",
        flow.load.lines
    );
    for it in &samples {
        let Sample { at, load, stored, lag, processes, .. } = it;
        println!("{at:6.0} s  {load:5.0}/s  {stored:6.0}/s  {lag:?}  {processes:2}");
    }
    if let Some(file) = std::env::var_os("AQUEDUCT_PLOT") {
        let title = format!(
            "Writers by the backlog: HPA of deploy/kubernetes, real processes, one machine, time {pace} times as fast"
        );
        std::fs::write(file, plot::svg(&samples, &title, hpa.target)).unwrap();
    }
    assert!(most > 1.0, "nobody came to help: {samples:?}");
    // A busy machine is too slow for the short form to say more.
    if pace <= 5.0 {
        assert!(within * 2 >= of, "the lag did not come back to its target: {samples:?}");
        assert!(turns <= 5, "the number of writers flaps: {samples:?}");
    }
}

/// How often the number of processes began to grow after it had shrunk, or to shrink after it had
/// grown.
fn turns(samples: &[Sample]) -> usize {
    let steps: Vec<bool> = (samples.windows(2))
        .filter(|pair| pair[0].processes != pair[1].processes)
        .map(|pair| pair[1].processes > pair[0].processes)
        .collect();
    steps.windows(2).filter(|pair| pair[0] != pair[1]).count()
}
