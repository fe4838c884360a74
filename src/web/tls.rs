//! Certificates, which may be replaced while connections are open.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::ring::{default_provider, sign};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::topology::Tls;

/// The certificate that is shown now.
#[derive(Debug)]
pub struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Shown {
    /// Shows `certificate`.
    pub fn new(certificate: CertifiedKey) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(certificate))))
    }

    /// Shows another one to whoever comes from now on.
    pub fn replace(&self, certificate: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
    }

    /// A server's settings that show it.
    pub fn config(self: &Arc<Self>) -> Result<ServerConfig> {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        Ok(config.with_cert_resolver(self.clone()))
    }
}

/// Reads the two files. Errs with what is wrong with them.
pub fn certificate(tls: &Tls) -> Result<CertifiedKey> {
    let cert = || format!("cannot read [http] tls.cert {} (PEM is wanted)", tls.cert.display());
    let key = || format!("cannot read [http] tls.key {} (PEM is wanted)", tls.key.display());
    let certs: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&tls.cert).with_context(cert)?.collect();
    let private = PrivateKeyDer::from_pem_file(&tls.key).with_context(key)?;
    let private = sign::any_supported_type(&private).with_context(key)?;
    let certificate = CertifiedKey::new(certs.with_context(cert)?, private);
    match certificate.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certificate)
        }
        Err(error) => Err(error).context("[http] tls: the key does not belong to the certificate"),
    }
}
