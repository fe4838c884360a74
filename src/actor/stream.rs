//! The stream actor: joins what sources append into one commit of its backend.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, ResponseFuture, Supervised};
use anyhow::{Result, anyhow};
use tokio_util::sync::CancellationToken;

use super::inbox::{Inbox, Job, SharedInbox};
use super::message::{Append, Bury, Down, Slots, Status};
use super::{Current, Shared, given_up, keeper};
use crate::fault;
use crate::source::Slot;
use crate::stream::{Appended, Backend, StreamSpec, StreamStatus, Writer};
use crate::telemetry::board::Component;
use crate::telemetry::metrics::ComponentLabels;

/// Events in one commit, at most; a single append may be larger.
const COMMIT_EVENTS_MAX: usize = 8000;
/// How long a stream may be idle before it is asked whether its backend is there.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// How soon a full stream is tried again.
const FULL_RETRY: Duration = Duration::from_millis(50);

/// What the worker is asked.
pub enum Ask {
    /// [`Append`]
    Append(Append),
    /// [`Slots`]
    Slots(Slots),
}

/// What the worker answers.
pub enum Answer {
    /// To [`Ask::Append`]
    Appended(Appended),
    /// To [`Ask::Slots`]
    Slots(Vec<Slot>),
}

type AskJob = Job<Ask, Answer>;

/// Runs one stream's writing side.
pub struct StreamActor {
    part: Current<StreamPart>,
    shared: Shared,
    component: Arc<Component>,
    inbox: SharedInbox<Ask, Answer>,
    /// The open backend, for what need not wait for the writer.
    backend: Rc<RefCell<Option<Arc<dyn Backend>>>>,
    /// What its backend's settings promise less, as the log knows it: told once, not each time it
    /// is opened anew.
    weakness: Rc<RefCell<Option<String>>>,
}

/// A stream, and what it is for in this process.
#[derive(Clone, Debug)]
pub struct StreamPart {
    /// The stream.
    pub spec: StreamSpec,
    /// Whether requests are answered by what it stores.
    pub answers: bool,
}

impl StreamActor {
    /// An actor that has opened nothing yet.
    pub fn new(part: Current<StreamPart>, shared: Shared, component: Arc<Component>) -> Self {
        let (inbox, backend, weakness) = (Rc::new(Inbox::default()), Rc::default(), Rc::default());
        Self { part, shared, component, inbox, backend, weakness }
    }

    fn opened(&self) -> Result<Arc<dyn Backend>, Down> {
        let missing = || Down::Failed(format!("stream {} is not open", self.component.name).into());
        self.backend.borrow().clone().ok_or_else(missing)
    }
}

impl Actor for StreamActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.backend.replace(None);
        let StreamPart { spec, answers } = self.part.get();
        let worker = Worker {
            spec,
            answers,
            renewal: self.component.renewal(),
            shared: self.shared.clone(),
            component: self.component.clone(),
            inbox: self.inbox.clone(),
            backend: self.backend.clone(),
            weakness: self.weakness.clone(),
        };
        keeper::live(ctx, &self.component, worker.work());
    }
}

impl Supervised for StreamActor {}

impl Handler<Append> for StreamActor {
    type Result = ResponseFuture<Result<Appended, Down>>;

    fn handle(&mut self, append: Append, _: &mut Self::Context) -> Self::Result {
        let answer = self.inbox.put(Ask::Append(append));
        Box::pin(async move {
            match answer.await? {
                Answer::Appended(appended) => Ok(appended),
                Answer::Slots(_) => Err(Down::Died),
            }
        })
    }
}

impl Handler<Slots> for StreamActor {
    type Result = ResponseFuture<Result<Vec<Slot>, Down>>;

    fn handle(&mut self, slots: Slots, _: &mut Self::Context) -> Self::Result {
        let answer = self.inbox.put(Ask::Slots(slots));
        Box::pin(async move {
            match answer.await? {
                Answer::Slots(slots) => Ok(slots),
                Answer::Appended(_) => Err(Down::Died),
            }
        })
    }
}

impl Handler<Bury> for StreamActor {
    type Result = ResponseFuture<Result<(), Down>>;

    fn handle(&mut self, bury: Bury, _: &mut Self::Context) -> Self::Result {
        let backend = self.opened();
        Box::pin(async move {
            let filed = backend?.file_dead(&bury.dead).await;
            filed.map_err(|error| Down::Failed(format!("{error:#}").into()))
        })
    }
}

impl Handler<Status> for StreamActor {
    type Result = ResponseFuture<Result<StreamStatus, Down>>;

    fn handle(&mut self, _: Status, _: &mut Self::Context) -> Self::Result {
        let backend = self.opened();
        Box::pin(async move {
            let status = backend?.status().await;
            status.map_err(|error| Down::Failed(format!("{error:#}").into()))
        })
    }
}

struct Worker {
    spec: StreamSpec,
    answers: bool,
    renewal: CancellationToken,
    shared: Shared,
    component: Arc<Component>,
    inbox: SharedInbox<Ask, Answer>,
    backend: Rc<RefCell<Option<Arc<dyn Backend>>>>,
    weakness: Rc<RefCell<Option<String>>>,
}

