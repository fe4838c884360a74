//! The way of spans to the collector: a bounded queue, and a thread with a runtime of its own that
//! sends what is there in batches. A collector that is slow or away costs spans, never events: what
//! does not fit is dropped and counted, and said once until it works again.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::said::{Said, Telling};
use crate::spec::text::redact;
use crate::telemetry::metrics::{DropLabels, Metrics};
use crate::topology::Tracing;

/// Spans that wait, at most: about 8 MiB of them.
const QUEUE_SPANS: usize = 8192;
/// Spans in one message.
const BATCH_SPANS: usize = 512;
/// How long a batch waits for more.
const BATCH_WAIT: Duration = Duration::from_millis(500);
/// How long the collector may take for a batch, tries again included.
const EXPORT_WAIT: Duration = Duration::from_secs(5);
/// How long a stop waits for the collector.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// Where spans go that have ended.
pub struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Counter,
    full: Arc<AtomicBool>,
    said: Arc<Telling>,
}

impl Queue {
    /// Puts a span in, or drops it where the queue is full.
    pub fn put(&self, span: SpanData) {
        if self.spans.try_send(span).is_ok() {
            return;
        }
        self.dropped.inc();
        if !self.full.swap(true, Ordering::Relaxed)
            && let Some(line) = self.said.failed("")
        {
            let so_far = line.so_far();
            tracing::warn!(
                queued = QUEUE_SPANS,
                "spans come faster than the collector takes them: some are dropped (see \
                 aqueduct_spans_dropped_total){so_far}"
            );
        }
    }
}

/// The way to the queue that is used now, if one is.
#[derive(Clone, Default)]
pub struct Way(Arc<RwLock<Option<Queue>>>);

impl Way {
    /// Puts a span into the queue, where there is one.
    pub fn put(&self, span: SpanData) {
        if let Some(queue) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            queue.put(span);
        }
    }

    /// From now on spans go there.
    pub fn turn(&self, queue: Option<Queue>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = queue;
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Way")
    }
}

/// Spans that the tracer made, from `tracing`'s.
impl SpanProcessor for Way {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.put(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The sending thread.
#[derive(Debug)]
pub struct Exporter {
    stop: CancellationToken,
    stopped: blocking::Receiver<usize>,
}

impl Exporter {
    /// Sends what is there, and returns when that is done; after 3 s at most, and at once where
    /// the collector was away before.
    pub fn stop(self) {
        self.stop.cancel();
        match self.stopped.recv_timeout(STOP_WAIT) {
            Ok(0) => {}
            Ok(left) => tracing::warn!(left, "stopped with spans that the collector did not take"),
            Err(_) => tracing::warn!("stopped while the collector had not taken all spans"),
        }
    }
}

/// Starts the thread. Errs where the collector's address is none.
pub fn start(tracing: &Tracing, instance: &str, metrics: &Metrics) -> Result<(Queue, Exporter)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a runtime for spans")?;
    let resource = Resource::builder_empty()
        .with_service_name(tracing.service.clone())
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ])
        .build();
    let built = {
        let _inside = runtime.enter(); // the connection's tasks run there
        let tonic = SpanExporter::builder().with_tonic();
        let tonic = tonic.with_endpoint(&tracing.otlp).with_timeout(EXPORT_WAIT);
        let tonic = match tracing.otlp.starts_with("https:") {
            true => tonic.with_tls_config(
                opentelemetry_otlp::tonic_types::transport::ClientTlsConfig::new()
                    .with_enabled_roots(),
            ),
            false => tonic,
        };
        tonic.build()
    };
    let mut exporter = built.with_context(|| {
        format!("cannot send spans to [tracing] otlp {}", redact(&tracing.otlp))
    })?;
    exporter.set_resource(&resource);
    let (spans, receiver) = mpsc::channel(QUEUE_SPANS);
    let (done, stopped) = blocking::channel();
    let stop = CancellationToken::new();
    let (full, said) = (Arc::new(AtomicBool::new(false)), Arc::<Telling>::default());
    let dropped = |reason| metrics.spans_dropped.get_or_create_owned(&DropLabels { reason });
    let sending = Sending {
        exporter,
        receiver,
        stop: stop.clone(),
        full: full.clone(),
        overrun: said.clone(),
        failing: false,
        said: Said::default(),
        collector: redact(&tracing.otlp),
        exported: metrics.spans_exported.clone(),
        dropped: dropped("collector"),
    };
    std::thread::Builder::new()
        .name("spans".into())
        .spawn(move || {
            let left = runtime.block_on(sending.work());
            // A second thread of the process may have stopped waiting.
            let _ = done.send(left);
            runtime.shutdown_background();
        })
        .context("cannot start a thread for spans")?;
    Ok((Queue { spans, dropped: dropped("queue"), full, said }, Exporter { stop, stopped }))
}

