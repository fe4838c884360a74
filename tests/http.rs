//! What is served, where, and over TLS.

#[path = "support/process.rs"]
mod process;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use process::{Place, Request, eventually, free_port};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const FLOW: &str = r#"
[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..3"

[stream.numbers]

[group.print]
from = "numbers"
to = "out"

[sink.out]
kind = "file"
path = "out.log"
"#;

#[test]
fn with_an_admin_address_the_inside_is_shown_there_alone() {
    let admin = free_port();
    let http = format!("[http]\nlisten = \"127.0.0.1:{{port}}\"\nadmin = \"127.0.0.1:{admin}\"\n");
    let place = Place::new(&(http + FLOW));
    let running = place.start();
    eventually("health", || running.get("/healthz").0 == 200);
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(running.get(path).0, 200, "{path}");
    }
    for path in ["/streams", "/metrics"] {
        assert_eq!(running.get(path).0, 404, "{path}");
        assert_eq!(process::try_get(admin, path).unwrap().0, 200, "{path}");
    }
}

#[test]
fn what_is_shown_is_got_and_nothing_else_done_with_it() {
    let place = Place::new(&("[http]\nlisten = \"127.0.0.1:{port}\"\n".to_owned() + FLOW));
    let running = place.start();
    eventually("health", || running.get("/healthz").0 == 200);
    for path in ["/livez", "/readyz", "/healthz", "/streams", "/metrics", "/openapi.json"] {
        let head = Request::new("HEAD", path).send(place.port).unwrap();
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        for method in ["POST", "DELETE", "TRACE"] {
            let answer = Request::new(method, path).send(place.port).unwrap();
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.head.contains("allow: GET, HEAD"), "{answer:?}");
        }
    }
}

#[test]
fn a_port_that_is_taken_is_said_and_ends_the_run() {
    let place = Place::new(&("[http]\nlisten = \"127.0.0.1:{port}\"\n".to_owned() + FLOW));
    let _taken = std::net::TcpListener::bind(("127.0.0.1", place.port)).unwrap();
    let done = place.done(&["run", "topology.toml"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.contains(&format!("127.0.0.1:{}", place.port)), "{}", done.stderr);
}

#[test]
fn with_a_certificate_it_is_https() {
    let pem = |name| format!("{}/tests/tls/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    let tls = format!("tls = {{ cert = {:?}, key = {:?} }}\n", pem("cert"), pem("key"));
    let place = Place::new(&(format!("[http]\nlisten = \"127.0.0.1:{{port}}\"\n{tls}") + FLOW));
    let _running = place.start();
    eventually("an answer over TLS", || {
        get_https(place.port, &pem("cert")).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
}

fn get_https(port: u16, cert: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(("127.0.0.1", port))?);
    write!(stream, "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