impl Worker {
    async fn work(self) -> Result<()> {
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = self.renewal.cancelled() => return Ok(()),
        };
        let (backend, mut writer) =
            opened.inspect_err(|error| self.inbox.refuse_all(&format!("{error:#}").into()))?;
        self.backend.replace(Some(backend.clone()));
        self.component.up();
        if self.answers
            && let Some(weakness) = backend.weakness().await
            && self.weakness.borrow().as_deref() != Some(&weakness)
        {
            let stream = &self.spec.name;
            tracing::warn!(%stream, "accepted may not mean durable: {weakness}");
            self.weakness.replace(Some(weakness));
        }
        let labels = ComponentLabels { component: self.component.to_string() };
        let metrics = &self.shared.board.metrics;
        let sizes = metrics.batch_events.get_or_create_owned(&labels);
        let seconds = metrics.write_seconds.get_or_create_owned(&labels);
        let failures = metrics.write_failures.get_or_create_owned(&labels);
        loop {
            let jobs = tokio::select! {
                biased;
                () = self.renewal.cancelled() => return Ok(()),
                jobs = self.inbox.take(fits) => jobs,
                () = self.component.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(IDLE_MAX) => {
                    backend.status().await?;
                    continue;
                }
            };
            let (appends, jobs) = match split(jobs) {
                Taken::Appends(appends, jobs) => (appends, jobs),
                Taken::Slots(origin, job) => {
                    let slots = writer.slots(&origin).await;
                    self.answer_slots(slots, job)?;
                    continue;
                }
            };
            let events: usize = appends.iter().map(|append| append.events.len()).sum();
            sizes.observe(events as f64);
            fault::point("stream.append", appends.iter().flat_map(|append| &append.events));
            let since = Instant::now();
            let outcome = tokio::select! {
                outcome = writer.append(&appends) => outcome,
                () = given_up(&self.renewal) => Err(anyhow!("the write took too long for an edit")),
            };
            match outcome.is_ok() {
                true => seconds.observe(since.elapsed().as_secs_f64()),
                false => _ = failures.inc(),
            }
            if let Ok(outcome) = &outcome {
                self.shared.board.taps.appended(&self.spec.name, &appends, outcome);
            }
            let full = match self.answer(outcome, appends, jobs) {
                Err(_) if self.renewal.is_cancelled() => return Ok(()),
                answered => answered?,
            };
            if full {
                tokio::select! {
                    () = tokio::time::sleep(FULL_RETRY) => {}
                    () = self.renewal.cancelled() => return Ok(()),
                    () = self.component.stop.cancelled() => return Ok(()),
                }
            }
        }
    }

    async fn open(&self) -> Result<(Arc<dyn Backend>, Box<dyn Writer>)> {
        let backend = (self.spec.kind.open)(self.spec.clone(), self.shared.site.clone()).await?;
        let writer = backend.writer().await?;
        Ok((backend, writer))
    }

    fn answer_slots(&self, slots: Result<Vec<Slot>>, job: AskJob) -> Result<()> {
        match slots {
            Ok(slots) => {
                self.component.progressed();
                job.answer(Ok(Answer::Slots(slots)));
                Ok(())
            }
            Err(error) => {
                job.answer(Err(Down::Failed(format!("{error:#}").into())));
                Err(error)
            }
        }
    }

    /// Answers each; what found the stream full and can wait goes back into the inbox, with all
    /// that came behind it from the same source. Whether there was such.
    fn answer(
        &self,
        outcome: Result<Vec<Appended>>,
        appends: Vec<crate::stream::Append>,
        jobs: Vec<(AskJob, bool)>,
    ) -> Result<bool> {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                let cause: Arc<str> = format!("{error:#}").into();
                for (job, _) in jobs {
                    job.answer(Err(Down::Failed(cause.clone())));
                }
                return Err(error);
            }
        };
        self.component.progressed();
        let mut waiting = Vec::new();
        let mut full = false;
        for ((appended, append), (mut job, wait)) in outcome.into_iter().zip(appends).zip(jobs) {
            full |= matches!(appended, Appended::Full(_));
            // Behind one that found no room, a step that starts where that one ends is no rewind.
            if wait && full && appended != Appended::Durable {
                job.message = Ask::Append(Append { append, wait });
                waiting.push(job);
            } else {
                job.answer(Ok(Answer::Appended(appended)));
            }
        }
        let any = !waiting.is_empty();
        self.inbox.put_back(waiting);
        Ok(any)
    }
}

/// Appends share a commit as long as it is not too large; a question stands alone.
fn fits(taken: &[AskJob], next: &Ask) -> bool {
    let mut events = 0;
    for job in taken {
        match &job.message {
            Ask::Append(append) => events += append.append.events.len(),
            Ask::Slots(_) => return false,
        }
    }
    match next {
        Ask::Append(append) => events + append.append.events.len() <= COMMIT_EVENTS_MAX,
        Ask::Slots(_) => false,
    }
}

enum Taken {
    Appends(Vec<crate::stream::Append>, Vec<(AskJob, bool)>),
    Slots(Arc<str>, AskJob),
}

/// Takes the appends out of their jobs, so that the backend sees one slice of them.
fn split(jobs: Vec<AskJob>) -> Taken {
    let mut appends = Vec::with_capacity(jobs.len());
    let mut rest = Vec::with_capacity(jobs.len());
    for mut job in jobs {
        let empty = Ask::Slots(Slots { origin: "".into() });
        match std::mem::replace(&mut job.message, empty) {
            Ask::Append(message) => {
                appends.push(message.append);
                rest.push((job, message.wait));
            }
            Ask::Slots(slots) => return Taken::Slots(slots.origin, job),
        }
    }
    Taken::Appends(appends, rest)
}
