//! What a fabric consists of: names, addresses, links. Pure: nothing here touches the machine.
//!
//! ```text
//!        s1          s2            spines   ports down1 down2 (one per leaf)
//!       /  \        /  \
//!      /    \______/____\
//!     l1          l2               leaves   ports up1 up2 (one per spine), h11 h12 .. (one per host)
//!   / | | \     / | | \
//!  h11 ..h14   h21 ..h24           hosts    port eth0
//! ```
//! Host `hLN` (the Nth of leaf L) has 10.L.N.2/24, its leaf 10.L.N.1. Leaf L and spine S share
//! 10.0.LS.0/31, the leaf having the even address. Besides, each node has a port `mgmt0` in 172.31.0.0/16 to a
//! bridge in the controller's namespace: unshaped, and in nobody's topology.

use std::fmt::Write;

use anyhow::{Result, ensure};

/// The address of the controller on the management network.
pub const CONTROLLER_ADDRESS: &str = "172.31.0.1";
/// The ECMP group of each leaf; its members are the nexthop objects 1..=spines.
pub const GROUP: u32 = 100;

/// What to build.
#[derive(Debug, Clone)]
pub struct FabricSpec {
    /// Part of every name on the machine; lower-case letters and digits, at most 20. Unique by default.
    pub name: String,
    /// Leaf switches, 2..=9.
    pub leaves: u8,
    /// Spine switches, 1..=9.
    pub spines: u8,
    /// Hosts below each leaf, 1..=9.
    pub hosts_per_leaf: u8,
    /// Rate of the links between leaf and spine, each direction.
    pub rate_mbit: u32,
    /// Rate of the links between host and leaf, each direction.
    pub host_rate_mbit: u32,
    /// Limit of each port's queue.
    pub queue_bytes: u32,
}

impl Default for FabricSpec {
    fn default() -> Self {
        Self {
            name: crate::state::unique_name(),
            leaves: 2,
            spines: 2,
            hosts_per_leaf: 4,
            // Two cores carry eight such links at rate with segmentation offload switched off.
            rate_mbit: 200,
            host_rate_mbit: 200,
            // 10 ms at 200 Mbit/s: deep enough to be seen, shallow enough to drop under a collision.
            queue_bytes: 262_144,
        }
    }
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs ranks of the job.
    Host,
    /// Chooses between the spines.
    Leaf,
    /// Joins the leaves.
    Spine,
}

impl Role {
    /// The word for it in a topology file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Leaf => "leaf",
            Self::Spine => "spine",
        }
    }
}

/// One end of a link.
#[derive(Debug, Clone)]
pub struct End {
    /// Short name of the node, such as `l1`.
    pub node: String,
    /// Name of the interface inside the node's namespace.
    pub port: String,
    /// Address with prefix length.
    pub address: String,
}

/// A link; `a` is the lower end (host below leaf, leaf below spine).
#[derive(Debug, Clone)]
pub struct Link {
    /// Lower end.
    pub a: End,
    /// Upper end.
    pub b: End,
    /// Rate of each direction.
    pub rate_mbit: u32,
}

impl FabricSpec {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the field and its range.
    pub fn check(&self) -> Result<()> {
        let name_ok = (1..=20).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        ensure!(
            name_ok,
            "name {:?}: want 1 to 20 lower-case letters and digits",
            self.name
        );
        ensure!(
            (2..=9).contains(&self.leaves),
            "leaves {}: want 2 to 9",
            self.leaves
        );
        ensure!(
            (1..=9).contains(&self.spines),
            "spines {}: want 1 to 9",
            self.spines
        );
        ensure!(
            (1..=9).contains(&self.hosts_per_leaf),
            "hosts_per_leaf {}: want 1 to 9",
            self.hosts_per_leaf
        );
        ensure!(
            self.rate_mbit > 0 && self.host_rate_mbit > 0,
            "rates: want more than 0"
        );
        ensure!(
            self.queue_bytes >= 3_000,
            "queue_bytes {}: want at least 3000",
            self.queue_bytes
        );
        Ok(())
    }

    /// Every node and its role: hosts, leaves, spines.
    #[must_use]
    pub fn nodes(&self) -> Vec<(String, Role)> {
        let hosts = self.hosts().into_iter().map(|h| (h, Role::Host));
        let leaves = (1..=self.leaves).map(|l| (format!("l{l}"), Role::Leaf));
        let spines = (1..=self.spines).map(|s| (format!("s{s}"), Role::Spine));
        hosts.chain(leaves).chain(spines).collect()
    }

