//! Says before anything is built what is missing on this machine, and what to do about it.

use std::{env, path::Path};

use crate::{output, shell, state, sys};

/// What the machine lacks.
#[derive(Debug, Default)]
pub struct Preflight {
    /// Without these nothing can be shown.
    pub missing: Vec<String>,
    /// Without these it goes on.
    pub notices: Vec<String>,
}

/// Programs that the lab calls, and the Debian package that has each.
const PROGRAMS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ethtool", "ethtool"),
    ("mpirun", "openmpi-bin"),
    ("mpicc", "libopenmpi-dev"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Looks at rights, programs and the kernel. Leaves nothing behind.
#[must_use]
pub fn preflight() -> Preflight {
    let mut found = Preflight::default();
    for (program, package) in PROGRAMS {
        if !in_path(program) {
            found.missing.push(format!(
                "{program} is not installed (package {package}): run `make setup`"
            ));
        }
    }
    if !sys::is_root() {
        found.missing.push(
            "not root: network namespaces need CAP_NET_ADMIN and CAP_SYS_ADMIN: run it with sudo"
                .into(),
        );
    }
    if found.missing.is_empty()
        && let Err(error) = try_kernel()
    {
        found.missing.push(format!(
            "the kernel refuses a part of the fabric: {error:#}"
        ));
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        found.notices.push(
            "no /sys/kernel/btf/vmlinux: agents will run without eBPF (needs CONFIG_DEBUG_INFO_BTF)"
                .into(),
        );
    }
    found
}

/// Whether a test has to be skipped because the lab cannot run here, which it says aloud.
///
/// # Panics
/// With `WEIR_REQUIRE_LAB` set it may not be skipped.
#[must_use]
pub fn skipped(test: &str) -> bool {
    let missing = preflight().missing;
    assert!(
        missing.is_empty() || env::var_os("WEIR_REQUIRE_LAB").is_none(),
        "{missing:?}"
    );
    if !missing.is_empty() {
        output::say(&format!("SKIPPED {test}: {}", missing.join("; ")));
    }
    !missing.is_empty()
}

fn in_path(program: &str) -> bool {
    env::split_paths(&shell::search_path()).any(|dir| dir.join(program).is_file())
}

/// Builds one of each part inside a namespace that is then removed.
fn try_kernel() -> anyhow::Result<()> {
    let namespace = format!("weir-{}-try", state::unique_name());
    shell::run("ip", &["netns", "add", &namespace])?;
    let tried = sys::in_netns(&namespace, || {
        shell::run(
            "ip",
            &[
                "link", "add", "try0", "type", "veth", "peer", "name", "try1",
            ],
        )?;
        shell::run("ip", &["link", "add", "try2", "type", "bridge"])?;
        shell::run(
            "tc",
            &[
                "qdisc", "add", "dev", "try0", "root", "handle", "1:", "htb", "default", "10",
            ],
        )?;
        shell::run("ip", &["addr", "add", "192.0.2.1/31", "dev", "try0"])?;
        shell::run("ip", &["link", "set", "try1", "up"])?;
        shell::run("ip", &["link", "set", "try0", "up"])?;
        shell::run(
            "ip",
            &[
                "nexthop",
                "add",
                "id",
                "1",
                "via",
                "192.0.2.0",
                "dev",
                "try0",
            ],
        )
    });
    let removed = shell::run("ip", &["netns", "del", &namespace]);
    tried.and(removed).map(drop)
}
