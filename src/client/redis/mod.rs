//! Redis: one server, or a Cluster of which every key has its node.

mod explain;
mod script;
mod slots;

use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, RedisError, Value,
};
use tokio::sync::Mutex;

pub use self::explain::code;
pub use self::script::Script;
use self::slots::Slots;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a command may go unanswered before the server counts as hung.
const ANSWER: Duration = Duration::from_secs(5);
/// The oldest server that has all commands we use (`XAUTOCLAIM`, `XTRIM … MINID`).
const VERSION_MIN: (u32, u32) = (6, 2);

/// A server or a Cluster, and the connections to it that all its users share. A clone shares them.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    seeds: Vec<ConnectionInfo>,
    cluster: bool,
    /// Of a Cluster: which node has which slots; `None` once it was found to be wrong.
    slots: Mutex<Option<Slots>>,
    nodes: StdMutex<Vec<Arc<Node>>>,
}

/// One server.
pub struct Node {
    info: ConnectionInfo,
    /// Its address, as messages show it.
    shown: String,
    shared: Mutex<Option<MultiplexedConnection>>,
}

/// A lock that outlives a panic elsewhere: what it guards is whole between any two statements.
fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address of a URL, without its secrets, as `redis://host:port`. `None`: it is no such URL.
pub fn address(url: &str) -> Option<String> {
    Some(shown(&url.into_connection_info().ok()?))
}

fn shown(info: &ConnectionInfo) -> String {
    let scheme =
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) { "rediss" } else { "redis" };
    match info.redis_settings().db() {
        0 => format!("{scheme}://{}", info.addr()),
        db => format!("{scheme}://{}/{db}", info.addr()),
    }
}

