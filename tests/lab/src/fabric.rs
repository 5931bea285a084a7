//! Builds the fabric of [`crate::plan`] out of network namespaces, and holds it until it is dropped.
//!
//! Every node is a namespace `weir-NAME-NODE`; forwarding, ECMP and shaping are the kernel's own. Links are
//! veth pairs with HTB and a bfifo on both ends, segmentation offload off (a 64 KB segment would be one
//! packet to the shaper). Leaves hash on source and destination address only (`fib_multipath_hash_policy=3`,
//! `fields=3`): policy 1 does not follow the 5-tuple over veth, and with ports left out a flow's path is
//! known before it exists, so that a placement can be made on purpose (see [`crate::placement`]).

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    plan::{CONTROLLER_ADDRESS, FabricSpec, Role},
    shell,
    state::{self, LabState},
    sys, teardown,
};

/// The kernel looks at a link's carrier once a second.
const CARRIER_DEADLINE: Duration = Duration::from_secs(10);
/// Sysctls of every namespace, below /proc/sys/net/ipv4 or ipv6.
const SYSCTLS: [(&str, &str); 11] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/fib_multipath_hash_policy", "3"),
    // Bit 0 source address, bit 1 destination address.
    ("ipv4/fib_multipath_hash_fields", "3"),
    ("ipv4/fib_multipath_hash_seed", "1"),
    // The kernel's default may be bbr, which paces around the very queue that the lab is about.
    ("ipv4/tcp_congestion_control", "cubic"),
    // A later job must not start from what an earlier one learnt.
    ("ipv4/tcp_no_metrics_save", "1"),
    // A rank that waited for its neighbour shall go on at the rate it had.
    ("ipv4/tcp_slow_start_after_idle", "0"),
];

/// A running fabric. Dropping it removes everything it made, processes inside it included.
#[derive(Debug)]
pub struct Fabric {
    spec: FabricSpec,
    state: LabState,
    down: bool,
}

impl Fabric {
    /// Builds the fabric. Leftovers of labs whose owner died are removed first.
    ///
    /// # Errors
    /// When the spec is out of range, not root, or the kernel refuses a part; what was built is removed.
    pub fn up(spec: FabricSpec) -> Result<Self> {
        spec.check()?;
        ensure!(sys::is_root(), "a fabric of network namespaces needs root");
        teardown::remove_stale()?;
        let fabric = Self::register(spec)?;
        fabric.build().context("build the fabric")?;
        Ok(fabric)
    }

    /// Opens the fabric called `name` that another process built; dropping this one leaves it alone.
    ///
    /// # Errors
    /// When there is no such lab. The spec is taken to be the default one.
    pub fn attach(name: &str) -> Result<Self> {
        let state = state::read(name)?.with_context(|| format!("no lab is called {name}"))?;
        let spec = FabricSpec {
            name: name.to_owned(),
            ..FabricSpec::default()
        };
        Ok(Self {
            spec,
            state,
            down: true,
        })
    }

    /// Writes down what will be made, before any of it is.
    fn register(spec: FabricSpec) -> Result<Self> {
        let owner_pid = std::process::id();
        let mut namespaces: Vec<String> = spec
            .nodes()
            .into_iter()
            .map(|(node, _)| namespace_of(&spec.name, &node))
            .collect();
        namespaces.push(namespace_of(&spec.name, "ctl"));
        let lock = state::lock()?;
        if state::read(&spec.name)?.is_some() {
            bail!("a lab called {0} exists: weir-lab down {0}", spec.name);
        }
        let state = LabState {
            owner_pid,
            owner_start_ticks: sys::process_start_ticks(owner_pid).context("read /proc/self")?,
            kept: false,
            namespaces,
            temp_dir: std::env::temp_dir().join(format!("weir-lab-{}", spec.name)),
            congestion_before: state::allow_cubic(&lock)?,
            name: spec.name.clone(),
        };
        state.write()?;
        let fabric = Self {
            spec,
            state,
            down: false,
        };
        // On an error from here on the drop of `fabric` takes the lock itself.
        drop(lock);
        fabric.write_files()?;
        Ok(fabric)
    }

