//! Connections to the broker: made soon or not at all, and errors that name the way out.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::spec::text::redact;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Seconds between heartbeats. A broker that is silent for two of these is gone.
const HEARTBEAT_SECONDS: u16 = 5;
/// The largest frame. The client keeps two buffers of 32 frames for each connection.
const FRAME_BYTES: u32 = 32 * 1024;
/// Bytes of a message's header: it has to fit a frame.
pub(super) const HEADER_BYTES: usize = FRAME_BYTES as usize / 4;

/// A handshake under way, and since when.
type Handshake = (Instant, JoinHandle<lapin::Result<Connection>>);

/// Handshakes that a broker which accepts and says nothing has not answered yet, by URL. A client
/// that is waited for no longer would keep its thread and its socket, and so would each new try.
static UNANSWERED: LazyLock<Mutex<HashMap<String, Vec<Handshake>>>> = LazyLock::new(Mutex::default);

/// Unanswered handshakes of one URL, at most.
const UNANSWERED_MAX: usize = 3;
/// How long one is waited for, where there are as many.
const UNANSWERED_AGE: Duration = Duration::from_secs(30);

/// Connections that the broker blocks, by URL: they cannot be closed until it lets them.
static BLOCKED: LazyLock<Mutex<HashMap<String, Vec<Link>>>> = LazyLock::new(Mutex::default);

/// Takes one of the things kept for `url`.
fn take<T>(kept: &Mutex<HashMap<String, Vec<T>>>, url: &str) -> Option<T> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let found = kept.get_mut(url)?.pop();
    if found.is_none() {
        kept.remove(url);
    }
    found
}

fn keep<T>(kept: &Mutex<HashMap<String, Vec<T>>>, url: &str, thing: T) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.entry(url.to_owned()).or_default().push(thing);
}

/// A connection.
pub(super) struct Link {
    connection: Connection,
    /// Whether the broker takes messages, and why not.
    events: Mutex<Events>,
}

struct Events {
    stream: Pin<Box<dyn Stream<Item = Event> + Send>>,
    blocked: Option<String>,
}

impl Link {
    /// Connects to `url` as `name`, in two seconds or not at all.
    pub async fn connect(url: &str, name: &str) -> Result<Self> {
        connect(url, name).await.with_context(|| format!("RabbitMQ at {}", place(url)))
    }

    /// A connection to publish with: an old one where the broker still blocks it.
    pub async fn to_publish(url: &str, name: &str) -> Result<Self> {
        while let Some(old) = take(&BLOCKED, url) {
            if old.connection.status().connected() {
                return Ok(old);
            }
        }
        Self::connect(url, name).await
    }

    /// A new channel.
    pub async fn channel(&self) -> Result<Channel> {
        answer("open a channel", self.connection.create_channel()).await
    }

    /// Why the broker takes no messages, where it says so (it is short of memory or disk).
    pub fn blocked(&self) -> Option<String> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Some(event)) = events.stream.next().now_or_never() {
            match event {
                Event::ConnectionBlocked(reason) => events.blocked = Some(reason),
                Event::ConnectionUnblocked => events.blocked = None,
                _ => {}
            }
        }
        let blocked = self.connection.status().blocked();
        blocked.then(|| events.blocked.clone().unwrap_or_else(|| "it does not say why".to_owned()))
    }

    /// Lets it go, now or, where the broker blocks it, later.
    pub fn leave(self, url: &str) {
        if self.connection.status().connected() && self.connection.status().blocked() {
            keep(&BLOCKED, url, self);
        }
    }
}

async fn connect(url: &str, name: &str) -> Result<Link> {
    let uri = uri(url)?;
    let mut waiting = Vec::new();
    while let Some((since, handshake)) = take(&UNANSWERED, url) {
        if !handshake.is_finished() {
            waiting.push((since, handshake));
        } else if let Ok(Ok(connection)) = handshake.await {
            // A broker that hung goes on.
            waiting.into_iter().for_each(|old| keep(&UNANSWERED, url, old));
            return Ok(link(connection));
        }
    }
    waiting.sort_by_key(|(since, _)| *since);
    if waiting.len() >= UNANSWERED_MAX && waiting[0].0.elapsed() > UNANSWERED_AGE {
        waiting.remove(0).1.abort();
    }
    let (since, mut handshake) = match waiting.len() >= UNANSWERED_MAX {
        true => waiting.remove(0),
        false => (Instant::now(), tokio::spawn(shake_hands(uri, name.to_owned()))),
    };
    waiting.into_iter().for_each(|old| keep(&UNANSWERED, url, old));
    match timeout(CONNECT, &mut handshake).await {
        Ok(Ok(Ok(connection))) => Ok(link(connection)),
        Ok(Ok(Err(error))) => Err(refused(error)),
        Ok(Err(_)) => Err(anyhow!("the connection was given up")),
        Err(_) => {
            keep(&UNANSWERED, url, (since, handshake));
            Err(anyhow!(
                "no answer within {} s (is it RabbitMQ that listens there, and does it run?)",
                CONNECT.as_secs()
            ))
        }
    }
}

