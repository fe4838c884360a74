//! Runs the real program in a directory of its own.

#![allow(dead_code)] // each test uses a part of it

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A temporary directory with a topology in it. `{port}` in the text becomes a free port.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub port: u16,
}

impl Place {
    pub fn new(topology: &str) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), port: free_port() };
        place.write_topology(topology);
        place
    }

    pub fn write_topology(&self, topology: &str) {
        let text = topology.replace("{port}", &self.port.to_string());
        std::fs::write(self.path("topology.toml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command of the program, in this directory, with no variables of the caller's that
    /// change a topology.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aqueduct"));
        command.args(args).current_dir(self.dir.path());
        command.env_remove("RUST_LOG").env_remove("LOG_LEVEL");
        command
    }

    /// Runs a command to its end.
    pub fn done(&self, args: &[&str]) -> Done {
        let output = self.command(args).stdin(Stdio::null()).output().unwrap();
        Done {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `run topology.toml --until-idle`, which has to end well.
    pub fn run_until_idle(&self) -> Done {
        let done = self.done(&["run", "topology.toml", "--until-idle"]);
        assert!(done.status.success(), "{}", done.stderr);
        done
    }

    /// Starts `run topology.toml`.
    pub fn start(&self) -> Running {
        self.start_with(&[], &[])
    }

    pub fn start_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Running {
        let args = [&["run", "topology.toml"], args].concat();
        self.start_command(&args, variables, self.port)
    }

    /// Starts `run topology.toml` as one more process, which listens on `port`.
    pub fn start_beside(&self, port: u16, variables: &[(&str, &str)]) -> Running {
        let listen = format!("127.0.0.1:{port}");
        let variables = [&[("AQUEDUCT__HTTP__LISTEN", listen.as_str())], variables].concat();
        self.start_command(&["run", "topology.toml"], &variables, port)
    }

    /// Starts a command of the program, which listens on `port`.
    pub fn start_command(&self, args: &[&str], variables: &[(&str, &str)], port: u16) -> Running {
        let mut command = self.command(args);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = kept(child.stderr.take().unwrap());
        let output = kept(child.stdout.take().unwrap());
        Running { child, log, output, port }
    }

    /// One figure of a SQLite database in this directory.
    pub fn count(&self, database: &str, query: &str) -> i64 {
        self.rows::<(i64,)>(database, query).first().map_or(0, |row| row.0)
    }

    /// Rows of a SQLite database in this directory; none where the table is not there yet.
    pub fn rows<R>(&self, database: &str, query: &str) -> Vec<R>
    where
        R: for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow> + Send + Unpin,
    {
        use sqlx::Connection;
        if !self.path(database).exists() {
            return Vec::new();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = sqlx::sqlite::SqliteConnectOptions::new()
                .filename(self.path(database))
                .busy_timeout(Duration::from_secs(10));
            let mut connection =
                sqlx::sqlite::SqliteConnection::connect_with(&options).await.unwrap();
            let rows = sqlx::query_as(sqlx::AssertSqlSafe(query.to_owned()))
                .fetch_all(&mut connection)
                .await;
            connection.close().await.unwrap();
            match rows {
                Ok(rows) => rows,
                Err(error) if error.to_string().contains("no such table") => Vec::new(),
                Err(error) => panic!("{query}: {error}"),
            }
        })
    }
}

/// What comes out of a pipe, as it comes.
fn kept(pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let kept = text.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut kept = kept.lock().unwrap();
            kept.push_str(&line);
            kept.push('\n');
        }
    });
    text
}

/// A command that has ended.
pub struct Done {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A program that runs. It is killed when this is dropped.
pub struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
    output: Arc<Mutex<String>>,
    port: u16,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.end()
    }

    /// The same, for who wants to see its log afterwards.
    pub fn end(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What it printed on standard output so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// `GET path`, as (status, body).
    pub fn get(&self, path: &str) -> (u16, String) {
        try_get(self.port, path).unwrap_or((0, String::new()))
    }

    /// The sum of a metric over all its labels; 0 where it is not there yet.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(labels))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// The most memory the process had at once, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what the program said ---\n{}", self.log());
        }
    }
}

pub fn try_get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let answer = Request::get(path).send(port)?;
    Ok((answer.status, answer.body))
}

/// An HTTP request.
#[derive(Clone)]
pub struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    pub fn new(method: &str, path: &str) -> Self {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        Self { head, body: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    pub fn body(mut self, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        let length = self.body.len().to_string();
        self.header("Content-Type", content_type).header("Content-Length", &length)
    }

    /// `application/json`
    pub fn json(self, body: &str) -> Self {
        self.body("application/json", body)
    }

    pub fn send(&self, port: u16) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(40)))?;
        stream.write_all(format!("{}\r\n", self.head).as_bytes())?;
        // Who refuses a body early may have closed the connection by now.
        let _ = stream.write_all(&self.body);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        if answer.is_empty() {
            read?;
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            true => unchunk(body),
            false => body.to_owned(),
        };
        Ok(Answer { status, head: head.to_owned(), body })
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        text.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `holds`, and fails with `what` when it takes too long.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `figure` is `wanted`, and fails with `what` when it stands still for a minute.
pub fn reaches(what: &str, wanted: f64, mut figure: impl FnMut() -> f64) {
    let (mut last, mut moved) = (f64::NAN, Instant::now());
    loop {
        let now = figure();
        if now >= wanted {
            return;
        }
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed().as_secs() < 60, "{what}: stands still at {now} of {wanted}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The whole number in a variable, or `otherwise`: how a script makes a short test long.
pub fn scale(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A seed from AQUEDUCT_SEED, or a new one; printed either way.
pub fn seed() -> u64 {
    let seed = scale("AQUEDUCT_SEED", fastrand::u64(..) >> 16);
    println!("AQUEDUCT_SEED={seed}");
    fastrand::seed(seed);
    seed
}

/// The lines of a file, without their newlines.
pub fn lines(path: &Path) -> Vec<Vec<u8>> {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.pop_if(|last| *last == b'\n');
    bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}
