//! The states of a flow, packet by packet, and where flows live.
use lb_common::{
    abi::{Address, Port, limits::WAYS},
    flow::{ReplyWord, Seen, State, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Word, buckets, index, tag, ticks},
    hash::tuple_hash,
};
use proptest::{collection::vec, prelude::*};

const NOW: u32 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// A TCP packet from the client.
const fn c(tcp_flags: u8) -> Seen {
    Seen { tcp: true, reply: false, tcp_flags }
}

/// A TCP packet from the backend.
const fn b(tcp_flags: u8) -> Seen {
    Seen { tcp: true, reply: true, tcp_flags }
}

const SYN: u8 = TCP_SYN;
const ACK: u8 = TCP_ACK;
const FIN: u8 = TCP_FIN | TCP_ACK;
const RST: u8 = TCP_RST;
const SYN_ACK: u8 = TCP_SYN | TCP_ACK;

/// The word after the packets that follow the first SYN.
fn word(packets: &[Seen]) -> Word {
    packets.iter().fold(Word::begin(7, true, NOW), |word, seen| word.after(*seen, NOW))
}

#[track_caller]
fn expect(state: State, packets: &[Seen]) {
    assert_eq!(word(packets).state(), state);
}

const HANDSHAKE: [Seen; 2] = [b(SYN_ACK), c(ACK)];

fn after_handshake(packets: &[Seen]) -> Vec<Seen> {
    [HANDSHAKE.as_slice(), packets].concat()
}

#[test]
fn a_handshake_ends_with_the_clients_acknowledgement() {
    expect(State::Opening, &[]);
    expect(State::Opening, &[b(SYN_ACK)]);
    expect(State::Established, &HANDSHAKE);
    expect(State::Established, &after_handshake(&[c(ACK), b(ACK), c(ACK | 8)]));
}

#[test]
fn retransmitted_syns_and_syn_acks_change_nothing() {
    expect(State::Opening, &[c(SYN), c(SYN)]);
    expect(State::Opening, &[b(SYN_ACK), c(SYN), b(SYN_ACK)]);
    expect(State::Established, &after_handshake(&[b(SYN_ACK), c(ACK)]));
    expect(State::Established, &after_handshake(&[c(SYN)]));
}

#[test]
fn data_ends_the_handshake_when_the_acknowledgement_was_lost() {
    expect(State::Established, &[b(SYN_ACK), c(ACK | 8)]);
    expect(State::Closing, &[b(SYN_ACK), c(FIN | 8)]);
}

#[test]
fn nothing_from_the_client_establishes_a_flow_that_the_backend_has_not_answered() {
    for flags in [ACK, ACK | 8, FIN, TCP_FIN, SYN, SYN_ACK, 0] {
        expect(State::Opening, &[c(flags), c(flags), c(ACK)]);
    }
    // Nor what the backend sends instead of a SYN-ACK: a challenge (RFC 5961, 4.2), a stray FIN.
    expect(State::Opening, &[b(ACK), c(ACK)]);
    expect(State::Opening, &[b(FIN), c(ACK)]);
    // The forged FIN left no trace.
    expect(State::Established, &[c(FIN), b(SYN_ACK), c(ACK)]);
}

#[test]
fn without_acknowledgement_flag_no_handshake_ends() {
    expect(State::Opening, &[b(SYN_ACK), c(0)]);
}

#[test]
fn a_reset_closes_from_both_sides_and_in_every_state() {
    for reset in [b(RST), b(RST | ACK)] {
        expect(State::Closed, &[reset]);
    }
    for reset in [c(RST), b(RST), c(RST | ACK), b(RST | ACK)] {
        expect(State::Closed, &[b(SYN_ACK), reset]);
        expect(State::Closed, &after_handshake(&[reset]));
        expect(State::Closed, &after_handshake(&[c(FIN), reset]));
        expect(State::Closed, &after_handshake(&[reset, c(ACK), b(ACK), c(FIN), b(SYN_ACK)]));
    }
}

