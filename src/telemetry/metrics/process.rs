//! What the process takes of the machine, under the names that Prometheus' own clients use.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::table::Described;

/// Read anew whenever somebody looks. What the system does not tell is not there.
#[derive(Debug)]
pub(super) struct Process {
    start_seconds: f64,
}

/// One figure: how it is described, and how it is read.
struct Figure {
    described: Described,
    read: fn(&Process) -> Option<f64>,
}

const fn figure(
    name: &'static str,
    kind: &'static str,
    unit: &'static str,
    doc: &'static str,
    read: fn(&Process) -> Option<f64>,
) -> Figure {
    Figure { described: Described { name, kind, labels: &[], unit, doc }, read }
}

static FIGURES: &[Figure] = &[
    figure(
        "process_cpu_seconds",
        "counter",
        "seconds",
        "Processor time the process has used, of user and system",
        |_| Some(cpu_seconds()),
    ),
    figure("process_resident_memory_bytes", "gauge", "bytes", "Memory the process holds", |_| {
        memory_bytes()
    }),
    figure(
        "process_virtual_memory_bytes",
        "gauge",
        "bytes",
        "Addresses the process has taken",
        |_| status("VmSize:").map(|kib| kib * 1024.0),
    ),
    figure("process_threads", "gauge", "threads", "Threads of the process", |_| status("Threads:")),
    figure("process_open_fds", "gauge", "files", "Files and sockets the process has open", |_| {
        Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
    }),
    figure("process_max_fds", "gauge", "files", "Files and sockets it may have open", |_| {
        number("/proc/self/limits", "Max open files")
    }),
    figure(
        "process_start_time_seconds",
        "gauge",
        "seconds",
        "When the process began, since 1970 UTC",
        |process| Some(process.start_seconds),
    ),
];

impl Process {
    /// This process, which begins now.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start_seconds: now.as_secs_f64() }
    }

    /// What there is to read.
    pub fn described() -> impl Iterator<Item = Described> {
        FIGURES.iter().map(|figure| figure.described)
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Figure { described, read } in FIGURES {
            let Some(value) = read(self) else { continue };
            let (name, doc) = (described.name, described.doc);
            match described.kind {
                "counter" => {
                    let metric = ConstCounter::new(value);
                    let kind = metric.metric_type();
                    metric.encode(encoder.encode_descriptor(name, doc, None, kind)?)?;
                }
                _ => {
                    let metric = ConstGauge::new(value);
                    let kind = metric.metric_type();
                    metric.encode(encoder.encode_descriptor(name, doc, None, kind)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Processor time the process has used so far, of user and system.
pub fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Memory the process holds, where the system tells.
pub fn memory_bytes() -> Option<f64> {
    status("VmRSS:").map(|kib| kib * 1024.0)
}

fn status(name: &str) -> Option<f64> {
    number("/proc/self/status", name)
}

/// The first number behind `name` at the start of a line.
fn number(path: &str, name: &str) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
