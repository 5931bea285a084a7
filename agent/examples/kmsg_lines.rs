//! Lines of the kernel's log that the rules take in a second, one in ten of which is an event.
//! Prints JSON.

use std::io::Write as _;
use std::time::{Duration, Instant};
use weir_agent::kmsg::{Lines, record};

fn main() -> std::io::Result<()> {
    let lines: Vec<String> = (0u32..1000)
        .map(|n| match n % 10 {
            0 => format!("4,{n},1,-;NVRM: Xid (PCI:0000:{:02x}:00): 13, pid={n}, name=python, Graphics Exception", n % 256),
            1 => format!("6,{n},1,-;mlx5_core 0000:41:00.0: print_health_info:372:(pid 0): assert_var[{n}] 0xffffffff"),
            _ => format!("6,{n},1,-;systemd[1]: Started Session {n} of User root, and some more text."),
        })
        .collect();
    let mut rules = Lines::default();
    let (mut read, mut events) = (0u64, 0u64);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        for line in &lines {
            let record = record::parse(line.as_bytes());
            let event = record.and_then(|r| rules.line(r.text, started.elapsed()));
            events += u64::from(event.is_some());
            read += 1;
        }
    }
    let per_second = read as f64 / started.elapsed().as_secs_f64();
    writeln!(
        std::io::stdout(),
        "{{\"kmsg_lines_per_s\": {per_second:.0}, \"events\": {events}}}"
    )
}
