//! Servers that behave, and servers that do not.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_userspace::{
    config::{Check, HttpCheck, StatusRange},
    core::{ProbeKey, ProbeOutcome},
    health::Prober,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

pub const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
pub const V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

pub fn key(target: SocketAddr, check: Check) -> ProbeKey {
    ProbeKey {
        target,
        check,
        interval: Duration::from_secs(60),
        fast: None,
        timeout: Duration::from_millis(500),
        jitter_percent: 0,
        way: None,
    }
}

pub fn http() -> Check {
    Check::Http(HttpCheck {
        path: "/healthz".to_owned(),
        expect: vec![StatusRange { first: 200, last: 299 }],
        ..HttpCheck::default()
    })
}

/// The first outcome of one key.
pub async fn probe(key: ProbeKey) -> ProbeOutcome {
    let (tx, mut rx) = mpsc::channel(1);
    let mut prober = Prober::new(tx);
    prober.set(vec![key.clone()]);
    let (answered, outcome) = timeout(Duration::from_secs(10), rx.recv()).await.expect("an outcome").unwrap();
    assert_eq!(answered, key);
    outcome
}

/// Accepts for ever; hands each connection to `serve`.
pub async fn serve<F, Fut>(address: SocketAddr, serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Reads a request head and returns it.
pub async fn request(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Answers every request with these bytes and closes.
pub async fn answer_with(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes: Arc<[u8]> = bytes.into().into();
    serve(V4, move |mut stream| {
        let bytes = bytes.clone();
        async move {
            request(&mut stream).await;
            // The probe may have hung up already.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// A listener whose queue is full: the kernel drops further connection attempts.
pub struct Silent {
    listener: socket2::Socket,
    _fillers: Vec<socket2::Socket>,
}

impl Silent {
    pub fn new() -> Self {
        Self::at(V4)
    }

    pub fn at(address: SocketAddr) -> Self {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let fillers: Vec<Socket> = (0..4)
            .map(|_| {
                let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                filler.set_nonblocking(true).unwrap();
                // In progress for ever once the queue is full.
                let _ = filler.connect(&address);
                filler
            })
            .collect();
        Self { listener, _fillers: fillers }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }
}
