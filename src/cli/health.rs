//! Whether a process of this machine that runs the file works, as its `/healthz` has it: what a
//! container's health check asks, where there is no other client of HTTP.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::topology::Topology;

/// How long the answer may take.
const WAIT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Errs with what does not work, or where nobody answers.
pub fn ask(topology: &Topology) -> Result<()> {
    let Some(http) = &topology.http else {
        bail!("without [http] nobody can be asked (add it: listen = \"127.0.0.1:8080\")");
    };
    if http.tls.is_some() {
        bail!("/healthz is behind TLS here (ask it with a client that knows the certificate)");
    }
    let listen = http.admin.as_ref().unwrap_or(&http.listen);
    let answer = get(listen).with_context(|| format!("no answer from {listen}/healthz"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => bail!("{listen} does not work: {}", body.trim()),
    }
}

fn get(listen: &str) -> Result<String> {
    let mut address = listen.to_socket_addrs()?.next().context("it is no address")?;
    reachable(&mut address);
    let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    // Of version 1.0, so that the answer is neither chunked nor followed by another.
    write!(stream, "GET /healthz HTTP/1.0\r\nHost: {listen}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Who listens everywhere is reached here.
fn reachable(address: &mut SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
}
