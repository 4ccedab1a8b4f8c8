//! TLS: names, authorities, pinned certificates, and those that are over.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lb_userspace::{
    config::{Check, HttpCheck, TlsCheck, Trust},
    core::{Phase, ProbeKey},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};

use crate::servers::{Silent, V4, key, probe, serve};

const DAY: Duration = Duration::from_secs(86_400);

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: NamedTempFile,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("authority {}", MADE.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(issuer.pem().as_bytes()).unwrap();
        Self { issuer, file }
    }

    fn trusted(&self) -> TlsCheck {
        TlsCheck { trust: Trust::CaFile(self.file.path().into()), ..TlsCheck::default() }
    }

    /// A server with a certificate for these names, which ends so many days from now.
    async fn server(&self, names: &[&str], days: i64) -> (std::net::SocketAddr, CertificateDer<'static>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let now = std::time::SystemTime::now();
        // An hour more, so that the whole days are what was asked for.
        let end = if days < 0 { now - DAY * days.unsigned_abs() as u32 } else { now + DAY * days as u32 + DAY / 24 };
        params.not_after = end.into();
        params.not_before = (now - DAY * 400).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let address = serve(V4, move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match tokio::io::AsyncReadExt::read_u8(&mut stream).await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready").await;
                let _ = stream.shutdown().await;
            }
        })
        .await;
        (address, certificate)
    }
}

fn patient(key: ProbeKey) -> ProbeKey {
    ProbeKey { timeout: Duration::from_secs(10), ..key }
}

#[tokio::test]
async fn a_trusted_certificate_passes_and_its_end_is_told() {
    let authority = Authority::new();
    let (server, _) = authority.server(&["127.0.0.1", "shop.example"], 30).await;
    let outcome = probe(patient(key(server, Check::Tls(authority.trusted())))).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (true, "L6OK"));
    let certificate = outcome.certificate.unwrap();
    assert_eq!((certificate.days_left, certificate.warn), (30, false));
    let phases: Vec<Phase> = outcome.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Connect, Phase::Tls]);

    let named =
        TlsCheck { server_name: Some("shop.example".to_owned()), expiry_warning: DAY * 31, ..authority.trusted() };
    let outcome = probe(patient(key(server, Check::Tls(named)))).await;
    assert!(outcome.up && outcome.certificate.unwrap().warn, "it ends sooner than the check likes");
}

#[tokio::test]
async fn https_asks_within_the_connection() {
    let authority = Authority::new();
    let (server, _) = authority.server(&["127.0.0.1"], 30).await;
    let https = HttpCheck { tls: Some(authority.trusted()), ..HttpCheck::default() };
    let outcome = probe(patient(key(server, Check::Http(https)))).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (true, "L7OK 200"));
    let phases: Vec<Phase> = outcome.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Connect, Phase::Tls, Phase::Send, Phase::FirstByte, Phase::Body]);
    assert!(outcome.phases.iter().map(|(_, took)| *took).sum::<Duration>() <= outcome.took);
}

#[tokio::test]
async fn certificates_that_are_over_or_of_somebody_else_are_refused_with_the_reason() {
    let authority = Authority::new();
    let (over, _) = authority.server(&["127.0.0.1"], -3).await;
    let outcome = probe(patient(key(over, Check::Tls(authority.trusted())))).await;
    assert!(!outcome.up && outcome.result.starts_with("L6RSP: the certificate is over since 20"), "{}", outcome.result);

    let (other, _) = authority.server(&["other.example"], 30).await;
    let outcome = probe(patient(key(other, Check::Tls(authority.trusted())))).await;
    assert_eq!(outcome.result, "L6RSP: the certificate is not for 127.0.0.1");

    let stranger = Authority::new();
    let (server, _) = authority.server(&["127.0.0.1"], 30).await;
    for check in [stranger.trusted(), TlsCheck::default()] {
        let outcome = probe(patient(key(server, Check::Tls(check)))).await;
        assert_eq!(outcome.result, "L6RSP: the certificate is signed by nobody that is trusted");
    }
}

#[tokio::test]
async fn a_pinned_certificate_passes_whatever_its_dates_and_no_other_one_does() {
    let authority = Authority::new();
    let (over, certificate) = authority.server(&["old.example"], -3).await;
    let digest = ring::digest::digest(&ring::digest::SHA256, &certificate);
    let print: [u8; 32] = digest.as_ref().try_into().unwrap();
    let pinned = TlsCheck { trust: Trust::Fingerprint(print), ..TlsCheck::default() };
    let outcome = probe(patient(key(over, Check::Tls(pinned.clone())))).await;
    assert!(outcome.up && outcome.certificate.is_some_and(|end| end.warn && end.days_left < 0), "{}", outcome.result);
    let (other, _) = authority.server(&["old.example"], 30).await;
    let outcome = probe(patient(key(other, Check::Tls(pinned)))).await;
    assert!(!outcome.up && outcome.result.starts_with("L6RSP: another certificate than the one"), "{}", outcome.result);
    let anyone = TlsCheck { trust: Trust::Anyone, ..TlsCheck::default() };
    assert!(probe(patient(key(over, Check::Tls(anyone)))).await.up);
}

#[tokio::test]
async fn a_server_without_tls_is_told_from_one_that_keeps_quiet() {
    let authority = Authority::new();
    let check = || Check::Tls(authority.trusted());
    // The first line of a request never comes to an end for it.
    let plain = serve(V4, |mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    let outcome = probe(patient(key(plain, check()))).await;
    assert!(!outcome.up && outcome.result.starts_with("L6RSP: this is not TLS"), "{}", outcome.result);
    let quiet = serve(V4, |stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await;
    let outcome = probe(key(quiet, check())).await;
    assert_eq!((outcome.result.as_str(), outcome.phases.last().unwrap().0), ("L6TOUT", Phase::Tls));
    assert_eq!(probe(key(Silent::new().address(), check())).await.result, "L4TOUT");
}

#[tokio::test]
async fn a_file_of_authorities_is_read_anew_when_it_changes() {
    let (one, other) = (Authority::new(), Authority::new());
    let (server, _) = other.server(&["127.0.0.1"], 30).await;
    let (tx, mut rx) = tokio::sync::mpsc::channel(1);
    let mut prober = lb_userspace::health::Prober::new(tx);
    let key = ProbeKey { interval: Duration::from_millis(50), ..patient(key(server, Check::Tls(one.trusted()))) };
    prober.set(vec![key]);
    assert!(!rx.recv().await.unwrap().1.up);
    std::fs::write(one.file.path(), other.issuer.pem() + "\n").unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !tokio::time::timeout_at(end, rx.recv()).await.expect("the new authority is trusted").unwrap().1.up {}
}
