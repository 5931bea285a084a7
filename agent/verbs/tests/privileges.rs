//! The program as it runs: what it may still do.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

/// A line of `/proc/PID/task/TID/status`.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn no_thread_keeps_a_capability_or_can_gain_one() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir-verbs"))
        .arg("listen")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Whatever it says first: then its threads are there.
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with('{'), "{line}");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        threads += 1;
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        // The bounding set takes a capability to change; nobody without it could use it.
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let may = u64::from_str_radix(&field(&own, "CapEff"), 16).unwrap() >> 8 & 1 == 1;
        if may {
            assert_eq!(field(&status, "CapBnd"), "0000000000000000");
        } else {
            println!("not looked at: the bounding set, without CAP_SETPCAP");
        }
    }
    assert!(threads >= 2, "the printing thread is one: {threads}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
