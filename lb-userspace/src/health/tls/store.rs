//! TLS settings by what they trust, made once and made anew when a file of authorities changes.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, pem::PemObject},
};

use super::verify::Known;
use crate::config::Trust;

/// Largest file of authorities.
const FILE_MAX: u64 = 4 << 20;

#[derive(Debug, Default)]
pub struct Store {
    made: HashMap<Trust, (Option<Stamp>, Arc<ClientConfig>)>,
}

/// A file as it was when it was read.
type Stamp = (Option<SystemTime>, u64);

impl Store {
    /// # Errors
    /// The authorities cannot be read; the error names the file.
    pub fn config(&mut self, trust: &Trust) -> io::Result<Arc<ClientConfig>> {
        let stamp = match trust {
            Trust::CaFile(path) => Some(stamp(path)?),
            _ => None,
        };
        if let Some((at, config)) = self.made.get(trust)
            && *at == stamp
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(make(trust)?);
        self.made.insert(trust.clone(), (stamp, Arc::clone(&config)));
        Ok(config)
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let about = fs::metadata(path).map_err(|error| named(path, &error))?;
    if about.len() > FILE_MAX {
        return Err(io::Error::other(format!("`ca-file` {} is larger than 4 MiB", path.display())));
    }
    Ok((about.modified().ok(), about.len()))
}

fn make(trust: &Trust) -> io::Result<ClientConfig> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let mut config = match trust {
        Trust::System => builder.with_root_certificates(system_roots()?).with_no_client_auth(),
        Trust::CaFile(path) => builder.with_root_certificates(file_roots(path)?).with_no_client_auth(),
        Trust::Fingerprint(print) => unverified(builder, Some(*print), provider),
        Trust::Anyone => unverified(builder, None, provider),
    };
    // A resumed session would show the certificate of an earlier one.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn unverified(
    builder: tokio_rustls::rustls::ConfigBuilder<ClientConfig, tokio_rustls::rustls::WantsVerifier>,
    fingerprint: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
) -> ClientConfig {
    let verifier = Arc::new(Known { fingerprint, provider });
    builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

fn system_roots() -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = "this host trusts no authority: install ca-certificates, or write a `ca-file` or `fingerprint`";
        return Err(io::Error::other(why));
    }
    Ok(roots)
}

fn file_roots(path: &PathBuf) -> io::Result<RootCertStore> {
    let pem = fs::read(path).map_err(|error| named(path, &error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let bad = |error: String| io::Error::other(format!("`ca-file` {}: {error}", path.display()));
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(io::Error::other(format!("`ca-file` {} has no certificate in it", path.display())));
    }
    Ok(roots)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`ca-file` {}: {error}", path.display()))
}
