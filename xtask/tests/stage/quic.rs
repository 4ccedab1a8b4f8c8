//! QUIC: servers that answer with their backend's name, and a client that can change its address.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, Runtime, ServerConfig,
    TokioRuntime, TransportConfig,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};
use xtask::world::{
    Namespace, World,
    config::{SERVER_ID_LENGTH, server_id},
};

pub const QUIC_PORT: u16 = 4433;
/// What the servers' certificate says.
const NAME: &str = "lb.test";
/// A connection that hears nothing for so long is over.
const SILENCE: Duration = Duration::from_secs(3);

/// One certificate for all servers of a test.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Identity {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Self { certificate: made.cert.into(), key }
    }
}

/// Connection IDs as draft-ietf-quic-load-balancers has them, in plaintext: a first octet that tells
/// the length, the server id, and a nonce.
struct WithServerId {
    server_id: [u8; SERVER_ID_LENGTH],
    nonce: u64,
}

impl WithServerId {
    const LENGTH: usize = 1 + SERVER_ID_LENGTH + size_of::<u64>();
}

impl ConnectionIdGenerator for WithServerId {
    fn generate_cid(&mut self) -> ConnectionId {
        self.nonce += 1;
        let length = [Self::LENGTH as u8 - 1];
        ConnectionId::new(&[&length[..], &self.server_id, &self.nonce.to_be_bytes()].concat())
    }

    fn cid_len(&self) -> usize {
        Self::LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Starts a server on the backend of this index (from 0); it runs for as long as the runtime.
pub fn serve(world: &World, index: u8, identity: &Identity) -> Endpoint {
    let name = world.backend_names()[usize::from(index)].clone();
    let socket = world.backends[usize::from(index)].enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.bind(&SocketAddr::from(([0u16; 8], QUIC_PORT)).into()).unwrap();
        UdpSocket::from(socket)
    });
    let key = PrivateKeyDer::from(identity.key.clone_key());
    let server = ServerConfig::with_single_cert(vec![identity.certificate.clone()], key).unwrap();
    let mut config = EndpointConfig::default();
    config.cid_generator(move || Box::new(WithServerId { server_id: server_id(index), nonce: 0 }));
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(config, Some(server), socket, runtime).unwrap();
    tokio::spawn({
        let endpoint = endpoint.clone();
        async move {
            while let Some(incoming) = endpoint.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    // A client that is gone is its own affair.
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                        let word = receive.read_to_end(1 << 20).await.unwrap_or_default();
                        let _ = send.write_all(&[name.as_bytes(), b":", &word].concat()).await;
                        let _ = send.finish();
                    }
                });
            }
        }
    });
    endpoint
}

/// A client with one connection.
pub struct Client<'w> {
    host: &'w Namespace,
    endpoint: Endpoint,
    connection: Connection,
}

impl<'w> Client<'w> {
    /// Connects from any port of `from`.
    pub async fn connect(host: &'w Namespace, from: IpAddr, service: SocketAddr, identity: &Identity) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(identity.certificate.clone()).unwrap();
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(SILENCE.try_into().unwrap()));
        config.transport_config(Arc::new(transport));
        let socket = bind(host, from).unwrap();
        let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(service, NAME).unwrap().await.unwrap();
        Self { host, endpoint, connection }
    }

    /// Goes on from another port, of this address.
    pub fn migrate(&self, to: IpAddr) {
        self.endpoint.rebind(bind(self.host, to).unwrap()).unwrap();
    }

    /// The name of the server that answers, or why nothing came.
    pub async fn ask(&self, word: &str) -> Result<String, String> {
        let failed = |error: &dyn std::error::Error| error.to_string();
        let (mut send, mut receive) = self.connection.open_bi().await.map_err(|error| failed(&error))?;
        send.write_all(word.as_bytes()).await.map_err(|error| failed(&error))?;
        send.finish().map_err(|error| failed(&error))?;
        let answer = receive.read_to_end(2 << 20).await.map_err(|error| failed(&error))?;
        let answer = String::from_utf8(answer).map_err(|error| failed(&error))?;
        let (name, echoed) = answer.split_once(':').ok_or("half an answer")?;
        if echoed == word { Ok(name.to_owned()) } else { Err(format!("{} bytes of {}", echoed.len(), word.len())) }
    }
}

fn bind(host: &Namespace, address: IpAddr) -> io::Result<UdpSocket> {
    host.enter(|| UdpSocket::bind((address, 0)))
}
