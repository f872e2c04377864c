#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| muster_fuzz::run("audience_file", bytes));
