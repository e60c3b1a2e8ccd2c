//! The tunnel's acceptor facing a hostile dialler: one stream at a time, no byte outside of one, no big answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| outrigger_proto::tunnel::fuzz::acceptor(bytes));
