//! Probes of databases against the real servers of Debian's packages, each in a folder of its own
//! and on ports of the loopback interface: primaries and replicas, right and wrong passwords, TLS.

mod certificates;
mod failover;
mod garbage;
mod mariadb;
mod postgres;
mod redis;
mod server;
