//! The way of a producer or member to the stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

use super::load::Load;
use crate::event::Delivery;
use crate::stream::{Append, Appended, Backend, Reader, ReaderSpec, Writer};

/// Bytes of a fetch, about.
const FETCH_BYTES: usize = 4 * 1024 * 1024;
/// How long a fetch waits where nothing comes.
const FETCH_WAIT: Duration = Duration::from_millis(200);
/// The first wait before what failed is tried again; it doubles.
const RETRY: Duration = Duration::from_millis(50);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// An opening of the stream, and its writer.
pub type Writing = (Arc<dyn Backend>, Box<dyn Writer>);
/// An opening of the stream, and its reader.
pub type Reading = (Arc<dyn Backend>, Arc<dyn Reader>);

/// The way to the stream: opened anew after an error, and given up after a while.
pub struct Line<'l> {
    load: &'l Load,
    doing: &'static str,
    worked: Instant,
    wait: Duration,
}

impl<'l> Line<'l> {
    /// `doing`: what it is for, as an error says it.
    pub fn new(load: &'l Load, doing: &'static str) -> Self {
        Self { load, doing, worked: Instant::now(), wait: RETRY }
    }

    async fn open(&self) -> Result<Arc<dyn Backend>> {
        let Load { spec, site, .. } = self.load;
        (spec.kind.open)(spec.clone(), site.clone()).await
    }

    /// Appends, by a writer that is kept until something fails.
    pub async fn append(
        &self,
        writing: &mut Option<Writing>,
        append: &[Append],
    ) -> Result<Appended> {
        // Taken, and put back only after it worked.
        let (backend, mut writer) = match writing.take() {
            Some(writing) => writing,
            None => {
                let backend = self.open().await?;
                let writer = backend.writer().await?;
                (backend, writer)
            }
        };
        let answer = writer.append(append).await?.into_iter().next();
        *writing = Some((backend, writer));
        answer.context("the stream did not answer")
    }

    /// Fetches for member `number` of a group, by a reader that is kept until something fails.
    pub async fn fetch(
        &self,
        reading: &mut Option<Reading>,
        group: usize,
        number: usize,
    ) -> Result<(Vec<Delivery>, Arc<dyn Reader>)> {
        let (backend, reader) = match reading.take() {
            Some(reading) => reading,
            None => {
                let backend = self.open().await?;
                let group = self.load.spec.groups[group].clone();
                let member = format!("{}/{}/{number}", self.load.site.instance, group.name);
                let reader = backend.reader(ReaderSpec { group, member }).await?;
                (backend, reader)
            }
        };
        let taken = reader.fetch(self.load.plan.batch, FETCH_BYTES, FETCH_WAIT).await?;
        *reading = Some((backend, reader.clone()));
        Ok((taken, reader))
    }

    /// It worked: patience begins anew.
    pub fn worked(&mut self) {
        (self.worked, self.wait) = (Instant::now(), RETRY);
    }

    /// Waits before the next try; errs where it has failed for too long.
    pub async fn failed(&mut self, error: anyhow::Error) -> Result<()> {
        let Load { plan, stop, interruptions, .. } = self.load;
        if self.worked.elapsed() >= plan.patience {
            let seconds = plan.patience.as_secs_f64();
            let doing = self.doing;
            return Err(error.context(format!("cannot {doing}, for {seconds} s by now")));
        }
        if self.wait == RETRY {
            interruptions.fetch_add(1, Ordering::Relaxed);
        }
        tokio::select! {
            () = sleep(self.wait) => {}
            () = stop.cancelled() => {}
        }
        self.wait = (self.wait * 2).min(RETRY_MAX);
        Ok(())
    }
}
