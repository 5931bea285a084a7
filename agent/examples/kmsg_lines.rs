//! Measures how many records of the kernel log are turned into events per second, on one core: one
//! in ten is a fault, the others are what a healthy kernel logs. Prints one JSON object.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use weir_agent::{
    kmsg::{Rules, limiter::Limiter, record::Record},
    source::Event,
};

const MEASURED: Duration = Duration::from_secs(1);

const HEALTHY: [&str; 9] = [
    "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
    "nvidia-nvswitch2: open (major=510)",
    "perf: interrupt took too long (2509 > 2500), lowering kernel.perf_event_max_sample_rate to 79500",
    "ata3: SATA link down (SStatus 0 SControl 300)",
    "mlx5_core 0000:41:00.1: E-Switch: Total vports 10, per vport: max uc(128) max mc(2048)",
    "audit: type=1400 audit(1753325017.312:11): apparmor=\\x22STATUS\\x22 operation=\\x22profile_load\\x22",
    "NVRM: GPU at PCI:0000:9b:00: GPU-00000000-0000-0000-0000-000000000000",
    " ? entry_SYSCALL_64_after_hwframe+0x67/0xd1",
    "usb 1-2: New USB device found, idVendor=174c, idProduct=2074, bcdDevice= 2.00",
];

const FAULTS: [&str; 4] = [
    "NVRM: Xid (PCI:0000:9b:00): 119, pid=2024, name=python, Timeout after 6s of waiting for RPC response",
    "mlx5_core 0000:41:00.0 eth2: Link down",
    "pcieport 0000:00:06.0: AER: Corrected error received: 0000:02:00.0",
    "mlx5_core 0000:81:00.0: Port module event[error]: module 0, Cable error, High Temperature",
];

fn main() -> std::io::Result<()> {
    let records: Vec<String> = FAULTS
        .iter()
        .flat_map(|fault| HEALTHY.iter().chain([fault]))
        .enumerate()
        .map(|(n, text)| {
            format!("6,{n},{n}000,-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:41:00.0\n")
        })
        .collect();
    let mut rules = Rules::default();
    let mut limiter = Limiter::default();
    let (mut lines, mut events) = (0u64, 0u64);
    let started = Instant::now();
    while started.elapsed() < MEASURED {
        for record in &records {
            lines += 1;
            let found: Option<Event> =
                Record::parse(record.as_bytes()).and_then(|r| rules.event(&r));
            if let Some(event) = found {
                events += 1;
                std::hint::black_box(limiter.admit(&event, started.elapsed()));
            }
        }
    }
    let elapsed = started.elapsed();
    assert_eq!(events * 10, lines, "one record in ten is a fault");
    let per_second = u128::from(lines) * 1_000_000_000 / elapsed.as_nanos();
    writeln!(std::io::stdout(), "{{\"kmsg_lines_per_s\": {per_second}}}")
}
