//! Certificates for servers of tests.

use std::path::{Path, PathBuf};

use lb_userspace::config::{TlsCheck, Trust};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::server::file;

/// An authority, and a server's certificate that it signed, for 127.0.0.1.
pub struct Certificates {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub fn make(folder: &Path) -> Certificates {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = file(folder, "server.key", &key.serialize_pem());
    // PostgreSQL refuses a key that others may read.
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    Certificates {
        ca: file(folder, "ca.pem", &ca.pem()),
        certificate: file(folder, "server.pem", &certificate.pem()),
        key,
    }
}

impl Certificates {
    pub fn trusted(&self) -> TlsCheck {
        TlsCheck { trust: Trust::CaFile(self.ca.clone()), ..TlsCheck::default() }
    }
}
