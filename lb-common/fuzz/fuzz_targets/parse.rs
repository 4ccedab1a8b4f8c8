//! Parser, translation and answers over arbitrary bytes: see `lb_common::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lb_common::fuzz::check(data);
});
