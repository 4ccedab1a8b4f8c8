//! Another version takes the maps over, with a hundred thousand live flows, and gives them back.

use std::{collections::BTreeMap, path::PathBuf};

use aya::maps::MapInfo;
use lb_common::{
    abi::{Mode, Protocol, names},
    flow::{TCP_ACK, TCP_SYN},
    verdict::Reason,
};
use lb_userspace::{
    config::Limits,
    dataplane::kernel::{Pins, attachments, load, load_as_if, upgrade},
};

use crate::{
    lab::{LIMITS, Lab, Side, Spec, lab, lab_of, run},
    reload::{ROOM, attach, frame, front, options, serve_twenty},
};

/// Where the lab's maps are, for a program with these limits.
fn place(lab: &mut Lab, flows: u32) -> (PathBuf, Limits) {
    (lab.pin_dir_to_reload().to_owned(), Limits { flows, ..LIMITS })
}

/// The program on each interface.
fn attached(lab: &Lab) -> BTreeMap<String, u32> {
    let all = attachments(&Pins::new(lab.pin_dir())).unwrap();
    all.into_iter().map(|attachment| (attachment.interface, attachment.program_id)).collect()
}

fn elements(lab: &Lab, map: &str) -> u32 {
    MapInfo::from_pin(Pins::new(lab.pin_dir()).map(map)).unwrap().max_entries()
}

#[test]
fn a_hundred_thousand_flows_live_through_an_upgrade_of_the_layout_and_back() {
    lab_of(ROOM, |lab| {
        lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        for number in 0..100_000 {
            assert_eq!(lab.run(Side::Front, &frame(number, TCP_SYN)).0, "redirect");
        }
        let flows = lab.flows();
        assert_eq!(flows.len(), 100_000);
        let sample: Vec<(u32, Vec<u8>)> =
            (0..100_000).step_by(997).map(|n| (n, lab.run(Side::Front, &frame(n, TCP_ACK)).1)).collect();
        let counted = lab.stats().verdicts().unwrap()[&Reason::ToBackend];
        let before = attached(lab);

        // A version that knows two more reasons.
        let (pin_dir, limits) = place(lab, ROOM);
        let options = options(&pin_dir, &limits);
        let mut newer = load_as_if(&options, names::VERDICT_STATS, Reason::COUNT + 2).unwrap();
        assert_eq!(attached(lab), before, "until it is attached the old one works");
        attach(&mut newer);
        assert_eq!(elements(lab, names::VERDICT_STATS), Reason::COUNT + 2);
        let now = lb_userspace::dataplane::kernel::Stats::open(&pin_dir).unwrap();
        assert_eq!(now.verdicts().unwrap()[&Reason::ToBackend], counted, "no counter is lost");
        assert_eq!(lab.flows().len(), 100_000);
        for (number, wanted) in &sample {
            let (exit, out) = run(newer.program().unwrap(), front(), &frame(*number, TCP_ACK));
            assert_eq!((exit, &out), ("redirect", wanted), "flow {number} is where it was");
        }

        // This version cannot begin over the longer map, but can when that is taken back.
        drop(newer);
        let refused = format!("{:#}", load(&options).err().expect("it is too long"));
        assert!(refused.contains("verdict_stats") && refused.contains("lb detach"), "{refused}");
        let back = upgrade::rollback(&pin_dir).unwrap();
        assert_eq!(
            (back.interfaces.as_slice(), back.maps.as_slice()),
            (&["back".to_owned(), "front".to_owned()][..], &[names::VERDICT_STATS][..])
        );
        assert_eq!(attached(lab), before);
        assert_eq!(elements(lab, names::VERDICT_STATS), Reason::COUNT);
        for (number, wanted) in &sample {
            assert_eq!(&lab.run(Side::Front, &frame(*number, TCP_ACK)).1, wanted);
        }
        let mut again = load(&options).unwrap();
        attach(&mut again);
        assert_eq!(lab.flows().len(), 100_000);
    });
}

#[test]
fn an_upgrade_that_was_cut_short_begins_again() {
    lab(|lab| {
        lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        lab.run(Side::Front, &frame(1, TCP_SYN));
        let counted = lab.stats().verdicts().unwrap()[&Reason::ToBackend];
        let (pin_dir, limits) = place(lab, LIMITS.flows);
        // As if the agent had ended after it made the new map and before it filled that.
        let pins = Pins::new(&pin_dir);
        let map = pins.map(names::VERDICT_STATS);
        let aside = map.with_file_name(format!("aside-{}", names::VERDICT_STATS));
        std::fs::rename(&map, &aside).unwrap();
        let options = options(&pin_dir, &limits);
        drop(load_as_if(&options, names::VERDICT_STATS, Reason::COUNT + 1).unwrap());
        assert!(!aside.exists());
        let now = lb_userspace::dataplane::kernel::Stats::open(&pin_dir).unwrap();
        assert_eq!(now.verdicts().unwrap()[&Reason::ToBackend], counted);
    });
}

#[test]
fn a_check_gives_both_programs_the_same_packets_and_changes_nothing() {
    lab(|lab| {
        serve_twenty(lab);
        let before = (lab.flows().len(), attached(lab), elements(lab, names::VERDICT_STATS));
        let pins: Vec<_> =
            std::fs::read_dir(Pins::new(lab.pin_dir()).dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let outlook = upgrade::outlook(lab.pin_dir()).unwrap();
        assert!(outlook.maps.iter().all(|(_, fit)| fit.is_ok()), "{outlook:?}");
        let program = outlook.program.unwrap();
        assert!(program.same && program.compared > 20, "{program:?}");
        assert_eq!(program.differences, Vec::<String>::new());
        assert_eq!((lab.flows().len(), attached(lab), elements(lab, names::VERDICT_STATS)), before);
        let after: Vec<_> =
            std::fs::read_dir(Pins::new(lab.pin_dir()).dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(pins, after);

        // Over a map of another layout it does not even load.
        let (pin_dir, limits) = place(lab, LIMITS.flows);
        let options = options(&pin_dir, &limits);
        attach(&mut load_as_if(&options, names::VERDICT_STATS, Reason::COUNT + 1).unwrap());
        let outlook = upgrade::outlook(&pin_dir).unwrap();
        assert!(outlook.program.is_none());
        let refused: Vec<_> = outlook.maps.iter().filter(|(_, fit)| fit.is_err()).map(|(name, _)| *name).collect();
        assert_eq!(refused, [names::VERDICT_STATS]);
    });
}
