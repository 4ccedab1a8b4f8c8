//! What the agent tells the service manager that started it: that it is ready, that it lives, that it
//! ends (sd_notify(3); systemd, or anything else that sets `NOTIFY_SOCKET`).

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    manager: SocketAddr,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that waits for news of this process; `None`: nobody does.
    pub fn of_environment() -> Option<Self> {
        let path = env::var_os("NOTIFY_SOCKET")?;
        let watched = env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let watchdog = env::var("WATCHDOG_USEC").ok().and_then(|micros| micros.parse().ok());
        let watchdog = watchdog.filter(|_| watched).map(Duration::from_micros);
        Self::open(&path, watchdog)
            .inspect_err(|error| tracing::warn!(%error, "the service manager cannot be told anything"))
            .ok()
    }

    /// `path`: as in `NOTIFY_SOCKET`; with `@` in front, a name without a file.
    fn open(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let manager = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        Ok(Self { socket: UnixDatagram::unbound()?, manager, watchdog })
    }

    /// How long the manager waits for a sign of life; `None`: it wants none.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service has begun; `status`: in a line, for `systemctl status`.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// The service ends by itself.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, news: &str) {
        if let Err(error) = self.socket.send_to_addr(news.as_bytes(), &self.manager) {
            tracing::warn!(%error, news, "the service manager could not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn news_arrive_by_a_file_and_by_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let of_file = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::open(path.as_os_str(), Some(Duration::from_secs(1))).unwrap();
        manager.ready("serving 2 services");
        assert_eq!(received(&of_file), "READY=1\nSTATUS=serving 2 services");
        manager.alive();
        assert_eq!(received(&of_file), "WATCHDOG=1");

        let name = format!("lb-notify-{}", std::process::id());
        let of_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let manager = ServiceManager::open(OsStr::new(&format!("@{name}")), None).unwrap();
        manager.alive();
        manager.stopping();
        assert_eq!(received(&of_name), "STOPPING=1", "nobody waits for signs of life");
    }

    #[test]
    fn a_manager_that_is_gone_is_no_reason_to_end() {
        let manager = ServiceManager::open(OsStr::new("/nonexistent/notify"), None).unwrap();
        manager.ready("up");
    }
}
