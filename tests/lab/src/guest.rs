//! A virtual machine with Debian's stock kernel and soft-RoCE devices, for tests that need real
//! verbs: `tests/guest/image.sh` makes it from packages, a script of the same directory is what
//! runs in it. Without KVM a boot takes some ten seconds.

use crate::output::say;
use crate::stack::bin_dir;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A boot and a job take half a minute; this is for a busy machine.
const LIMIT_S: &str = "300";
const APPEND: &str = "console=ttyS0 panic=-1 quiet loglevel=1 mitigations=off nokaslr random.trust_cpu=on tsc=reliable";

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn bash(script: &str, args: &[&Path]) -> bool {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "guest"]);
    let status = command.args(args).stdout(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Boots the machine, runs `tests/guest/SCRIPT` in it beside the agent (`/weir-agent`), and gives
/// what it printed by section: a line `=== NAME` begins one. `None`, said aloud, where there can be
/// no machine.
///
/// # Panics
/// The job does not reach its end.
#[must_use]
pub fn run(script: &str) -> Option<BTreeMap<String, String>> {
    let have = |program: &str| bash(&format!("command -v {program}"), &[]);
    for program in ["qemu-system-x86_64", "cpio", "depmod", "xz", "apt-get"] {
        if !have(program) {
            say(&format!(
                "SKIPPED guest: {program} is not installed (make setup-test)"
            ));
            return None;
        }
    }
    let image = root().join("target/guest");
    if !bash(
        "bash \"$1\" \"$2\"",
        &[&root().join("tests/guest/image.sh"), &image],
    ) {
        say("SKIPPED guest: its packages cannot be had");
        return None;
    }
    let dir = std::env::temp_dir().join(format!("weir-guest-{}-{script}", std::process::id()));
    let job = dir.join("job");
    let boot = dir.join("boot.cpio");
    let made = fs::create_dir_all(&job)
        .and_then(|()| fs::copy(bin_dir().join("weir-agent"), job.join("weir-agent")))
        .and_then(|_| fs::copy(root().join("tests/guest").join(script), job.join("job.sh")));
    // A kernel takes several archives one after the other.
    let packed = made.is_ok()
        && bash(
            "(cd \"$1\" && find . | cpio --quiet -o -H newc -R 0:0) | cat \"$2\" - >\"$3\"",
            &[&job, &image.join("base.cpio"), &boot],
        );
    let output = packed.then(|| machine(&image.join("vmlinuz"), &boot));
    fs::remove_dir_all(&dir).ok();
    let output = output.and_then(Result::ok);
    let console = String::from_utf8_lossy(
        &output
            .unwrap_or_else(|| panic!("{script} cannot be packed, or QEMU not be started"))
            .stdout,
    )
    .replace('\r', "");
    assert!(
        console.contains("=== end"),
        "{script} did not end:\n{console}"
    );
    Some(sections(&console))
}

fn machine(kernel: &Path, initrd: &Path) -> std::io::Result<std::process::Output> {
    Command::new("timeout")
        .args([LIMIT_S, "qemu-system-x86_64", "-accel", "tcg,thread=multi"])
        .args(["-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "2048"])
        .args(["-nographic", "-nodefaults", "-serial", "stdio"])
        .args(["-no-reboot", "-append", APPEND, "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .output()
}

fn sections(console: &str) -> BTreeMap<String, String> {
    let mut sections: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in console.lines() {
        match line.split_once("=== ") {
            Some((_, section)) => name = section.to_owned(),
            None => {
                let section = sections.entry(name.clone()).or_default();
                section.push_str(line);
                section.push('\n');
            }
        }
    }
    sections
}