impl Redis {
    /// Connects to the first of `urls` that answers. Several are those of a Cluster's nodes; of
    /// one, the server tells. Errs where none answers, or with what is not as it has to be.
    pub async fn open(urls: &[String]) -> Result<Self> {
        // Fails where the program has chosen one already: that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let seeds = urls.iter().map(|url| parse(url)).collect::<Result<Vec<_>>>()?;
        let mut failed = anyhow!("no URL of a Redis server is given");
        for seed in &seeds {
            let node = Arc::new(Node::new(seed.clone()));
            match node.look().await {
                Ok(cluster) => return Self::with(seeds.clone(), node, cluster).await,
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn with(seeds: Vec<ConnectionInfo>, node: Arc<Node>, cluster: bool) -> Result<Self> {
        if seeds.len() > 1 && !cluster {
            anyhow::bail!(
                "{} is no node of a Redis Cluster (of a single server, give one `url`)",
                node.shown
            );
        }
        let redis = Self(Arc::new(Inner {
            seeds,
            cluster,
            slots: Mutex::new(None),
            nodes: StdMutex::new(vec![node]),
        }));
        if cluster {
            redis.slots().await?;
        }
        Ok(redis)
    }

    /// Whether it is a Cluster: then the keys of one command must be of one slot.
    pub fn is_cluster(&self) -> bool {
        self.0.cluster
    }

    /// The node that has `key`.
    pub async fn node(&self, key: &str) -> Result<Arc<Node>> {
        if !self.0.cluster {
            // One is put there at the start, and none is ever removed.
            return lock(&self.0.nodes).first().cloned().context("no server is known");
        }
        let slots = self.slots().await?;
        let (host, port) = slots.of(key).with_context(|| {
            let slot = slots::slot(key.as_bytes());
            format!("no node of the Redis Cluster has slot {slot} of key {key} (assign it to one)")
        })?;
        let seed = self.0.seeds.first().context("no URL of a Redis server is given")?;
        let addr = match seed.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        let mut nodes = lock(&self.0.nodes);
        if let Some(node) = nodes.iter().find(|node| *node.info.addr() == addr) {
            return Ok(node.clone());
        }
        let node = Arc::new(Node::new(seed.clone().set_addr(addr)));
        nodes.push(node.clone());
        Ok(node)
    }

    /// The answer of the node that has `key`, over the connection that all share: for commands
    /// that answer at once. Errs with a message for the user; [`code`] tells the server's code.
    pub async fn ask(&self, key: &str, cmd: &Cmd) -> Result<Value> {
        let answer = match self.node(key).await {
            Ok(node) => node.ask(cmd).await,
            Err(error) => Err(error),
        };
        if answer.as_ref().is_err_and(explain::is_elsewhere) {
            *self.0.slots.lock().await = None;
        }
        answer
    }

    /// [`Redis::ask`] for a script: `keys` of one slot (on a single server: any), and arguments
    /// that `args` adds.
    pub async fn run(
        &self,
        script: &Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd) + Send,
    ) -> Result<Value> {
        let mut cmd = script.call(keys);
        args(&mut cmd);
        self.run_cmd(script, keys.first().copied().unwrap_or_default(), &cmd).await
    }

    /// [`Redis::run`] for a call that was put together before, with [`Script::call`].
    pub async fn run_cmd(&self, script: &Script, key: &str, cmd: &Cmd) -> Result<Value> {
        match self.ask(key, cmd).await {
            // A server that was restarted has forgotten it.
            Err(error) if code(&error) == Some("NOSCRIPT") => {
                self.ask(key, &script.load()).await?;
                self.ask(key, cmd).await
            }
            answer => answer,
        }
    }

    /// Tells of an error on a connection of the caller's own: where the key may be elsewhere by
    /// now, it will be looked for.
    pub async fn failed(&self, error: &anyhow::Error) {
        if explain::is_elsewhere(error) {
            *self.0.slots.lock().await = None;
        }
    }

    /// Which node has which slots. Asked of any node that answers.
    async fn slots(&self) -> Result<Slots> {
        let mut known = self.0.slots.lock().await;
        if let Some(slots) = &*known {
            return Ok(slots.clone());
        }
        let mut nodes: Vec<Arc<Node>> = lock(&self.0.nodes).clone();
        nodes.extend(self.0.seeds.iter().map(|seed| Arc::new(Node::new(seed.clone()))));
        let mut failed = anyhow!("no node of the Redis Cluster is known");
        for node in nodes {
            let mut cmd = redis::cmd("CLUSTER");
            match node.ask(cmd.arg("SLOTS")).await {
                Ok(answer) => {
                    let slots = Slots::read(&answer, node.host());
                    *known = Some(slots.clone());
                    return Ok(slots);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

fn parse(url: &str) -> Result<ConnectionInfo> {
    // The error may quote the URL.
    let info = url.into_connection_info().map_err(|_| {
        anyhow!(
            "{} is no URL of a Redis server (redis://USER:PASSWORD@HOST:PORT/DB, with what is \
             special in a password as %XX)",
            crate::spec::text::redact(url)
        )
    })?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
    Ok(info.set_redis_settings(settings))
}

impl Node {
    fn new(info: ConnectionInfo) -> Self {
        let shown = shown(&info);
        Self { info, shown, shared: Mutex::default() }
    }

    fn host(&self) -> &str {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
            _ => "",
        }
    }

    /// A connection of the caller's own, for commands that block for up to `blocks`.
    pub async fn connect(&self, blocks: Duration) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER + blocks));
        // On the heap: what it takes to connect is large.
        let connected: BoxFuture<'_, _> = Box::pin(async {
            let client = Client::open(self.info.clone())?;
            client.get_multiplexed_async_connection_with_config(&config).await
        });
        connected.await.map_err(|error| self.explain(error))
    }

    /// The answer to a command on the connection that all share.
    pub async fn ask(&self, cmd: &Cmd) -> Result<Value> {
        let mut shared = self.shared.lock().await;
        let mut connection = match &*shared {
            Some(connection) => connection.clone(),
            None => shared.insert(self.connect(Duration::ZERO).await?).clone(),
        };
        drop(shared);
        match cmd.query_async(&mut connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if error.is_unrecoverable_error() || error.is_timeout() {
                    *self.shared.lock().await = None;
                }
                Err(self.explain(error))
            }
        }
    }

    /// Says of an error what it means, where, and what to do.
    pub fn explain(&self, error: RedisError) -> anyhow::Error {
        explain::explain(error, &self.shown)
    }

    /// Looks at who answers: errs where it is too old, otherwise tells whether it is a Cluster's.
    async fn look(&self) -> Result<bool> {
        let info = match self.ask(redis::cmd("INFO").arg("server")).await {
            Ok(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
            Ok(_) => String::new(),
            // Not everybody may ask that; then what does not work will tell.
            Err(error) if code(&error) == Some("NOPERM") => String::new(),
            Err(error) => return Err(error),
        };
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
        if let Some(version) = field("redis_version:") {
            let mut parts = version.split('.').map(|part| part.trim().parse().unwrap_or(0));
            let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
            anyhow::ensure!(
                found >= VERSION_MIN,
                "{} is Redis {} (version {}.{} or newer is needed)",
                self.shown,
                version.trim(),
                VERSION_MIN.0,
                VERSION_MIN.1
            );
        }
        Ok(field("redis_mode:").is_some_and(|mode| mode.trim() == "cluster"))
    }
}

/// An error of our own making, where a server answers what no server should.
pub fn odd(what: &str) -> anyhow::Error {
    anyhow!("redis answers {what} in a form that is not known (is it Redis 6.2 or newer?)")
}
