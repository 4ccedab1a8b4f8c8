//! A connection, encrypted or not, that knows when it was first answered.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{
    failure::Failure,
    target::Target,
    tcp,
    tls::Tls,
    trace::{Stamps, Trace},
};
use crate::{config::TlsCheck, core::Phase};

/// A connection of one probe.
#[derive(Debug)]
pub struct Stream {
    inner: Inner,
    pub stamps: Arc<Stamps>,
}

#[derive(Debug)]
enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Connects, and encrypts where `tls` says so.
    ///
    /// # Errors
    /// The target refuses, or its certificate is not trusted.
    pub async fn open(
        target: Target<'_>,
        encryption: Option<&TlsCheck>,
        tls: &Tls,
        trace: &mut Trace,
    ) -> Result<Self, Failure> {
        let plain = Self::plain(tcp::connect(target).await?);
        match encryption {
            None => Ok(plain),
            Some(check) => plain.encrypt(target.name, check, tls, trace).await,
        }
    }

    pub fn plain(stream: TcpStream) -> Self {
        Self { inner: Inner::Plain(stream), stamps: Arc::default() }
    }

    /// Goes over to TLS on a connection that stands.
    ///
    /// # Errors
    /// The handshake fails, or the certificate is not trusted.
    pub async fn encrypt(
        self,
        target: SocketAddr,
        check: &TlsCheck,
        tls: &Tls,
        trace: &mut Trace,
    ) -> Result<Self, Failure> {
        let Inner::Plain(stream) = self.inner else {
            return Err(Failure::Backend("L6RSP: the connection is encrypted already".to_owned()));
        };
        trace.enter(Phase::Tls);
        let (stream, certificate) = tls.handshake(stream, target, check).await?;
        trace.certificate = certificate;
        Ok(Self { inner: Inner::Tls(Box::new(stream)), stamps: self.stamps })
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self.inner, Inner::Tls(_))
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = async {
            self.write_all(bytes).await?;
            self.flush().await
        };
        sent.await.map_err(|error| Failure::exchange(&error))
    }

    /// Says goodbye and waits until the server has hung up too, so that it does not log a broken
    /// connection.
    pub async fn close(mut self, goodbye: &[u8]) {
        if self.send(goodbye).await.is_ok() {
            let mut rest = [0; 256];
            while matches!(self.read(&mut rest).await, Ok(1..)) {}
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let done = match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Inner::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        };
        ready!(done)?;
        if into.filled().len() > before {
            self.stamps.read_some();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Inner::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        let written = ready!(done)?;
        self.stamps.written();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
