//! What the data path asks of the agent, as a stream.

use std::{io, net::IpAddr, path::Path};

use aya::maps::{Map, MapData, RingBuf};
use lb_common::abi::{Event, EventKind, names};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    maps::{kernel, open},
    pins::Pins,
};
use crate::dataplane::DataplaneError;

/// One request of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataplaneEvent {
    /// The next hop has no link-layer address: resolve it on this interface.
    NeighbourMissing { ifindex: u32, address: IpAddr },
    /// No source port was free towards this backend.
    PortsExhausted { backend_id: u32, address: IpAddr },
    /// Something new speaks against this backend: see [`super::Knocks`].
    Suspect { backend_id: u32 },
}

/// Reader of the ring buffer. Only one may read it: the agent.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    /// From the pins; call it within a tokio runtime.
    ///
    /// # Errors
    /// The map is not pinned, may not be opened or cannot be watched.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        let map = open(&Pins::new(pin_dir), names::EVENTS)?.0;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(|error| kernel("mapping the events", error))?;
        // SAFETY: the ring buffer owns its descriptor and keeps it for life.
        let watched = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let failed = |source| DataplaneError::Kernel { what: "watching the events".into(), source };
        watched.map(Self).map_err(|error| failed(error.into()))
    }

    /// The next event; records of a kind that this version does not know are left out. Nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// The kernel's; the stream is of no use afterwards.
    pub async fn next(&mut self) -> io::Result<DataplaneEvent> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            while let Some(record) = ready.get_inner_mut().next() {
                if let Some(event) = decode(&record) {
                    return Ok(event);
                }
            }
            ready.clear_ready();
        }
    }
}

fn decode(record: &[u8]) -> Option<DataplaneEvent> {
    let event: Event = bytemuck::try_pod_read_unaligned(record.get(..size_of::<Event>())?).ok()?;
    let address = event.address.into();
    Some(match EventKind::from_number(event.kind)? {
        EventKind::NeighbourMissing => DataplaneEvent::NeighbourMissing { ifindex: event.ifindex, address },
        EventKind::PortsExhausted => DataplaneEvent::PortsExhausted { backend_id: event.backend_id, address },
        EventKind::Suspect => DataplaneEvent::Suspect { backend_id: event.backend_id },
    })
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Address;

    use super::*;

    #[test]
    fn records_of_other_kinds_or_lengths_are_left_out() {
        let mut event = Event { kind: 1, ifindex: 3, address: Address::v4([10, 0, 0, 1]), backend_id: 0, zero: 0 };
        let expected = DataplaneEvent::NeighbourMissing { ifindex: 3, address: [10, 0, 0, 1].into() };
        assert_eq!(decode(bytemuck::bytes_of(&event)), Some(expected));
        assert_eq!(decode(&bytemuck::bytes_of(&event)[..31]), None);
        event.kind = 99;
        assert_eq!(decode(bytemuck::bytes_of(&event)), None);
    }
}