#[test]
fn a_client_that_resets_a_connection_before_its_own_keeps_its_backend() {
    // The backend's answer is an ACK of the tuple's last connection, which it still remembers.
    expect(State::Opening, &[b(ACK), c(RST)]);
    expect(State::Opening, &[b(ACK), c(RST), c(SYN)]);
    expect(State::Established, &[b(ACK), c(RST), c(SYN), b(SYN_ACK), c(ACK)]);
}

#[test]
fn a_fin_from_one_side_is_closing_and_from_both_closed() {
    for (one, other) in [(c as fn(u8) -> Seen, b as fn(u8) -> Seen), (b, c)] {
        expect(State::Closing, &after_handshake(&[one(FIN)]));
        expect(State::Closing, &after_handshake(&[one(FIN), one(FIN)]));
        // Half-closed, the other side goes on sending.
        expect(State::Closing, &after_handshake(&[one(FIN), other(ACK), other(ACK | 8), one(ACK)]));
        expect(State::Closed, &after_handshake(&[one(FIN), other(FIN)]));
        // The last ACK, or a FIN again.
        expect(State::Closed, &after_handshake(&[one(FIN), other(FIN), one(ACK), other(FIN)]));
    }
}

#[test]
fn a_backend_that_closes_before_the_acknowledgement_is_closing() {
    expect(State::Opening, &[b(SYN_ACK), b(FIN)]);
    expect(State::Closing, &[b(SYN_ACK), b(FIN), c(ACK)]);
    expect(State::Closed, &[b(SYN_ACK), b(FIN), c(FIN)]);
}

#[test]
fn a_new_syn_starts_a_finished_flow_anew() {
    for over in [vec![b(RST)], after_handshake(&[c(FIN), b(FIN)]), after_handshake(&[c(FIN)])] {
        assert!(word(&over).restarted_by(c(SYN)));
        assert_eq!(word(&over).after(c(SYN), NOW), Word::begin(7, true, NOW), "as on its first day");
        let again: Vec<Seen> = over.iter().copied().chain([c(SYN), b(SYN_ACK), c(ACK)]).collect();
        expect(State::Established, &again);
        for other in [c(SYN_ACK), c(SYN | RST), c(SYN | TCP_FIN), c(ACK), b(SYN)] {
            assert!(!word(&over).restarted_by(other), "{other:?}");
        }
    }
    for alive in [vec![], HANDSHAKE.to_vec(), after_handshake(&[b(FIN)])] {
        assert!(!word(&alive).restarted_by(c(SYN)), "a forged SYN would end it");
    }
}

#[test]
fn udp_goes_both_ways_from_the_first_reply_on() {
    let udp = |reply| Seen { tcp: false, reply, tcp_flags: 0 };
    let begin = Word::begin(7, false, NOW);
    assert_eq!(begin.state(), State::OneWay);
    assert_eq!(begin.after(udp(false), NOW).state(), State::OneWay);
    let both = begin.after(udp(true), NOW);
    assert_eq!(both.state(), State::BothWays);
    assert_eq!(both.after(udp(false), NOW).state(), State::BothWays);
    assert!(!both.restarted_by(udp(false)));
}

#[test]
fn a_word_is_written_anew_only_when_a_tick_has_passed() {
    let established = word(&HANDSHAKE);
    assert_eq!(established.after(c(ACK), NOW), established);
    assert_eq!(established.after(b(ACK), NOW), established);
    assert_ne!(established.after(c(ACK), NOW + 1), established);
    assert_eq!(established.after(c(ACK), NOW + 1).age(NOW + 1, &State::TIMEOUTS), 0);
}

