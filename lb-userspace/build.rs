//! Embeds the data path, the program that unpacks tunnels on backends, and those that take probes to
//! the addresses of services.

#[path = "../lb-ebpf/build_object.rs"]
mod build_object;

fn main() -> anyhow::Result<()> {
    build_object::embed("lb", "")?;
    build_object::embed("decap", "")?;
    build_object::embed("probe", "")
}