struct Sending {
    exporter: SpanExporter,
    receiver: mpsc::Receiver<SpanData>,
    stop: CancellationToken,
    full: Arc<AtomicBool>,
    overrun: Arc<Telling>,
    failing: bool,
    said: Said,
    collector: String,
    exported: Counter,
    dropped: Counter,
}

impl Sending {
    /// Sends until a stop; answers how many spans were there then and not taken.
    async fn work(mut self) -> usize {
        loop {
            let batch = self.batch().await;
            if batch.is_empty() {
                return 0;
            }
            let (spans, stop) = (batch.len(), self.stop.clone());
            let hopeless = self.failing;
            let sent = tokio::select! {
                sent = self.send(batch) => sent,
                () = stop.cancelled(), if hopeless => false,
            };
            if !sent && stop.is_cancelled() {
                return spans + self.receiver.len(); // it is away: the rest would fare no better
            }
            if sent && self.receiver.is_empty() {
                self.full.store(false, Ordering::Relaxed);
                _ = self.overrun.works(); // nobody waits to hear it
            }
        }
    }

    /// What has come, as soon as it is a batch or has waited long enough. Empty after a stop,
    /// when nothing is left.
    async fn batch(&mut self) -> Vec<SpanData> {
        let Self { receiver, stop, .. } = self;
        let mut batch = Vec::new();
        let mut until: Option<Instant> = None;
        while batch.len() < BATCH_SPANS {
            let room = BATCH_SPANS - batch.len();
            let waited = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                taken = receiver.recv_many(&mut batch, room) => match taken {
                    0 => break,
                    _ => { until.get_or_insert_with(|| Instant::now() + BATCH_WAIT); }
                },
                () = waited => break,
                () = stop.cancelled() => {
                    receiver.close(); // what is in it comes all the same
                    if receiver.is_empty() {
                        break;
                    }
                }
            }
        }
        batch
    }

    /// Sends a batch. `false`: it is lost.
    async fn send(&mut self, batch: Vec<SpanData>) -> bool {
        let spans = batch.len() as u64;
        let sent = tokio::time::timeout(EXPORT_WAIT, self.exporter.export(batch)).await;
        let cause = match sent {
            Ok(Ok(())) => {
                self.exported.inc_by(spans);
                self.failing = false;
                if let Some(works) = self.said.works(std::time::Instant::now()) {
                    tracing::info!(collector = self.collector, "spans are sent again {works}");
                }
                return true;
            }
            Ok(Err(error)) => redact(&error.to_string()),
            Err(_) => format!("it took longer than {} s", EXPORT_WAIT.as_secs()),
        };
        self.dropped.inc_by(spans);
        self.failing = true;
        // One line, whatever it is: why a collector is away is not the user's first question.
        if let Some(line) = self.said.failed("", std::time::Instant::now()) {
            let so_far = line.so_far();
            tracing::warn!(
                collector = self.collector,
                "spans cannot be sent, and are dropped until they can: {cause} (events flow \
                 on){so_far}"
            );
        }
        false
    }
}
