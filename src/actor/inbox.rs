//! What waits for an actor's workers: handlers put jobs in, a worker takes several at once. It
//! belongs to the actor, so it outlives a life of the workers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};

use super::message::Down;

/// One job, and where its answer goes.
#[derive(Debug)]
pub struct Job<M, R> {
    /// What is asked.
    pub message: M,
    reply: oneshot::Sender<Result<R, Down>>,
}

impl<M, R> Job<M, R> {
    /// Answers. Who asked may be gone: then nobody hears it.
    pub fn answer(self, answer: Result<R, Down>) {
        let _ = self.reply.send(answer);
    }
}

/// The jobs, in order.
#[derive(Debug)]
pub struct Inbox<M, R> {
    jobs: RefCell<VecDeque<Job<M, R>>>,
    arrived: Notify,
}

impl<M, R> Default for Inbox<M, R> {
    fn default() -> Self {
        Self { jobs: RefCell::default(), arrived: Notify::new() }
    }
}

impl<M: 'static, R: 'static> Inbox<M, R> {
    /// Puts a job in; the future is its answer. A job that is dropped unanswered, because the
    /// worker died with it, is answered [`Down::Died`].
    pub fn put(&self, message: M) -> impl Future<Output = Result<R, Down>> + use<M, R> {
        let (reply, answer) = oneshot::channel();
        self.jobs.borrow_mut().push_back(Job { message, reply });
        self.arrived.notify_one();
        async move { answer.await.unwrap_or(Err(Down::Died)) }
    }

    /// Puts jobs back where they were.
    pub fn put_back(&self, jobs: Vec<Job<M, R>>) {
        let mut waiting = self.jobs.borrow_mut();
        for job in jobs.into_iter().rev() {
            waiting.push_front(job);
        }
    }

    /// Waits for a job, then takes as many as fit: `room` says whether one more does, given those
    /// that were taken. The first always fits.
    pub async fn take(&self, room: impl FnMut(&[Job<M, R>], &M) -> bool) -> Vec<Job<M, R>> {
        self.filled().await;
        self.take_waiting(room)
    }

    /// Takes as many of those that wait as fit; none where none waits.
    pub fn take_waiting(&self, mut room: impl FnMut(&[Job<M, R>], &M) -> bool) -> Vec<Job<M, R>> {
        let mut waiting = self.jobs.borrow_mut();
        let mut taken = Vec::new();
        while let Some(next) = waiting.front() {
            if !taken.is_empty() && !room(&taken, &next.message) {
                break;
            }
            taken.extend(waiting.pop_front());
        }
        self.wake_next(&waiting);
        taken
    }

    /// Waits for a job that `wanted` picks, and takes it out of its turn.
    pub async fn take_first(&self, wanted: impl Fn(&M) -> bool) -> Job<M, R> {
        loop {
            if let Some(job) = self.find(&wanted) {
                return job;
            }
            self.arrived.notified().await;
        }
    }

    fn find(&self, wanted: &impl Fn(&M) -> bool) -> Option<Job<M, R>> {
        let mut waiting = self.jobs.borrow_mut();
        let place = waiting.iter().position(|job| wanted(&job.message))?;
        let found = waiting.remove(place);
        self.wake_next(&waiting);
        found
    }

    /// What was left is another worker's to take: one arrival wakes one worker only.
    fn wake_next(&self, waiting: &VecDeque<Job<M, R>>) {
        if !waiting.is_empty() {
            self.arrived.notify_one();
        }
    }

    /// Waits until there is a job.
    pub async fn filled(&self) {
        while self.jobs.borrow().is_empty() {
            self.arrived.notified().await;
        }
    }

    /// The worker cannot work: whoever waits hears why.
    pub fn refuse_all(&self, cause: &Arc<str>) {
        for job in self.jobs.take() {
            job.answer(Err(Down::Failed(cause.clone())));
        }
    }
}

/// An inbox shared by an actor and its worker.
pub type SharedInbox<M, R> = Rc<Inbox<M, R>>;
