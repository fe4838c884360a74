//! Servers of a test's own: on free ports, in temporary folders, gone with the test (also when
//! the test is killed), and made to be killed, emptied and set back by it.

#![allow(dead_code)] // Every test file uses another part of it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(180);

/// A port that nobody listens on, and that the kernel gives to no connection: a server that was
/// killed has to get it again.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A process that ends when this one does, however that ends: a shell holds it, and the pipe that
/// the shell reads from closes with us.
struct Held {
    shell: Child,
    pid: u32,
}

impl Held {
    /// It works in its own folder, where the log is too: nothing it writes is left beside the
    /// sources. The folder goes as well, if this process ends without a word.
    fn start(command: &[String], log: &Path) -> Self {
        let script = r#"log=$1; shift; cd "$(dirname "$log")"
            setsid "$@" >>"$log" 2>&1 & echo $!
            if read -r _; then exit; fi
            kill -9 -$! 2>/dev/null; sleep 0.5; rm -rf "$(dirname "$log")""#;
        let mut shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(log)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { shell, pid: line.trim().parse().unwrap() }
    }

    /// `kill -9` to it and its children, and waits until they are gone.
    fn kill(&mut self) {
        let mut pids = children_of(self.pid);
        pids.insert(0, self.pid);
        for pid in &pids {
            signal(*pid, "KILL");
        }
        if let Some(mut shell) = self.shell.stdin.take() {
            let _ = shell.write_all(b"killed\n");
        }
        let _ = self.shell.wait();
        let start = Instant::now();
        while pids.iter().any(|pid| is_running(*pid)) {
            assert!(start.elapsed() < START, "{pids:?} would not die");
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal, by its name without `SIG`.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// The state and the parent of a process, where there is one.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process still holds its files and ports: as long as one of its threads lives, also
/// where its first is gone.
fn is_running(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1 || stat(pid).is_some_and(|(state, _)| state != 'Z')
}

fn children_of(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

fn wait_for(what: &str, log: &Path, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > START {
            let said = fs::read_to_string(log).unwrap_or_default();
            panic!("{what} did not start; it said:\n{said}");
        }
        sleep(Duration::from_millis(10));
    }
}

/// Empties a folder.
fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
}

/// `cp -a`: the content of `from` becomes that of `to`.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let source = from.join(".");
    let copied = Command::new("cp").arg("-a").arg(source).arg(to).status().unwrap();
    assert!(copied.success());
}

/// A `redis-server` with append-only file (`appendfsync everysec`).
pub struct Redis {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    folder: TempDir,
    options: Vec<String>,
    process: Option<Held>,
}

impl Redis {
    /// A running one.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A running one with more options (`["--requirepass", "secret"]`).
    pub fn start_with(options: &[&str]) -> Self {
        let mut server = Self {
            port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            options: options.iter().map(ToString::to_string).collect(),
            process: None,
        };
        fs::create_dir(server.data()).unwrap();
        server.up();
        server
    }

    /// `redis://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Starts it again. Returns when it has loaded its data.
    pub fn up(&mut self) {
        if self.process.is_some() {
            return;
        }
        let mut command: Vec<String> =
            ["redis-server", "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
                .map(String::from)
                .into();
        command.extend(["--port".into(), self.port.to_string()]);
        command.extend(["--dir".into(), self.data().display().to_string()]);
        command.extend(self.options.iter().cloned());
        let before = fs::read_to_string(self.log()).unwrap_or_default().len();
        self.process = Some(Held::start(&command, &self.log()));
        wait_for("redis-server", &self.log(), || {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            log[before..].contains("Ready to accept connections")
        });
    }

    /// `kill -9`. What it answered is in its append-only file.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().pid
    }

    /// Kills it and removes all it had.
    pub fn wipe(&mut self) {
        self.kill();
        empty(&self.data());
    }

    /// A copy of its data as they are now, for [`Redis::restore`].
    pub fn backup(&self) -> TempDir {
        let to = tempfile::tempdir().unwrap();
        copy(&self.data(), to.path());
        to
    }

