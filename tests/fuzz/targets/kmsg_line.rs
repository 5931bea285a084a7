#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    weir_agent::fuzz::kmsg_line(bytes);
});
