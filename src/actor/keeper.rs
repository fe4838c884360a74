//! The keeper: runs one actor, and starts it anew after an error, a panic or a stop that nobody
//! asked for, with the same mailbox and the same addresses.
//!
//! actix's own supervisor knows neither panics (they end the actor's task) nor a backoff. So the
//! keeper polls the actor's context itself, inside `catch_unwind`, and restarts it in place.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use actix::dev::channel::channel;
use actix::fut::wrap_future;
use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, ArbiterHandle, AsyncContext, Context, Recipient,
    Supervised,
};
use futures_util::FutureExt;

use super::message::Exited;
use crate::telemetry::board::Component;
use crate::telemetry::logs::panic_text;
use crate::telemetry::metrics::ComponentLabels;
use crate::telemetry::metrics::Metrics;

/// The first wait before a restart; it doubles from there.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait after an error: a broker that is back is noticed within this.
const BACKOFF_ERROR_MAX: Duration = Duration::from_secs(2);
/// The longest wait after a panic.
const BACKOFF_PANIC_MAX: Duration = Duration::from_secs(30);
/// How long an actor that is to end at once may take for it.
const ABORT_WAIT: Duration = Duration::from_secs(1);
/// Messages a mailbox holds. Senders bound themselves long before.
const MAILBOX: usize = 64;

/// Starts an actor on `arbiter` and keeps it running until its component's `stop` is signalled
/// and it has ended well.
pub fn keep<A, F>(
    arbiter: &ArbiterHandle,
    component: Arc<Component>,
    metrics: &Metrics,
    supervisor: Recipient<Exited>,
    make: F,
) -> Addr<A>
where
    A: Actor<Context = Context<A>> + Supervised,
    F: FnOnce() -> A + Send + 'static,
{
    let (sender, receiver) = channel(MAILBOX);
    let restarts =
        metrics.restarts.get_or_create_owned(&ComponentLabels { component: component.to_string() });
    arbiter.spawn_fn(move || {
        let mut life = Context::with_receiver(receiver).into_future(make());
        actix_rt::spawn(async move {
            let mut backoff = Backoff::default();
            loop {
                let living = AssertUnwindSafe(poll_fn(|cx| Pin::new(&mut life).poll(cx)));
                let ended = tokio::select! {
                    biased;
                    ended = living.catch_unwind() => ended,
                    () = aborted(&component) => break,
                };
                let outcome = component.take_exit();
                let (cause, panicked) = match (ended, outcome) {
                    (Err(panic), _) => (format!("panicked: {}", panic_text(&*panic)), true),
                    (Ok(()), Some(Ok(()))) if component.stop.is_cancelled() => break,
                    (Ok(()), Some(Ok(()))) if component.take_renewal() => {
                        backoff = Backoff::default();
                        if life.restart() {
                            continue;
                        }
                        break;
                    }
                    (Ok(()), Some(Err(error))) => (format!("{error:#}"), false),
                    (Ok(()), _) => ("stopped, though nobody asked it to".to_owned(), false),
                };
                let wait = backoff.next(component.take_progress(), panicked);
                component.down(&cause);
                restarts.inc();
                supervisor.do_send(Exited { name: component.to_string(), cause });
                let renewal = component.renewal();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = renewal.cancelled() => backoff = Backoff::default(),
                    () = component.stop.cancelled() => break,
                }
                component.take_renewal(); // the next life has the new spec in any case
                if !life.restart() {
                    break; // no address of it is left
                }
            }
            component.finish();
        });
    });
    Addr::new(sender)
}

/// Returns some time after the component was to end at once: what can end well then has.
async fn aborted(component: &Component) {
    component.abort.cancelled().await;
    tokio::time::sleep(ABORT_WAIT).await;
}

/// Runs `work` as the actor's life: when it ends, the actor ends with its outcome.
pub fn live<A>(
    ctx: &mut Context<A>,
    component: &Arc<Component>,
    work: impl Future<Output = anyhow::Result<()>> + 'static,
) where
    A: Actor<Context = Context<A>>,
{
    let component = component.clone();
    ctx.spawn(wrap_future(work).map(move |outcome, _: &mut A, ctx: &mut Context<A>| {
        component.exit(outcome);
        ctx.stop();
    }));
}