    /// Kills it and puts an older copy of its data back.
    pub fn restore(&mut self, backup: &TempDir) {
        self.wipe();
        copy(backup.path(), &self.data());
    }
}

/// Three `redis-server`s as one Redis Cluster.
pub struct RedisCluster {
    /// Its nodes.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// A running one, with all slots served.
    pub fn start() -> Self {
        let nodes: Vec<Redis> = (0..3)
            .map(|_| {
                let bus = free_port().to_string();
                Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
            })
            .collect();
        let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", "0", "--cluster-yes"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        for node in &nodes {
            wait_for("the cluster", &node.log(), || {
                let port = node.port.to_string();
                let told =
                    Command::new("redis-cli").args(["-p", &port, "cluster", "info"]).output();
                String::from_utf8_lossy(&told.unwrap().stdout).contains("cluster_state:ok")
            });
        }
        Self { nodes }
    }

    /// A URL for each node.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }
}

/// A PostgreSQL cluster with the superuser `postgres`, whom it trusts.
pub struct Postgres {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    folder: TempDir,
    process: Option<Held>,
}

impl Postgres {
    /// A running one.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut server = Self { port: free_port(), folder, process: None };
        fs::create_dir(server.data()).unwrap();
        let log = server.log();
        fs::write(&log, "").unwrap();
        for path in [&server.data(), &log] {
            give_to_postgres(path);
        }
        let initdb = as_postgres(&[
            binary("initdb"),
            "--no-sync".into(),
            "--auth=trust".into(),
            "--username=postgres".into(),
            "--encoding=UTF8".into(),
            "--locale=C.UTF-8".into(),
            server.data().display().to_string(),
        ]);
        let made = Command::new(&initdb[0])
            .args(&initdb[1..])
            .current_dir(server.folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.up();
        server
    }

    /// One that all tests of this process share, running until the process ends.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A new, empty database in it: its URL.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// `postgres://postgres@127.0.0.1:PORT/NAME`
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What `psql` answers, unaligned, without headings.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let out = Command::new(binary("psql"))
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-c", sql])
            .output()
            .unwrap();
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Starts it again. Returns when it has recovered and takes connections.
    pub fn up(&mut self) {
        if self.process.is_some() {
            return;
        }
        // A postmaster that was killed left it behind.
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        let mut command = as_postgres(&[binary("postgres")]);
        command.extend(["-D".into(), self.data().display().to_string()]);
        command.extend(["-p".into(), self.port.to_string()]);
        // A killed server loses nothing that it gave to the operating system.
        for option in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"] {
            command.extend(["-c".into(), option.into()]);
        }
        self.process = Some(Held::start(&command, &self.log()));
        wait_for("postgres", &self.log(), || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && Command::new(binary("psql"))
                    .args(["-XqAt", "-d", &self.url("postgres"), "-c", "SELECT 1"])
                    .stderr(Stdio::null())
                    .output()
                    .is_ok_and(|out| out.status.success())
        });
    }

    /// `kill -9` of the postmaster and all its backends. What was committed is kept.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The postmaster's process id, while it runs.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().pid
    }
}

/// The path of one of PostgreSQL's programs, which Debian does not put on the `PATH`.
pub fn binary(name: &str) -> String {
    let found = glob::glob(&format!("/usr/lib/postgresql/*/bin/{name}")).unwrap();
    found.flatten().last().map_or(name.to_owned(), |path| path.display().to_string())
}

/// PostgreSQL refuses to run as root.
fn as_postgres(command: &[String]) -> Vec<String> {
    let mut whole = Vec::new();
    if is_root() {
        let user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];
        whole.extend(user.map(String::from));
    }
    whole.extend_from_slice(command);
    whole
}

fn give_to_postgres(path: &Path) {
    if is_root() {
        let (user, group) = (id_of("-u"), id_of("-g"));
        chown(path, Some(user), Some(group)).unwrap();
    }
}

