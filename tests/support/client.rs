//! A client that posts over connections it keeps, and what it was promised.

#![allow(dead_code)] // each test uses a part of it

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long an answer may take: longer than the server waits for its stream.
const ANSWER: Duration = Duration::from_secs(40);

/// One kept connection.
#[derive(Default)]
pub struct Connection(Option<BufReader<TcpStream>>);

/// What a server answered.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Connection {
    /// Posts, over the connection there is or a new one. After an error the next post connects
    /// anew, perhaps to another server.
    pub fn post(
        &mut self,
        port: u16,
        key: Option<&str>,
        kind: &str,
        body: &str,
    ) -> Result<Answered> {
        let mut stream = match self.0.take() {
            Some(stream) => stream,
            None => {
                let to = SocketAddr::from(([127, 0, 0, 1], port));
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let key = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
        let request = format!(
            "POST /log HTTP/1.1\r\nHost: localhost\r\n{key}Content-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let answered = read(&mut stream)?;
        if !answered.head.contains("connection: close") {
            self.0 = Some(stream);
        }
        Ok(answered)
    }
}

fn read(stream: &mut BufReader<TcpStream>) -> Result<Answered> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if stream.read_line(&mut head)? == 0 {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        if head[before..].trim_end().is_empty() {
            break;
        }
    }
    head.make_ascii_lowercase();
    let number = |text: Option<&str>| text.and_then(|it| it.trim().parse().ok());
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; number(length).unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let status = number(head.split(' ').nth(1)).unwrap_or(0) as u16;
    Ok(Answered { status, body: String::from_utf8_lossy(&body).into_owned(), head })
}

/// What became of the events that were posted.
#[derive(Default)]
pub struct Promised {
    /// Answered 202.
    pub accepted: Vec<String>,
    /// Posted once, without a key, and never answered 202: they may be there, once.
    pub open: Vec<String>,
    /// Requests that were posted again.
    pub again: u64,
}

/// Clients that post until they are told to stop.
pub struct Load {
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    promised: Arc<Mutex<Promised>>,
    /// Requests that were answered 202.
    pub accepted: Arc<AtomicU64>,
}

impl Load {
    /// `clients` of them, each with a connection of its own to one of the servers at `ports`, and
    /// to another one after it failed.
    pub fn start(clients: u64, ports: &[u16]) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let promised: Arc<Mutex<Promised>> = Arc::default();
        let accepted: Arc<AtomicU64> = Arc::default();
        let threads = (0..clients).map(|number| {
            let client = Client {
                name: number,
                ports: ports.to_vec(),
                random: fastrand::Rng::with_seed(fastrand::u64(..)),
                connection: Connection::default(),
                stop: stop.clone(),
                promised: promised.clone(),
                accepted: accepted.clone(),
            };
            std::thread::spawn(move || client.run())
        });
        Self { threads: threads.collect(), stop, promised, accepted }
    }

    /// Stops when every request that is repeated was answered 202.
    pub fn stop(self) -> Promised {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.promised.lock().unwrap())
    }
}

struct Client {
    name: u64,
    ports: Vec<u16>,
    random: fastrand::Rng,
    connection: Connection,
    stop: Arc<AtomicBool>,
    promised: Arc<Mutex<Promised>>,
    accepted: Arc<AtomicU64>,
}

impl Client {
    fn run(mut self) {
        let mut request = 0;
        while !self.stop.load(Ordering::Relaxed) {
            self.request(request);
            request += 1;
            std::thread::sleep(Duration::from_micros(self.random.u64(0..8000)));
        }
    }

    /// Posts one to three events. Most requests have a key and are repeated until they are
    /// answered 202, some of them even then; the others have none and are posted once.
    fn request(&mut self, request: u64) {
        let events = if self.random.u8(..) < 200 { 1 } else { self.random.u64(2..=3) };
        let ids: Vec<String> =
            (0..events).map(|event| format!("{}-{request}-{event}", self.name)).collect();
        let bodies = ids.iter().map(|id| {
            format!("{{\"id\":\"{id}\",\"text\":\"{}\"}}", "x".repeat(self.random.usize(0..200)))
        });
        let body = bodies.collect::<Vec<_>>().join("\n");
        let kind = if events == 1 { "application/json" } else { "application/x-ndjson" };
        let key = (self.random.u8(..) < 200).then(|| format!("{}/{request}", self.name));
        let mut posts = 0;
        let accepted = loop {
            posts += 1;
            let port = self.ports[self.random.usize(..self.ports.len())];
            let answered = self.connection.post(port, key.as_deref(), kind, &body);
            match answered {
                Ok(Answered { status: 202, body, .. }) => {
                    assert_eq!(body.matches('-').count() as u64, 4 * events, "ids: {body}");
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                    break true;
                }
                Ok(Answered { status: 503, head, .. }) => {
                    assert!(head.contains("retry-after:"), "{head}");
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
            if key.is_none() {
                break false;
            }
            std::thread::sleep(Duration::from_millis(self.random.u64(5..100)));
        };
        // The answer may have been lost on its way to somebody who is less lucky.
        if accepted && key.is_some() && self.random.u8(..) < 10 {
            posts += 1;
            let port = self.ports[self.random.usize(..self.ports.len())];
            let _ = self.connection.post(port, key.as_deref(), kind, &body);
        }
        let mut promised = self.promised.lock().unwrap();
        promised.again += posts - 1;
        if accepted { promised.accepted.extend(ids) } else { promised.open.extend(ids) }
    }
}

/// Holds the table against what was promised: every accepted event is there once, and of the
/// others none twice.
pub fn check_rows(promised: &Promised, rows: impl Iterator<Item = String>) {
    let mut stored: HashMap<String, u64> = HashMap::new();
    for id in rows {
        *stored.entry(id).or_default() += 1;
    }
    let doubled: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).collect();
    let lost: Vec<_> = promised.accepted.iter().filter(|id| !stored.contains_key(*id)).collect();
    assert!(
        doubled.is_empty() && lost.is_empty(),
        "{} doubled, as {:?}; {} lost, as {:?}",
        doubled.len(),
        &doubled[..doubled.len().min(5)],
        lost.len(),
        &lost[..lost.len().min(5)]
    );
    let open = promised.open.iter().filter(|id| stored.contains_key(*id)).count();
    assert_eq!(stored.len(), promised.accepted.len() + open, "the table holds what nobody posted");
}