/// How long to wait before the next life.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self, progressed: bool, panicked: bool) -> Duration {
        self.failures = if progressed { 0 } else { self.failures };
        let longest = if panicked { BACKOFF_PANIC_MAX } else { BACKOFF_ERROR_MAX };
        let wait = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        wait.mul_f64(0.75 + 0.25 * fastrand::f64()) // jitter: not everybody at once
    }
}

#[cfg(test)]
mod tests {
    use actix::{Handler, Message, ResponseActFuture};

    use super::*;
    use crate::spec::Room;
    use crate::telemetry::board::{Board, State};

    #[derive(Clone, Copy, Message)]
    #[rtype(result = "u32")]
    enum Do {
        Count,
        PanicInFuture,
        PanicInMap,
        PanicInHandler,
        Stop,
        Fail,
    }

    struct Fragile {
        component: Arc<Component>,
        handled: u32,
    }

    impl Actor for Fragile {
        type Context = Context<Self>;

        fn started(&mut self, _: &mut Self::Context) {
            self.component.up();
        }
    }

    impl Supervised for Fragile {}

    impl Handler<Do> for Fragile {
        type Result = ResponseActFuture<Self, u32>;

        fn handle(&mut self, what: Do, ctx: &mut Self::Context) -> Self::Result {
            match what {
                Do::PanicInHandler => panic!("in the handler"),
                Do::Stop => ctx.stop(),
                Do::Fail => live::<Self>(ctx, &self.component, async { anyhow::bail!("no luck") }),
                Do::Count | Do::PanicInFuture | Do::PanicInMap => {}
            }
            let work = async move {
                tokio::task::yield_now().await;
                assert!(!matches!(what, Do::PanicInFuture), "in the future");
            };
            Box::pin(wrap_future(work).map(move |(), actor: &mut Self, _| {
                assert!(!matches!(what, Do::PanicInMap), "in the map");
                actor.handled += 1;
                actor.handled
            }))
        }
    }

    struct Listener(Arc<std::sync::Mutex<Vec<String>>>);

    impl Actor for Listener {
        type Context = Context<Self>;
    }

    impl Handler<Exited> for Listener {
        type Result = ();

        fn handle(&mut self, exited: Exited, _: &mut Self::Context) {
            self.0.lock().unwrap().push(exited.cause);
        }
    }

    #[test]
    fn every_end_is_a_new_life_behind_the_same_address() {
        actix_rt::System::new().block_on(async {
            let board = Board::default();
            let component = board.add(Room::Sink, &"fragile".into(), 1, "test");
            let causes = Arc::new(std::sync::Mutex::new(Vec::new()));
            let listener = Listener(causes.clone()).start();
            let arbiter = actix_rt::Arbiter::new();
            let made = component.clone();
            let exits = listener.recipient();
            let fragile =
                keep(&arbiter.handle(), component.clone(), &board.metrics, exits, move || {
                    Fragile { component: made, handled: 0 }
                });
            let ends = [Do::PanicInFuture, Do::PanicInMap, Do::PanicInHandler, Do::Stop, Do::Fail];
            for end in ends {
                assert!(fragile.send(Do::Count).await.is_ok());
                component.progressed(); // so that each failure counts as the first
                let _ = fragile.send(end).await;
            }
            let counted = fragile.send(Do::Count).await.unwrap();
            assert!(counted >= 6, "the actor's own state outlives its lives: {counted}");
            assert_eq!(component.restarts(), 5);
            let causes = causes.lock().unwrap().clone();
            for (cause, said) in causes.iter().zip([
                "in the future",
                "in the map",
                "in the handler",
                "nobody asked",
                "no luck",
            ]) {
                assert!(cause.contains(said), "{cause} does not say {said}");
            }
            component.stop.cancel();
            let _ = fragile.send(Do::Stop).await;
            component.exit(Ok(()));
            component.done.cancelled().await;
            assert_eq!(component.state(), State::Done);
        });
    }

    #[test]
    fn the_wait_doubles_up_to_a_limit_and_progress_resets_it() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next(false, false)).collect();
        assert!(waits[0] <= BACKOFF_FIRST && waits[0] >= BACKOFF_FIRST / 2);
        assert!(waits.iter().all(|wait| *wait <= BACKOFF_ERROR_MAX));
        assert!(waits[11] >= BACKOFF_ERROR_MAX / 2);
        assert!(backoff.next(false, true) > BACKOFF_ERROR_MAX);
        assert!(backoff.next(true, true) <= BACKOFF_FIRST);
    }
}
