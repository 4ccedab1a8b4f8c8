//! The whole data path over sequences of packets, changes and time: see `lb_host`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lb_host::check(data);
});
