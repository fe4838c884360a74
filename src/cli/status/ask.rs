//! Asks the process that runs the file.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    SignatureScheme, StreamOwned,
};

use crate::topology::{Http, Tls};

/// How long each step may take.
const WAIT: Duration = Duration::from_secs(2);
/// Bytes of an answer, at most.
const ANSWER_MAX: u64 = 64 * 1024 * 1024;

/// What came of it.
pub(super) enum Asked {
    /// This.
    Answered(String),
    /// Nothing: why.
    Away(String),
}

/// `GET path` of what shows the inside of the process.
pub(super) fn get(http: &Http, path: &str) -> Asked {
    let address = http.admin.as_ref().unwrap_or(&http.listen);
    match answer(http, address, path) {
        Ok(text) => Asked::Answered(text),
        Err(error) => Asked::Away(format!("no process answers at {address}: {error:#}")),
    }
}

fn answer(http: &Http, address: &str, path: &str) -> Result<String> {
    let reached = near(address);
    let places = reached.to_socket_addrs().context("not an address")?;
    let mut stream = None;
    for place in places {
        if let Ok(connected) = TcpStream::connect_timeout(&place, WAIT) {
            stream = Some(connected);
            break;
        }
    }
    let stream = stream.context("nothing listens")?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    // The older version of the protocol: the answer ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {reached}\r\n\r\n");
    match &http.tls {
        Some(tls) => {
            let name = ServerName::try_from("localhost")?;
            let connection = ClientConnection::new(Arc::new(pinned(tls)?), name)?;
            talk(StreamOwned::new(connection, stream), &request)
        }
        None => talk(stream, &request),
    }
}

fn talk(mut stream: impl Read + Write, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    if let Err(error) = stream.take(ANSWER_MAX).read_to_end(&mut answer)
        && answer.is_empty()
    {
        return Err(error.into()); // else it ended without a TLS goodbye, and is looked at
    }
    let answer = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some(status) => bail!("it answers {status}"),
        None => bail!("the answer is no HTTP"),
    }
}

/// An address to listen on, as one to connect to.
fn near(listen: &str) -> String {
    let Some((host, port)) = listen.rsplit_once(':') else { return listen.to_owned() };
    match host {
        "" | "0.0.0.0" => format!("127.0.0.1:{port}"),
        "[::]" => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

/// TLS with the one certificate that the file names, whoever signed it and whatever name is in it.
fn pinned(tls: &Tls) -> Result<ClientConfig> {
    let cert = || format!("cannot read [http] tls.cert {}", tls.cert.display());
    let own = CertificateDer::from_pem_file(&tls.cert).with_context(cert)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned { own, provider: provider.clone() });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug)]
struct Pinned {
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match *shown == self.own {
            true => Ok(ServerCertVerified::assertion()),
            false => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_asked_nearby() {
        assert_eq!(near("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(near("[::]:80"), "[::1]:80");
        assert_eq!(near("10.0.0.1:80"), "10.0.0.1:80");
        assert_eq!(near("box:80"), "box:80");
    }
}
