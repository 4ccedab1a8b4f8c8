//! The way to a backend is asked of the kernel's tables once in a while, or for each packet where routes
//! vary.

use lb_common::{
    abi::{Mode, Protocol},
    flow::TCP_SYN,
};

use crate::lab::{Lab, Served, Side, Spec, from_client, ip_batch, lab, request};

const FORGET: &str = "neigh del 10.0.0.11 dev back\n";
const KNOW: &str = "neigh replace 10.0.0.11 lladdr 02:00:00:00:02:11 dev back nud permanent\n";

fn served(lab: &mut Lab, mode: Mode) -> Served {
    lab.serve(Spec::new(true, Protocol::Tcp, mode))
}

fn exit(lab: &mut Lab, served: &Served, port: u16) -> &'static str {
    lab.run(Side::Front, &from_client(&request(served, port, TCP_SYN))).0
}

#[test]
fn the_way_to_a_backend_holds_for_160_ms_and_no_longer() {
    for mode in [Mode::FullNat, Mode::DsrL2, Mode::DsrIpip] {
        lab(move |lab| {
            let served = served(lab, mode);
            // A machine that stands still for a tick makes the first part meaningless: again then.
            let kept = (0..20).any(|_| {
                ip_batch(KNOW);
                lab.next_tick();
                let tick = lab.now();
                assert_eq!(exit(lab, &served, 40_000), "redirect");
                ip_batch(FORGET);
                let exit = exit(lab, &served, 40_001);
                lab.now() == tick && exit == "redirect"
            });
            assert!(kept, "{mode:?}: the way is asked for each packet");
            lab.until_ways_are_asked_for();
            assert_eq!(exit(lab, &served, 40_002), "drop", "the neighbour is gone");
            ip_batch(KNOW);
            assert_eq!(exit(lab, &served, 40_003), "redirect", "what was not found is not kept");
        });
    }
}

#[test]
fn where_routes_vary_each_packet_asks() {
    lab(|lab| {
        let served = served(lab, Mode::FullNat);
        lab.set_routes_vary(true);
        lab.next_tick();
        assert_eq!(exit(lab, &served, 40_000), "redirect");
        ip_batch(FORGET);
        assert_eq!(exit(lab, &served, 40_001), "drop");
    });
}