#[test]
fn a_tick_is_134_milliseconds_and_timeouts_are_never_shorter_than_said() {
    assert_eq!(ticks(0), 0);
    assert_eq!(ticks((1 << 27) - 1), 0);
    assert_eq!(ticks(1 << 27), 1);
    assert_eq!(ticks(1 << (27 + 24)), 0, "wraps");
    let says = [
        (State::Busy, 10),
        (State::Closed, 10),
        (State::Opening, 30),
        (State::OneWay, 30),
        (State::Closing, 300),
        (State::BothWays, 180),
        (State::Established, 7300),
    ];
    for (state, seconds) in says {
        let real = u64::from(state.timeout()) << 27;
        assert!((seconds * SECOND..=seconds * SECOND + (1 << 27)).contains(&real), "{state:?}");
    }
}

#[test]
fn a_flow_expires_one_tick_after_its_timeout_across_the_wrap_of_the_clock() {
    for begin in [0, NOW, (1 << 24) - 1, (1 << 24) - 100] {
        let word = Word::begin(7, true, begin);
        let at = |ticks: u32| (begin + ticks) & 0xff_ffff;
        let timeout = State::Opening.timeout();
        assert!(word.live(at(0)) && word.live(at(timeout)));
        assert!(word.expired(at(timeout + 1)) && !word.live(at(timeout + 1)));
        assert_eq!(word.age(at(timeout + 1), &State::TIMEOUTS), timeout + 1);
    }
}

#[test]
fn a_clock_that_is_behind_the_words_does_not_expire_a_flow() {
    for begin in [0, 5, NOW] {
        for behind in [1, 2, 600] {
            let word = Word::begin(7, true, begin);
            let now = begin.wrapping_sub(behind) & 0xff_ffff;
            assert_eq!(word.age(now, &State::TIMEOUTS), 0);
            assert!(word.live(now));
        }
    }
}

#[test]
fn empty_and_busy_ways_are_not_live() {
    assert!(!Word::EMPTY.live(NOW) && !Word::busy(NOW).live(NOW));
    assert_eq!(Word::EMPTY.state(), State::Empty);
    assert_eq!(Word::busy(NOW).state(), State::Busy);
    // A number that no version writes belongs to somebody.
    for bits in 8..16u64 {
        assert_eq!(Word(bits << 32).state(), State::Busy);
    }
}

#[test]
fn the_owner_that_was_away_too_long_finds_another_word() {
    let mine = Word::busy(NOW);
    let later = NOW + State::Busy.timeout() + 1;
    assert_eq!(mine.worth(later - 1), u32::MAX, "not to be had");
    assert_eq!(mine.worth(later), 0, "given up");
    assert_ne!(Word::busy(later), mine, "a swap of the old owner fails");
}

#[test]
fn worth_rises_with_the_state_and_falls_with_silence() {
    let udp = Word::begin(7, false, NOW);
    let rising = [
        Word::EMPTY,
        word(&[b(RST)]),
        word(&[]),
        udp,
        word(&after_handshake(&[c(FIN)])),
        udp.after(Seen { tcp: false, reply: true, tcp_flags: 0 }, NOW),
        word(&HANDSHAKE),
        Word::busy(NOW),
    ];
    // Even the oldest of a state that has not expired is worth more than the youngest of a lower one.
    for (i, lower) in rising.iter().enumerate() {
        for higher in &rising[i + 1..] {
            let aged = NOW + higher.state().timeout().min(lower.state().timeout());
            assert!(lower.worth(NOW) < higher.worth(NOW));
            assert!(lower.worth(NOW) < higher.worth(aged), "{lower:?} {higher:?}");
        }
    }
    for word in &rising[1..7] {
        assert!(word.worth(NOW) > word.worth(NOW + 1));
        assert!(word.worth(NOW + word.state().timeout()) > 0);
        assert_eq!(word.worth(NOW + word.state().timeout() + 1), 0, "expired");
    }
}

#[test]
fn a_reply_word_names_every_index_and_empty_names_none() {
    assert_eq!(ReplyWord::EMPTY.index(), None);
    for (tag, index) in [(0, 0), (0, 1), (u32::MAX, 0), (7, 262_143), (u32::MAX, u32::MAX - 1)] {
        let word = ReplyWord::new(tag, index);
        assert_ne!(word, ReplyWord::EMPTY);
        assert_eq!((word.tag(), word.index()), (tag, Some(index)));
    }
}

