//! `[service.timeouts]`: how long a silent flow of a service is kept, by its state.

use std::time::Duration;

use lb_common::{
    abi::Protocol,
    flow::{State, TICK_SHIFT, Timeouts, idle_ticks},
};
use toml::de::DeTable;

use super::{
    diagnostic::{At, Findings, Located, Read},
    form::Time,
    reader::{Key, LeftOut, Nested, Section, Table},
};

/// Keys of the states that a configuration may speak of.
const STATES: [(State, &Key<Duration>); 6] = [
    (State::Opening, &OPENING),
    (State::Established, &ESTABLISHED),
    (State::Closing, &CLOSING),
    (State::Closed, &CLOSED),
    (State::OneWay, &ONE_WAY),
    (State::BothWays, &BOTH_WAYS),
];

pub(super) static TIMEOUTS_TABLE: Nested = Nested {
    name: "timeouts",
    repeated: false,
    section: &TIMEOUTS,
    doc: "How long a silent flow is kept. A reload changes it for the flows there are too, each with its next packet.",
};

pub(super) static TIMEOUTS: Section =
    Section { header: "[service.timeouts]", keys: &[&OPENING, &ESTABLISHED, &CLOSING, &CLOSED, &ONE_WAY, &BOTH_WAYS] };

/// From one second, well above the 134 ms that times are counted in, to five days, well below the
/// thirteen that can be counted.
const RANGE: Time = Time { min: Duration::from_secs(1), max: Duration::from_secs(5 * 24 * 3600) };

/// Thirty of the heartbeats that associations send when they are idle (RFC 9260, 16: every 30 s).
const SCTP_ESTABLISHED: Duration = Duration::from_secs(15 * 60);

const fn key(name: &'static str, state: State, doc: &'static str) -> Key<Duration> {
    Key { name, form: &RANGE, left_out: LeftOut::Value(whole_seconds(state.timeout())), doc }
}

/// What the number of ticks was made of.
const fn whole_seconds(ticks: u32) -> Duration {
    Duration::from_secs(((ticks as u64) << TICK_SHIFT) / 1_000_000_000)
}

static OPENING: Key<Duration> = key("opening", State::Opening, "TCP: the handshake is not over.");

static ESTABLISHED: Key<Duration> = key(
    "established",
    State::Established,
    "TCP: the handshake is over. Longer than the keepalive interval of clients and servers (Linux: two hours), or \
     idle connections are reset with their next packet. For SCTP, whose idle associations send heartbeats, 15 \
     minutes where it is left out.",
);

static CLOSING: Key<Duration> = key("closing", State::Closing, "TCP: one side has sent its last (FIN).");

static CLOSED: Key<Duration> = key(
    "closed",
    State::Closed,
    "TCP: both sides have, or one has reset the connection. In `full-nat` the source port is kept for as long: the \
     ports of a backend endpoint, divided by this, are the short connections per second that it can get. Longer \
     than a lost last packet takes to be sent again.",
);

static ONE_WAY: Key<Duration> = key("one-way", State::OneWay, "UDP: nothing has come from the backend yet.");

static BOTH_WAYS: Key<Duration> = key(
    "both-ways",
    State::BothWays,
    "UDP: the backend has answered (direct server return: the client has sent again).",
);

/// The timeouts of a service, complete: what the file does not name is as always.
pub(super) fn read(findings: &mut Findings, service: &Table<'_>, protocol: &Read<Located<Protocol>>) -> Read<Timeouts> {
    let nothing = DeTable::new();
    let table = match service.table(findings, &TIMEOUTS_TABLE)? {
        Some(table) => table,
        None => {
            let at = At { path: service.path(TIMEOUTS_TABLE.name), span: service.at.span };
            Table::open(findings, &nothing, &TIMEOUTS, at)
        }
    };
    let mut timeouts = Ok(State::TIMEOUTS);
    let sctp = protocol.as_ref().is_ok_and(|protocol| protocol.value == Protocol::Sctp);
    for (state, key) in STATES {
        match (table.value(findings, key), &mut timeouts) {
            (Ok(_), Ok(timeouts)) if sctp && state == State::Established && table.field(key.name).is_none() => {
                timeouts[state as usize] = ticks(SCTP_ESTABLISHED);
            }
            (Ok(time), Ok(timeouts)) => timeouts[state as usize] = ticks(time.value),
            (Err(reported), timeouts) => *timeouts = Err(reported),
            (Ok(_), Err(_)) => {}
        }
    }
    timeouts
}

fn ticks(time: Duration) -> u32 {
    idle_ticks(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_data_path() {
        for (state, key) in STATES {
            assert_eq!(key.name, state.name());
            let LeftOut::Value(default) = &key.left_out else { panic!("{} has no default", key.name) };
            assert_eq!(ticks(*default), state.timeout(), "{}", key.name);
        }
    }

    #[test]
    fn the_longest_time_is_well_below_half_of_what_the_table_counts() {
        assert!(ticks(RANGE.max) < 1 << 22);
    }
}
