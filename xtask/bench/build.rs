//! Embeds the programs that measure the data path.

#[path = "../../lb-ebpf/build_object.rs"]
mod build_object;

fn main() -> anyhow::Result<()> {
    build_object::embed("lb-bench", "bench")?;
    build_object::embed_variant("lb-steps", "lb", "steps")
}
