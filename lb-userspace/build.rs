//! Embeds the data path, and the program that unpacks tunnels on backends.

#[path = "../lb-ebpf/build_object.rs"]
mod build_object;

fn main() -> anyhow::Result<()> {
    build_object::embed("lb", "")?;
    build_object::embed("decap", "")
}