fn link(connection: Connection) -> Link {
    let stream = Box::pin(connection.events_listener());
    Link { connection, events: Mutex::new(Events { stream, blocked: None }) }
}

fn uri(url: &str) -> Result<AMQPUri> {
    let parsed: Result<AMQPUri, String> = url.parse();
    // What the parser says may quote the whole URL.
    let mut uri = parsed.map_err(|why| {
        anyhow!("`url` is wrong: {} (amqp://user:password@host:port/vhost)", redact(&why))
    })?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    uri.query.heartbeat = Some(HEARTBEAT_SECONDS);
    uri.query.frame_max = Some(FRAME_BYTES);
    Ok(uri)
}

async fn shake_hands(uri: AMQPUri, name: String) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "aqueduct".into());
    let runtime = lapin::runtime::default_runtime()?;
    let connect = async move |uri: AMQPUri, runtime| {
        let tls = OwnedTLSConfig::default();
        let connecting = uri.connect_with_config_async(tls.as_ref(), &runtime);
        // The client's thread waits here: without an end of its own it would outlive us.
        match timeout(CONNECT, connecting).await {
            Ok(stream) => Ok(stream?),
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    };
    Connection::connector(uri, runtime, connect, properties).await
}

/// `host:port/vhost`, as errors show it.
pub(super) fn place(url: &str) -> String {
    match uri(url) {
        Ok(uri) => {
            let vhost = if uri.vhost == "/" { String::new() } else { format!("/{}", uri.vhost) };
            format!("{}:{}{vhost}", uri.authority.host, uri.authority.port)
        }
        Err(_) => redact(url),
    }
}

/// Why there is no connection, and what would be right.
fn refused(error: lapin::Error) -> Error {
    let text = redact(&error.to_string());
    let what = match error.kind() {
        ErrorKind::ProtocolError(protocol) if protocol.get_id() == 403 => {
            "the broker refused the login (the user and password in `url`)".to_owned()
        }
        ErrorKind::ProtocolError(protocol) if protocol.get_id() == 530 => format!(
            "{} (the virtual host at the end of `url`: `rabbitmqctl add_vhost` makes it, \
             `rabbitmqctl set_permissions` opens it to the user)",
            protocol.get_message()
        ),
        ErrorKind::IOError(io) => match io.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                "nothing listens there (start RabbitMQ, or mend host and port in `url`)".to_owned()
            }
            std::io::ErrorKind::TimedOut => {
                format!("no connection within {} s (host and port in `url`)", CONNECT.as_secs())
            }
            std::io::ErrorKind::InvalidData => {
                format!("TLS failed: {io} (amqp:// is without TLS, amqps:// with it)")
            }
            std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::UnexpectedEof => {
                format!("it hung up: {io} (amqp:// is without TLS, amqps:// with it)")
            }
            _ if io.to_string().contains("lookup") => {
                format!("there is no such host: {io} (the host in `url`)")
            }
            _ => text,
        },
        _ => text,
    };
    anyhow!("{what}")
}

/// What went wrong while talking to the broker.
pub(super) fn explain(error: lapin::Error) -> Error {
    let ErrorKind::ProtocolError(protocol) = error.kind() else {
        return match error.kind() {
            ErrorKind::ParsingError(_) => anyhow!(
                "the broker sent what cannot be read, such as a message whose properties are not \
                 UTF-8 (take it out of its queue): {error}"
            ),
            ErrorKind::MissingHeartbeatError => anyhow!("the broker is silent"),
            ErrorKind::IOError(_) | ErrorKind::InvalidConnectionState(_) => {
                anyhow!("the connection is gone: {error}")
            }
            _ => anyhow!(error),
        };
    };
    let text = protocol.get_message();
    let remedy = match protocol.get_id() {
        403 => " (`rabbitmqctl set_permissions` gives the user more rights)",
        404 => " (it was removed while it was in use)",
        405 => " (another connection has it for itself alone)",
        406 if text.as_str().contains("inequivalent arg") => {
            " (it exists and is another kind of thing: remove it, or name another one)"
        }
        406 if text.as_str().contains("larger than") => {
            " (raise `max_message_size` in rabbitmq.conf, or lower what the source takes)"
        }
        _ => "",
    };
    anyhow!("{text}{remedy}")
}

/// The status code of a refusal by the broker.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => Some(protocol.get_id()),
        _ => None,
    }
}

/// Waits for the broker's answer, and not for ever.
pub(super) async fn answer<T>(
    what: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T> {
    match timeout(ANSWER, call).await {
        Ok(answer) => answer.map_err(explain).with_context(|| format!("failed to {what}")),
        Err(_) => Err(anyhow!("failed to {what}: no answer within {} s", ANSWER.as_secs())),
    }
}
