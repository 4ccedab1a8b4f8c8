//! Fills the textbook balancer's maps, from the same plan as the product's.

use anyhow::{Context as _, Result};
use lb_common::{
    abi::Mode,
    bench::{FULL_NAT, NAT, TextbookBackend, TextbookHop, TextbookVip, names},
};

use super::{lab, object::Object, setting::Setting};

/// Publishes the setting's services.
///
/// # Errors
/// The plan has no such service, or the kernel refuses.
pub fn publish(object: &mut Object, setting: &Setting) -> Result<()> {
    let tables = setting.textbook_tables()?;
    let backends = tables.backends.keys().last().map_or(0, |last| last + 1);
    let mut reals = vec![bytemuck::Zeroable::zeroed(); backends as usize];
    for (&id, backend) in &tables.backends {
        // Tunnels and full-nat need ours; a plan for another mode does not name it.
        let source = lab::source(backend.address.is_v4()).into();
        reals[id as usize] = TextbookBackend { address: backend.address, source, port: backend.port, zero: [0; 2] };
    }
    let mode = if setting.mode == Mode::FullNat { FULL_NAT } else { NAT };
    let mut ring: Vec<u32> = Vec::new();
    for (id, (key, service)) in (0..).zip(&tables.services) {
        let slots = tables.selection.get(&service.selection_base).context("no selection table was planned")?;
        let vip = TextbookVip { id, ring_base: ring.len() as u32, ring_len: slots.len() as u32, mode };
        ring.extend(slots.iter().map(|slot| slot.current()));
        object.write_hash(names::TEXTBOOK_VIPS, *key, vip)?;
    }
    object.write_array(names::TEXTBOOK_RING, &ring)?;
    object.write_array(names::TEXTBOOK_BACKENDS, &reals)?;
    object.write_array(names::TEXTBOOK_HOP, &[TextbookHop { source: lab::MAC, destination: lab::GATEWAY_MAC }])
}