    fn write_files(&self) -> Result<()> {
        let _lock = state::lock()?;
        let write = |path: &Path, text: &str| {
            fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        fs::create_dir_all(&self.state.temp_dir)
            .with_context(|| format!("create {}", self.state.temp_dir.display()))?;
        for namespace in &self.state.namespaces {
            let dir = Path::new("/etc/netns").join(namespace);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            write(&dir.join("hosts"), &self.spec.hosts_file())?;
            // No server: a look-up of an unknown name fails at once instead of after a timeout.
            write(
                &dir.join("resolv.conf"),
                "# There is no resolver in the lab.\n",
            )?;
        }
        Ok(())
    }

    fn build(&self) -> Result<()> {
        let added: Vec<String> = self
            .state
            .namespaces
            .iter()
            .map(|ns| format!("netns add {ns}\n"))
            .collect();
        shell::batch("ip", &added.concat())?;
        self.in_every_namespace(|_| {
            for (key, value) in SYSCTLS {
                write_sysctl(key, value)?;
            }
            Ok(())
        })?;
        shell::batch("ip", &self.links_batch())?;
        self.in_every_namespace(|node| self.configure_ports(node))?;
        // Only now has every port a carrier, without which the kernel takes no nexthop.
        self.in_every_namespace(|node| self.add_routes(node))?;
        self.wait_for_carriers()
    }

    /// The kernel says of some routes for up to a second that their link has no carrier.
    fn wait_for_carriers(&self) -> Result<()> {
        let deadline = Instant::now() + CARRIER_DEADLINE;
        for (node, _) in self.nodes() {
            let routes = || {
                sys::in_netns(&self.namespace(&node), || {
                    shell::run("ip", &["-4", "route", "show", "table", "all"])
                })
            };
            while routes()?.contains("linkdown") {
                ensure!(
                    Instant::now() < deadline,
                    "a link of {node} does not come up"
                );
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn links_batch(&self) -> String {
        let ctl = self.namespace("ctl");
        let mut lines: Vec<String> = self
            .spec
            .links()
            .iter()
            .map(|link| {
                format!(
                    "link add {} netns {} type veth peer name {} netns {}\n",
                    link.a.port,
                    self.namespace(&link.a.node),
                    link.b.port,
                    self.namespace(&link.b.node)
                )
            })
            .collect();
        for (node, _) in self.spec.nodes() {
            lines.push(format!(
                "link add mgmt0 netns {} type veth peer name {node} netns {ctl}\n",
                self.namespace(&node)
            ));
        }
        lines.concat()
    }

    /// Runs inside the node's namespace.
    fn configure_ports(&self, node: &str) -> Result<()> {
        let nodes = self.spec.nodes();
        let mut ip = String::from("link set lo up\n");
        let mut tc = String::new();
        let Some(index) = nodes.iter().position(|(name, _)| name == node) else {
            ip.push_str("link add br0 type bridge\n");
            ip.push_str(&format!("addr add {CONTROLLER_ADDRESS}/16 dev br0\n"));
            for (port, _) in &nodes {
                ip.push_str(&format!("link set {port} master br0 up\n"));
            }
            ip.push_str("link set br0 up\n");
            shell::batch("ip", &ip)?;
            return Ok(());
        };
        ip.push_str(&format!(
            "addr add {} dev mgmt0\nlink set mgmt0 up\n",
            management_address(index)
        ));
        let mut ports = Vec::new();
        for link in self.spec.links() {
            for end in [&link.a, &link.b] {
                if end.node == node {
                    ip.push_str(&format!(
                        "addr add {} dev {}\nlink set {} up\n",
                        end.address, end.port, end.port
                    ));
                    tc.push_str(&self.spec.shape_batch(&end.port, link.rate_mbit));
                    ports.push(end.port.clone());
                }
            }
        }
        for port in &ports {
            shell::run(
                "ethtool",
                &["-K", port, "tso", "off", "gso", "off", "gro", "off"],
            )?;
        }
        shell::batch("ip", &ip)?;
        shell::batch("tc", &tc)?;
        Ok(())
    }

    /// Runs inside the node's namespace.
    fn add_routes(&self, node: &str) -> Result<()> {
        let nodes = self.spec.nodes();
        let Some((_, role)) = nodes.iter().find(|(name, _)| name == node) else {
            return Ok(());
        };
        shell::batch("ip", &self.spec.routes_batch(node, *role)).map(drop)
    }

    /// Runs `body` in each namespace, on threads of its own; the argument is the node's short name.
    fn in_every_namespace(&self, body: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
        let mut nodes: Vec<String> = self.spec.nodes().into_iter().map(|(n, _)| n).collect();
        nodes.push("ctl".into());
        thread::scope(|scope| {
            let running: Vec<_> = nodes
                .iter()
                .map(|node| {
                    let (namespace, body) = (self.namespace(node), &body);
                    scope.spawn(move || {
                        sys::in_netns(&namespace, || body(node)).with_context(|| namespace.clone())
                    })
                })
                .collect();
            running
                .into_iter()
                .try_for_each(|t| t.join().map_err(|_| anyhow!("a builder thread panicked"))?)
        })
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &FabricSpec {
        &self.spec
    }

    /// Name of the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Name of the namespace of a node such as `l1`, or of the controller's with `ctl`.
    #[must_use]
    pub fn namespace(&self, node: &str) -> String {
        namespace_of(&self.spec.name, node)
    }

    /// Every namespace of the lab, the controller's included.
    #[must_use]
    pub fn namespaces(&self) -> &[String] {
        &self.state.namespaces
    }

    /// A directory for files of this lab; removed with it.
    #[must_use]
    pub fn temp_dir(&self) -> &Path {
        &self.state.temp_dir
    }

    /// Every node and its role.
    #[must_use]
    pub fn nodes(&self) -> Vec<(String, Role)> {
        self.spec.nodes()
    }

    /// The topology file of the controller.
    #[must_use]
    pub fn topology_yaml(&self) -> String {
        self.spec.topology_yaml()
    }

    /// Takes a leaf's uplink (1-based) down, as a pulled cable would. The kernel then deletes its nexthop
    /// object.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn link_down(&self, leaf: &str, uplink: u8) -> Result<()> {
        self.set_link(leaf, uplink, "down")
    }

    /// Takes a leaf's uplink up again. The nexthop object does not come back by itself.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn link_up(&self, leaf: &str, uplink: u8) -> Result<()> {
        self.set_link(leaf, uplink, "up")
    }

    fn set_link(&self, leaf: &str, uplink: u8, to: &str) -> Result<()> {
        let port = format!("up{uplink}");
        let namespace = self.namespace(leaf);
        shell::run("ip", &["-n", &namespace, "link", "set", &port, to]).map(drop)
    }

    /// Bytes that a port has sent since it was made.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn tx_bytes(&self, node: &str, port: &str) -> Result<u64> {
        let namespace = self.namespace(node);
        let text = shell::run("ip", &["-n", &namespace, "-s", "-j", "link", "show", port])?;
        let value: serde_json::Value = serde_json::from_str(&text).context("ip -j link")?;
        value[0]["stats64"]["tx"]["bytes"]
            .as_u64()
            .with_context(|| format!("{namespace} {port}: no byte counter"))
    }

    /// Leaves the lab running when this process ends; `weir-lab down NAME` removes it.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn keep(mut self) -> Result<()> {
        self.state.kept = true;
        self.state.write()?;
        self.down = true;
        Ok(())
    }

    /// Removes everything, and says what could not be removed (which dropping cannot).
    ///
    /// # Errors
    /// When something is left.
    pub fn down(mut self) -> Result<()> {
        self.down = true;
        teardown::remove(&self.state)
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        if !self.down
            && let Err(error) = teardown::remove(&self.state)
        {
            crate::output::warn(&format!(
                "the lab {} is not wholly removed: {error:#}",
                self.state.name
            ));
        }
    }
}

fn namespace_of(lab: &str, node: &str) -> String {
    format!("weir-{lab}-{node}")
}

/// Address of the node at `index` on the management network; .0.1 is the controller's.
fn management_address(index: usize) -> String {
    format!("172.31.{}.{}/16", 1 + index / 200, 1 + index % 200)
}

/// Writes a sysctl of the namespace that the calling thread is in.
pub(crate) fn write_sysctl(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    // A kernel built without IPv6 has nothing to switch off.
    if key.starts_with("ipv6/") && !path.exists() {
        return Ok(());
    }
    fs::write(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}
