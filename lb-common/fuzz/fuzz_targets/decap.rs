//! The backend's end of tunnels over arbitrary bytes: see `lb_common::fuzz_decap`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lb_common::fuzz_decap::check(data);
});