fn id_of(which: &str) -> u32 {
    let out = Command::new("id").args([which, "postgres"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A `rabbitmq-server` with the user `guest`, several of which run beside each other.
pub struct Rabbit {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    /// Where its Erlang node listens: in place of a daemon that tells it.
    node_port: u16,
    folder: TempDir,
    process: Option<Held>,
    next: AtomicU32,
}

impl Rabbit {
    /// Virtual hosts that one has, for as many tests.
    const VHOSTS: u32 = 48;

    /// A running one.
    pub fn start() -> Self {
        Self::start_with(2)
    }

    /// One that all tests of this process share, running until the process ends.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Rabbit> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_with(Self::VHOSTS))
    }

    fn start_with(vhosts: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self {
            port: free_port(),
            node_port: free_port(),
            folder,
            process: None,
            next: AtomicU32::new(0),
        };
        for name in ["data", "home", "log.d"] {
            fs::create_dir(server.path(name)).unwrap();
        }
        let names: Vec<String> = (0..vhosts).map(|number| format!("v{number}")).collect();
        let join =
            |each: &dyn Fn(&String) -> String| names.iter().map(each).collect::<Vec<_>>().join(",");
        let definitions = format!(
            r#"{{"users":[{{"name":"guest","password":"guest","tags":"administrator"}}],
                "vhosts":[{}],"permissions":[{}]}}"#,
            join(&|name| format!(r#"{{"name":"{name}"}}"#)),
            join(&|name| format!(
                r#"{{"user":"guest","vhost":"{name}","configure":".*","write":".*","read":".*"}}"#
            )),
        );
        fs::write(server.path("definitions.json"), definitions).unwrap();
        let config = format!(
            "listeners.tcp.local = 127.0.0.1:{}\nload_definitions = {}\n\
             disk_free_limit.absolute = 1MB\n",
            server.port,
            server.path("definitions.json").display()
        );
        fs::write(server.path("rabbitmq.conf"), config).unwrap();
        fs::write(server.path("enabled_plugins"), "[].").unwrap();
        let cookie = server.path("home").join(".erlang.cookie");
        fs::write(&cookie, "a test's own").unwrap();
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).unwrap();
        server.up();
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A virtual host that no other test uses: its URL.
    pub fn vhost(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(number < Self::VHOSTS, "more tests than virtual hosts");
        self.url(&format!("v{number}"))
    }

    /// `amqp://guest:guest@127.0.0.1:PORT/VHOST`
    pub fn url(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.port)
    }

    /// Starts it again, without waiting.
    fn spawn(&mut self) {
        let file = |name: &str| self.path(name).display().to_string();
        let node = format!(
            "-start_epmd false -erl_epmd_port {} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            self.node_port
        );
        let settings = [
            ("HOME", file("home")),
            ("RABBITMQ_NODENAME", format!("aqueduct{}@localhost", self.port)),
            ("RABBITMQ_DIST_PORT", self.node_port.to_string()),
            ("RABBITMQ_MNESIA_BASE", file("data")),
            ("RABBITMQ_LOG_BASE", file("log.d")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", node),
        ];
        let mut command = vec!["env".to_owned()];
        command.extend(settings.map(|(name, value)| format!("{name}={value}")));
        command.push("/usr/lib/rabbitmq/bin/rabbitmq-server".to_owned());
        self.process = Some(Held::start(&command, &self.path("log")));
    }

    /// Starts it again. Returns when it takes connections.
    pub fn up(&mut self) {
        if self.process.is_some() {
            return;
        }
        let log = self.path("log");
        let before = fs::read(&log).unwrap_or_default().len();
        self.spawn();
        wait_for("rabbitmq-server", &log, || {
            let text = fs::read(&log).unwrap_or_default();
            String::from_utf8_lossy(&text[before..]).contains("Server startup complete")
        });
    }

    /// `kill -9`. What it confirmed is on its disk.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The process id of its Erlang machine, while it runs.
    pub fn pid(&self) -> u32 {
        let shell = self.process.as_ref().unwrap().pid;
        children_of(shell).into_iter().next().unwrap_or(shell)
    }

    /// Kills it and removes all it had.
    pub fn wipe(&mut self) {
        self.kill();
        empty(&self.path("data"));
    }

    /// What `rabbitmqctl` answers.
    pub fn ctl(&self, args: &[&str]) -> String {
        let node = format!("-dist_listen false -erl_epmd_port {}", self.node_port);
        let out = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .args(["--node", &format!("aqueduct{}@localhost", self.port), "--quiet"])
            .args(args)
            .current_dir(self.folder.path())
            .env("HOME", self.path("home"))
            .env("RABBITMQ_CTL_ERL_ARGS", node)
            .output()
            .unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }
}
