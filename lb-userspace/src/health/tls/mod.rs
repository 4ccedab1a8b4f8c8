//! TLS handshakes of probes: who the server is, and until when.

mod store;
mod verify;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        CertificateError, ClientConfig, Error,
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};
use x509_parser::prelude::{FromDer, X509Certificate};

use self::store::Store;
use super::failure::Failure;
use crate::{config::TlsCheck, core::Certificate};

const DAY: i64 = 86_400;

/// What all probes share: settings made once for each kind of trust.
#[derive(Debug, Default)]
pub struct Tls {
    store: Mutex<Store>,
}

impl Tls {
    /// Shakes hands. Sessions are never resumed: each probe sees what a new client would see.
    ///
    /// # Errors
    /// The certificate is not trusted (`L6RSP`), or the authorities cannot be read (a failure of
    /// this host).
    pub async fn handshake(
        &self,
        stream: TcpStream,
        target: SocketAddr,
        check: &TlsCheck,
    ) -> Result<(TlsStream<TcpStream>, Option<Certificate>), Failure> {
        let config = self.config(check).map_err(Failure::Local)?;
        let name = server_name(target, check)?;
        let shown = name.to_str().into_owned();
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| Failure::Backend(format!("L6RSP: {}", words(&error, &shown))))?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
        let certificate = leaf.and_then(|leaf| end(leaf, check.expiry_warning));
        Ok((stream, certificate))
    }

    fn config(&self, check: &TlsCheck) -> io::Result<Arc<ClientConfig>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).config(&check.trust)
    }
}

fn server_name(target: SocketAddr, check: &TlsCheck) -> Result<ServerName<'static>, Failure> {
    match &check.server_name {
        None => Ok(ServerName::IpAddress(target.ip().into())),
        Some(name) => ServerName::try_from(name.clone())
            .map_err(|error| Failure::Backend(format!("L6RSP: cannot ask for the name `{name}`: {error}"))),
    }
}

/// When a certificate ends.
fn end(certificate: &CertificateDer<'_>, warning: Duration) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let not_after = parsed.validity().not_after.timestamp();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let left = not_after.saturating_sub(i64::try_from(now.as_secs()).ok()?);
    let warn = left < i64::try_from(warning.as_secs()).unwrap_or(i64::MAX);
    Some(Certificate { not_after, days_left: left.div_euclid(DAY), warn })
}

/// What an operator has to know of a failed handshake.
fn words(error: &io::Error, name: &str) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "the server hung up during the handshake".to_owned(),
            _ => super::failure::kernel_words(error),
        };
    };
    match tls {
        Error::InvalidCertificate(why) => untrusted(why, name),
        Error::InvalidMessage(_) => format!("this is not TLS: {tls}"),
        other => other.to_string(),
    }
}

fn untrusted(why: &CertificateError, name: &str) -> String {
    let date = |time: &UnixTime| {
        humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())).to_string()
    };
    match why {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate is over since {}", date(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate is not valid before {}", date(not_before))
        }
        // The second: by somebody who has the name of an authority, and not its key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the certificate is signed by nobody that is trusted".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the certificate is not for {name}")
        }
        CertificateError::Other(other) => other.to_string(),
        other => format!("the certificate is not accepted: {other}"),
    }
}