    /// Names of all hosts, leaf by leaf.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        (1..=self.leaves)
            .flat_map(|l| (1..=self.hosts_per_leaf).map(move |h| format!("h{l}{h}")))
            .collect()
    }

    /// Hosts taken from each leaf in turn: in a ring of this order every step crosses the spines.
    #[must_use]
    pub fn interleaved_hosts(&self) -> Vec<String> {
        (1..=self.hosts_per_leaf)
            .flat_map(|h| (1..=self.leaves).map(move |l| format!("h{l}{h}")))
            .collect()
    }

    /// Every link of the fabric (not of the management network).
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        let end = |node: String, port: String, address: String| End {
            node,
            port,
            address,
        };
        let mut links = Vec::new();
        for l in 1..=self.leaves {
            for s in 1..=self.spines {
                links.push(Link {
                    a: end(
                        format!("l{l}"),
                        format!("up{s}"),
                        format!("10.0.{l}{s}.0/31"),
                    ),
                    b: end(
                        format!("s{s}"),
                        format!("down{l}"),
                        format!("10.0.{l}{s}.1/31"),
                    ),
                    rate_mbit: self.rate_mbit,
                });
            }
            for h in 1..=self.hosts_per_leaf {
                links.push(Link {
                    a: end(
                        format!("h{l}{h}"),
                        "eth0".into(),
                        format!("10.{l}.{h}.2/24"),
                    ),
                    b: end(
                        format!("l{l}"),
                        format!("h{l}{h}"),
                        format!("10.{l}.{h}.1/24"),
                    ),
                    rate_mbit: self.host_rate_mbit,
                });
            }
        }
        links
    }

    /// The `ip` commands that give one node its routes and, on a leaf, its ECMP group.
    #[must_use]
    pub fn routes_batch(&self, node: &str, role: Role) -> String {
        let index = &node[1..];
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        match role {
            Role::Host => line(format!("route add default via {}", gateway_of(node))),
            Role::Leaf => {
                for s in 1..=self.spines {
                    line(format!(
                        "nexthop add id {s} via 10.0.{index}{s}.1 dev up{s}"
                    ));
                }
                let members: Vec<_> = (1..=self.spines).map(|s| s.to_string()).collect();
                line(format!(
                    "nexthop add id {GROUP} group {}",
                    members.join("/")
                ));
                for other in (1..=self.leaves).filter(|o| o.to_string() != index) {
                    line(format!("route add 10.{other}.0.0/16 nhid {GROUP}"));
                }
            }
            Role::Spine => {
                for l in 1..=self.leaves {
                    line(format!("route add 10.{l}.0.0/16 via 10.0.{l}{index}.0"));
                }
            }
        }
        out
    }

    /// The `tc` commands that shape one port to `rate_mbit`.
    #[must_use]
    pub fn shape_batch(&self, port: &str, rate_mbit: u32) -> String {
        let queue = self.queue_bytes;
        format!(
            "qdisc replace dev {port} root handle 1: htb default 10\n\
             class replace dev {port} parent 1: classid 1:10 htb rate {rate_mbit}mbit ceil {rate_mbit}mbit burst 15k cburst 15k quantum 1514\n\
             qdisc replace dev {port} parent 1:10 handle 10: bfifo limit {queue}\n"
        )
    }

    /// The topology file of the controller.
    #[must_use]
    pub fn topology_yaml(&self) -> String {
        let mut out = String::from("nodes:\n");
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        for (name, role) in self.nodes() {
            line(format!("  - {{name: {name}, role: {}}}", role.as_str()));
        }
        line("links:".into());
        for link in self.links() {
            line(format!(
                "  - {{a: \"{}:{}\", b: \"{}:{}\", rate: \"{}Mbit\"}}",
                link.a.node, link.a.port, link.b.node, link.b.port, link.rate_mbit
            ));
        }
        out
    }

    /// The hosts file that every namespace sees: a job that cannot resolve a name hangs without a word.
    #[must_use]
    pub fn hosts_file(&self) -> String {
        let mut out = String::from("127.0.0.1 localhost\n");
        for host in self.hosts() {
            writeln!(out, "{} {host}", address_of(&host)).ok();
        }
        out
    }
}

/// Address of a host such as `h23` on the fabric.
#[must_use]
pub fn address_of(host: &str) -> String {
    let (leaf, index) = (&host[1..2], &host[2..]);
    format!("10.{leaf}.{index}.2")
}

fn gateway_of(host: &str) -> String {
    let (leaf, index) = (&host[1..2], &host[2..]);
    format!("10.{leaf}.{index}.1")
}

/// The leaf above a host such as `h23`.
#[must_use]
pub fn leaf_of(host: &str) -> String {
    format!("l{}", &host[1..2])
}

/// The flows of a ring over `order`: each to its successor, the last to the first.
#[must_use]
pub fn ring_pairs(order: &[String]) -> Vec<(String, String)> {
    let successors = order.iter().cycle().skip(1);
    order.iter().cloned().zip(successors.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> FabricSpec {
        FabricSpec {
            name: "t".into(),
            ..FabricSpec::default()
        }
    }

    #[test]
    fn a_leaf_gets_a_group_over_its_uplinks() {
        assert_eq!(
            spec().routes_batch("l1", Role::Leaf),
            "nexthop add id 1 via 10.0.11.1 dev up1\nnexthop add id 2 via 10.0.12.1 dev up2\n\
             nexthop add id 100 group 1/2\nroute add 10.2.0.0/16 nhid 100\n"
        );
    }

    #[test]
    fn every_step_of_an_interleaved_ring_changes_the_leaf() {
        for (a, b) in ring_pairs(&spec().interleaved_hosts()) {
            assert_ne!(leaf_of(&a), leaf_of(&b));
        }
    }

    #[test]
    fn topology_names_both_ends_of_each_link() {
        let yaml = spec().topology_yaml();
        assert!(yaml.contains("- {a: \"l1:up1\", b: \"s1:down1\", rate: \"200Mbit\"}"));
        assert!(yaml.contains("- {a: \"h11:eth0\", b: \"l1:h11\", rate: \"200Mbit\"}"));
        assert_eq!(yaml.matches("- {a:").count(), 12);
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let bad = FabricSpec {
            name: "../x".into(),
            ..spec()
        };
        assert!(bad.check().is_err());
    }
}
