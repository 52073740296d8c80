#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tierd_fuzz::bounded(tierd_tests::hostile::records, bytes));
