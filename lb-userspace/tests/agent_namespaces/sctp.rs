//! SCTP associations through direct server return: what the client sends goes through the balancer, and the
//! server answers from the service's address by a wire of its own.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    thread,
    time::Duration,
};

use rustix::process::Signal;
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::{Namespace, VIP, World};

/// Set where the kernel must have SCTP: `cargo xtask vm` does, for Debian's kernels.
const REQUIRED: &str = "LB_TEST_SCTP";
const PORT: u16 = 2905;
const MESSAGES: usize = 20;

/// A socket with one association; `None`, and said so, where this kernel has none.
fn socket(namespace: &Namespace) -> Option<Socket> {
    match namespace.inside(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(libc::IPPROTO_SCTP)))) {
        Ok(socket) => Some(socket),
        Err(error) => {
            let unknown = error.raw_os_error() == Some(libc::EPROTONOSUPPORT);
            assert!(unknown && std::env::var_os(REQUIRED).is_none(), "no SCTP: {error}");
            println!("NOT TESTED: this kernel has no SCTP ({error}); `cargo xtask vm` tests it");
            None
        }
    }
}

fn at(ip: &str, port: u16) -> socket2::SockAddr {
    SocketAddr::new(ip.parse().unwrap(), port).into()
}

/// An association of one address at each end, which answers come back to.
fn associate(world: &World) -> Socket {
    let socket = socket(&world.client).expect("it was there before");
    for set in [Socket::set_read_timeout, Socket::set_write_timeout] {
        set(&socket, Some(Duration::from_secs(10))).unwrap();
    }
    socket.bind(&at("10.98.0.2", 0)).unwrap();
    socket.connect_timeout(&at(VIP, PORT), Duration::from_secs(10)).expect("an association");
    socket
}

fn exchange(mut socket: &Socket, what: &str) {
    for number in 0..MESSAGES {
        let asked = format!("{what} {number}");
        socket.write_all(asked.as_bytes()).unwrap();
        let mut answer = vec![0; asked.len()];
        socket.read_exact(&mut answer).unwrap_or_else(|error| panic!("{asked}: {error}"));
        assert_eq!(answer, asked.as_bytes());
    }
}

/// Sends back what comes, for so many associations one beside the other.
fn serve(listener: Socket, associations: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let echo = |mut socket: Socket| {
            let mut buffer = [0; 2048];
            while let Ok(length @ 1..) = socket.read(&mut buffer) {
                if socket.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        };
        let echoes: Vec<_> = (0..associations)
            .map(|_| {
                let (socket, _) = listener.accept().unwrap();
                thread::spawn(move || echo(socket))
            })
            .collect();
        echoes.into_iter().for_each(|echo| echo.join().unwrap());
    })
}

#[test]
fn associations_go_through_the_balancer_and_outlive_the_agent() {
    let world = World::new();
    let Some(listener) = socket(&world.servers) else { return };
    world.client.ip(&["link", "add", "c1", "type", "veth", "peer", "name", "s1", "netns", &world.servers.name]);
    for (host, end, address) in [(&world.client, "c1", "10.96.0.2/24"), (&world.servers, "s1", "10.96.0.11/24")] {
        host.ip(&["addr", "add", address, "dev", end]);
        host.ip(&["link", "set", end, "up"]);
    }
    world.servers.ip(&["addr", "add", &format!("{VIP}/32"), "dev", "lo"]);
    world.servers.ip(&["route", "add", "10.98.0.0/24", "via", "10.96.0.2"]);
    listener.bind(&at(VIP, PORT)).unwrap();
    listener.listen(8).unwrap();
    let server = serve(listener, 3);

    world.write(
        "lb.toml",
        &format!(
            "interfaces = [\"lbc\", \"lbs\"]\n[[service]]\nname = \"signalling\"\nlisten = \"{VIP}:{PORT}\"\n\
         protocol = \"sctp\"\nmode = \"dsr-l2\"\nhealth = {{ type = \"none\" }}\n\
         [[service.backend]]\naddress = \"10.97.0.11:{PORT}\"\n[[service.backend]]\naddress = \"10.97.0.12:{PORT}\"\n"
        ),
    );
    let agent = world.run(1);
    let (first, second) = (associate(&world), associate(&world));
    exchange(&first, "first");
    exchange(&second, "second");
    let stats = world.document(&["stats"]);
    let counted = &stats["services"][0];
    assert_eq!((&counted["flows"], &counted["reply"]["packets"]), (&2.into(), &0.into()), "{stats}");
    assert!(counted["forward"]["packets"].as_u64().unwrap() >= 2 * MESSAGES as u64, "{stats}");
    assert_eq!(counted["dropped"], 0, "{stats}");

    let (code, log) = agent.end(Signal::KILL);
    assert_eq!(code, None, "killed: {log}");
    exchange(&first, "nobody is there to notice");
    exchange(&associate(&world), "nor that one begins");
    drop((first, second));
    server.join().unwrap();
}
