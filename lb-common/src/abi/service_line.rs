//! Where packets look for their service first.

use bytemuck::{Pod, Zeroable};

use super::{ServiceKey, ServiceValue};

/// Element of the array `service_lines`: a copy of an element of the map `services`, in one cache line that
/// is found without a call of the kernel, at one of two places
/// ([`service_lines`](crate::hash::service_lines)). The map stays what counts: a service without a line, or
/// with one that is being written, is looked up there. All zeros: of no service.
///
/// The agent alone writes it, through a memory mapping: it makes `version` odd, changes the map, writes the
/// line and makes `version` even, another number than before. Who reads `version` before and after
/// everything else, and finds the same even number, has read one published state; and at no time does a
/// line say something that the map said before, but not any more.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct ServiceLine {
    pub key: ServiceKey,
    pub version: u32,
    pub value: ServiceValue,
    pub zero: [u32; 2],
}