/// Fills a table to three quarters, each flow into the emptier of its buckets; gives the number of
/// flows that found both full.
fn full_pairs(hashes: impl Iterator<Item = u64>) -> u32 {
    const BUCKETS: usize = 1 << 12;
    let mut taken = vec![0usize; BUCKETS];
    let mut full = 0;
    for hash in hashes.take(BUCKETS * WAYS * 3 / 4) {
        let [first, second] = buckets(hash, BUCKETS as u32 - 1).map(|bucket| bucket as usize);
        let emptier = if taken[second] < taken[first] { second } else { first };
        if taken[emptier] == WAYS { full += 1 } else { taken[emptier] += 1 }
    }
    full
}

/// SplitMix64 (S. Vigna, public domain).
fn random(seed: u64) -> impl Iterator<Item = u64> {
    (1u64..).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

#[test]
fn a_table_three_quarters_full_has_room_for_all_but_one_in_ten_thousand() {
    const ROUNDS: u32 = 40;
    let flows = ROUNDS * (1 << 12) * 6;
    let full: u32 = (0..ROUNDS).map(|seed| full_pairs(random(seed.into()))).sum();
    assert!(full < flows / 10_000, "{full} of {flows} random flows found no room");

    // Real tuples are anything but random: few clients with ports in a row, or many in one network.
    let service = Address::v4([203, 0, 113, 10]);
    let tuples = |seed: u64, clients: u32| {
        (0u32..).map(move |i| {
            let client = Address::v4((0x0a00_0000 + i % clients).to_be_bytes());
            tuple_hash(seed, &client, &service, Port::new((32_768 + i / clients) as u16), Port::new(443), 6, 0)
        })
    };
    for clients in [2, 256, 1 << 16] {
        let full: u32 = random(9).take(ROUNDS as usize).map(|seed| full_pairs(tuples(seed, clients))).sum();
        assert!(full < flows / 10_000, "{full} of {flows} flows of {clients} clients found no room");
    }
}

fn seen() -> impl Strategy<Value = Seen> {
    (any::<bool>(), 0..0x20u8).prop_map(|(reply, tcp_flags)| Seen { tcp: true, reply, tcp_flags })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn whatever_arrives_the_word_keeps_its_rules(packets in vec(seen(), 0..24), tag in any::<u32>()) {
        let mut word = Word::begin(tag, true, NOW);
        let (mut answered, mut client_fin, mut backend_fin) = (false, false, false);
        for seen in packets {
            let has = |flags| seen.tcp_flags & flags == flags;
            let before = word;
            if before.restarted_by(seen) {
                (answered, client_fin, backend_fin) = (false, false, false);
            } else if !has(RST) {
                answered |= before.state() == State::Opening && seen.reply && has(SYN_ACK);
                client_fin |= !seen.reply && has(TCP_FIN);
                backend_fin |= seen.reply && has(TCP_FIN);
            }
            word = before.after(seen, NOW);
            prop_assert_eq!(word.tag(), tag);
            prop_assert!(word.live(NOW));
            prop_assert_eq!(word.after(seen, NOW), word, "the same packet again changes nothing");
            match word.state() {
                State::Opening => prop_assert!(before.state() == State::Opening || before.restarted_by(seen)),
                State::Established => prop_assert!(answered && !has(RST)),
                State::Closing => prop_assert!(answered && (client_fin || backend_fin)),
                State::Closed => prop_assert!(
                    has(RST) || before.state() == State::Closed || (answered && client_fin && backend_fin)
                ),
                other => prop_assert!(false, "{:?} is no state of TCP", other),
            }
            let begins_again = before.state() == State::Opening && !answered && !seen.reply;
            let after_reset = if begins_again { State::Opening } else { State::Closed };
            prop_assert!(!has(RST) || word.state() == after_reset);
        }
    }

    #[test]
    fn whatever_a_client_sends_a_one_sided_flow_keeps_its_rules(packets in vec(0..0x20u8, 0..24), tag in any::<u32>()) {
        let mut word = Word::begin_one_sided(tag, true, NOW);
        for flags in packets {
            let (seen, before) = (c(flags), word);
            word = before.after(seen, NOW);
            prop_assert_eq!(word.tag(), tag);
            prop_assert!(word.live(NOW));
            prop_assert_eq!(word.after(seen, NOW), word, "the same packet again changes nothing");
            match word.state() {
                State::Opening => prop_assert!(before.state() == State::Opening || before.restarted_by(seen)),
                State::Established | State::Closing => prop_assert!(before.state() != State::Closed
                    && (before.state() != State::Opening || flags & (ACK | SYN | RST) == ACK)),
                State::Closed => prop_assert!(flags & RST != 0 || before.state() == State::Closed),
                other => prop_assert!(false, "{:?} is no state of TCP", other),
            }
        }
    }

    #[test]
    fn ages_are_differences_of_ticks_up_to_half_the_clock(seen in 0..1u32 << 24, age in 0..1u32 << 23) {
        prop_assert_eq!(Word::begin(7, false, seen).age((seen + age) & 0xff_ffff, &State::TIMEOUTS), age);
        prop_assert_eq!(Word::begin(7, false, seen).age(seen + age, &State::TIMEOUTS), age, "bits above the tick do not count");
    }

    #[test]
    fn a_hash_has_two_different_buckets_within_the_table(hash in any::<u64>(), bits in 1..24u32) {
        let mask = (1 << bits) - 1;
        let [first, second] = buckets(hash, mask);
        prop_assert!(first <= mask && second <= mask && first != second);
        prop_assert_eq!(buckets(hash, 0), [0, 0]);
        prop_assert_eq!(index(first, 7), first * 8 + 7);
        prop_assert_eq!(u64::from(tag(hash)) << 32 | hash & 0xffff_ffff, hash);
    }
}

/// The word of a one-sided flow after the packets that follow the first SYN.
fn one_sided(packets: &[Seen]) -> Word {
    packets.iter().fold(Word::begin_one_sided(7, true, NOW), |word, seen| word.after(*seen, NOW))
}

#[test]
fn where_replies_take_another_way_the_clients_packets_move_the_flow_on() {
    let says: [(State, &[Seen]); 11] = [
        (State::Opening, &[]),
        (State::Opening, &[c(SYN), c(SYN)]),
        (State::Opening, &[c(0)]),
        (State::Opening, &[c(TCP_FIN)]),
        (State::Established, &[c(ACK)]),
        (State::Established, &[c(ACK | 8), c(SYN), c(ACK)]),
        (State::Closing, &[c(FIN)]),
        (State::Closing, &[c(ACK), c(FIN), c(ACK), c(FIN)]),
        (State::Closed, &[c(RST)]),
        (State::Closed, &[c(ACK), c(RST | ACK), c(ACK)]),
        (State::Closed, &[c(ACK), c(FIN), c(RST)]),
    ];
    for (state, packets) in says {
        assert_eq!(one_sided(packets).state(), state, "{packets:?}");
    }
    // A FIN without an acknowledgement left no trace.
    assert_eq!(one_sided(&[c(TCP_FIN), c(ACK)]).state(), State::Established);
}

#[test]
fn a_one_sided_flow_stays_one_when_its_port_is_used_again() {
    for over in [one_sided(&[c(ACK), c(FIN)]), one_sided(&[c(RST)])] {
        assert!(over.restarted_by(c(SYN)));
        assert_eq!(over.after(c(SYN), NOW), Word::begin_one_sided(7, true, NOW));
        assert_eq!(over.after(c(SYN), NOW).after(c(ACK), NOW).state(), State::Established);
    }
}

#[test]
fn a_flood_of_syns_is_worth_less_than_an_established_one_sided_flow() {
    let established = one_sided(&[c(ACK)]);
    let oldest = NOW + State::Opening.timeout();
    assert!(one_sided(&[]).worth(NOW) < established.worth(oldest));
    assert!(one_sided(&[c(SYN), c(SYN)]).worth(NOW) < established.worth(oldest));
}

#[test]
fn a_one_sided_udp_client_that_sends_again_later_is_in_conversation() {
    let udp = Seen { tcp: false, reply: false, tcp_flags: 0 };
    let begin = Word::begin_one_sided(7, false, NOW);
    assert_eq!(begin.state(), State::OneWay);
    assert_eq!(begin.after(udp, NOW), begin, "the burst of the first tick says nothing");
    // The clock of another CPU may be a moment behind.
    assert_eq!(begin.after(udp, NOW - 1).state(), State::OneWay);
    let again = begin.after(udp, NOW + 1);
    assert_eq!(again.state(), State::BothWays);
    assert_eq!(again.after(udp, NOW + 1), again);
    assert_eq!(again.after(udp, NOW + 9).state(), State::BothWays);
}

#[test]
fn a_service_may_keep_each_state_for_a_time_of_its_own() {
    let timeouts = [0, 75, 8, 16, 24, 32, 40, 48];
    let after = |packets: &[Seen]| {
        let begin = Word::begin(7, true, NOW).under(&timeouts, NOW);
        packets.iter().fold(begin, |word, seen| word.after_under(*seen, NOW, &timeouts))
    };
    let reset = [b(RST)];
    let closing = after_handshake(&[c(FIN)]);
    for (state, packets) in [
        (State::Opening, &[][..]),
        (State::Established, &HANDSHAKE[..]),
        (State::Closed, &reset[..]),
        (State::Closing, &closing[..]),
    ] {
        let (word, timeout) = (after(packets), timeouts[state as usize]);
        assert_eq!(word.state(), state);
        assert_eq!(word.age(NOW + 5, &timeouts), 5);
        assert!(!word.expired(NOW + timeout) && word.expired(NOW + timeout + 1), "{state:?}");
    }
    let udp = Seen { tcp: false, reply: false, tcp_flags: 0 };
    let begin = Word::begin_one_sided(7, false, NOW).under(&timeouts, NOW);
    assert_eq!(begin.after_under(udp, NOW, &timeouts), begin, "the burst of the first tick");
    assert_eq!(begin.after_under(udp, NOW + 1, &timeouts).state(), State::BothWays);
    assert!(begin.expired(NOW + 25));
}

#[test]
fn a_flow_that_goes_on_is_as_after_any_packet() {
    let timeouts = &State::TIMEOUTS;
    let begun = [Word::begin(7, true, NOW), Word::begin_one_sided(7, true, NOW), Word::adopt(7, true, NOW)];
    let datagrams = [Word::begin(7, false, NOW), Word::begin_one_sided(7, false, NOW), Word::adopt(7, false, NOW)];
    let (mut went_on, mut not) = (0, 0);
    // Every word that three packets can make, and every packet that may come then.
    for (tcp, word) in begun.map(|word| (true, word)).into_iter().chain(datagrams.map(|word| (false, word))) {
        let flags = if tcp { vec![SYN, SYN_ACK, ACK, FIN, RST, 0, ACK | 8] } else { vec![0] };
        let seen = |n: usize| Seen { tcp, reply: n % 2 == 1, tcp_flags: flags[n / 2 % flags.len()] };
        let count = 2 * flags.len();
        for n in 0..count * count * count {
            let (a, b, c) = (seen(n % count), seen(n / count % count), seen(n / count / count));
            let word = word.after(a, NOW + 2).after(b, NOW + 4);
            let now = NOW + 9;
            match word.goes_on(c, now, timeouts) {
                Some(after) => {
                    assert_eq!(after, word.after_under(c, now, timeouts), "{word:?} {c:?}");
                    went_on += 1;
                }
                None => not += 1,
            }
            assert_eq!(word.goes_on(c, NOW + 1_000_000, timeouts), None, "an old flow goes on");
        }
    }
    assert!(went_on > 100 && not > 100, "{went_on} {not}");
}
