//! What the agent does to a host, done to hosts made of network namespaces. Needs root and says so.

mod announcing;
mod netlink;
mod preparing;
mod rights;
mod variety;
mod wire;
mod world;
