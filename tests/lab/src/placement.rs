//! Decides which uplink each flow takes, by asking the kernel where it would send it.
//!
//! The leaves hash source and destination address with a seed. For a list of flows the seeds are tried
//! in order until `ip route get` answers with the wanted spread: with four flows and two uplinks one seed
//! in sixteen puts them all on the first. Nothing is sent, and nothing about the hash is assumed.

use anyhow::{Context, Result, bail};

use crate::{
    fabric::{Fabric, write_sysctl},
    plan::{address_of, leaf_of},
    shell, sys,
};

/// Nine flows over two uplinks meet one seed in 512; ten times that is as good as never by bad luck.
const SEEDS_MAX: u32 = 5_000;

/// Source and destination host of a flow.
pub type Pair = (String, String);

/// How the flows that leave a leaf shall be spread over its uplinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// All on the first uplink, while the others idle.
    Collision,
    /// As evenly as their number allows.
    Balanced,
}

impl Placement {
    fn holds(self, uplinks: &[String], spines: u8) -> bool {
        match self {
            Self::Collision => uplinks.iter().all(|u| u == "up1"),
            Self::Balanced => {
                let counts = (1..=spines).map(|s| {
                    let port = format!("up{s}");
                    uplinks.iter().filter(|u| **u == port).count()
                });
                let (least, most) =
                    counts.fold((usize::MAX, 0), |(lo, hi), n| (lo.min(n), hi.max(n)));
                most - least <= 1
            }
        }
    }
}

impl Fabric {
    /// Sets each leaf's hash seed so that the flows `pairs` are spread as wanted. Flows between hosts of
    /// one leaf do not matter.
    ///
    /// # Errors
    /// When no seed does it.
    pub fn place(&self, placement: Placement, pairs: &[Pair]) -> Result<()> {
        for leaf in (1..=self.spec().leaves).map(|l| format!("l{l}")) {
            let leaving = leaving(&leaf, pairs);
            sys::in_netns(&self.namespace(&leaf), || {
                for seed in 1..=SEEDS_MAX {
                    write_sysctl("ipv4/fib_multipath_hash_seed", &seed.to_string())?;
                    if placement.holds(&ask(&leaving)?, self.spec().spines) {
                        return Ok(());
                    }
                }
                bail!("{leaf}: none of {SEEDS_MAX} hash seeds gives {placement:?} for {leaving:?}")
            })?;
        }
        Ok(())
    }

    /// The uplink on which `leaf` would send packets from `src` to `dst` now, such as `up2`.
    ///
    /// # Errors
    /// When the leaf has no route.
    pub fn predict(&self, leaf: &str, src: &str, dst: &str) -> Result<String> {
        let pair = (src.to_owned(), dst.to_owned());
        let uplinks = sys::in_netns(&self.namespace(leaf), || ask(&[pair]))?;
        uplinks.into_iter().next().context("no answer")
    }

    /// Sends everything for the host `dst` via one uplink (1-based) of `leaf`.
    ///
    /// # Errors
    /// When the uplink's nexthop object does not exist.
    pub fn pin(&self, leaf: &str, dst: &str, uplink: u8) -> Result<()> {
        let (namespace, prefix) = (self.namespace(leaf), format!("{}/32", address_of(dst)));
        let id = uplink.to_string();
        shell::run(
            "ip",
            &["-n", &namespace, "route", "replace", &prefix, "nhid", &id],
        )
        .map(drop)
    }

    /// Takes back what [`Self::pin`] did.
    ///
    /// # Errors
    /// When there is no such pin.
    pub fn unpin(&self, leaf: &str, dst: &str) -> Result<()> {
        let (namespace, prefix) = (self.namespace(leaf), format!("{}/32", address_of(dst)));
        shell::run("ip", &["-n", &namespace, "route", "del", &prefix]).map(drop)
    }

    /// Pins the destinations of `pairs` to the uplinks in turn: the routes a person would set by hand.
    ///
    /// # Errors
    /// As [`Self::pin`].
    pub fn pin_collision_free(&self, pairs: &[Pair]) -> Result<()> {
        for leaf in (1..=self.spec().leaves).map(|l| format!("l{l}")) {
            let uplinks = (1..=self.spec().spines).cycle();
            for ((_, dst), uplink) in leaving(&leaf, pairs).iter().zip(uplinks) {
                self.pin(&leaf, dst, uplink)?;
            }
        }
        Ok(())
    }
}

fn leaving(leaf: &str, pairs: &[Pair]) -> Vec<Pair> {
    let crosses = |(src, dst): &&Pair| leaf_of(src) == leaf && leaf_of(dst) != leaf;
    pairs.iter().filter(crosses).cloned().collect()
}

/// Asks the namespace that the calling thread is in.
fn ask(pairs: &[Pair]) -> Result<Vec<String>> {
    let queries: Vec<String> = pairs
        .iter()
        .map(|(src, dst)| {
            // The leaf's port to a host carries the host's name.
            format!(
                "route get {} from {} iif {src}\n",
                address_of(dst),
                address_of(src)
            )
        })
        .collect();
    let answer = shell::batch("ip", &queries.concat())?;
    let uplinks: Vec<String> = answer
        .lines()
        .filter_map(device)
        .map(str::to_owned)
        .collect();
    if uplinks.len() != pairs.len() {
        bail!("ip route get answered {answer:?} for {pairs:?}");
    }
    Ok(uplinks)
}

fn device(line: &str) -> Option<&str> {
    if !line.contains(" from ") {
        return None;
    }
    let mut words = line.split_whitespace();
    words.find(|w| *w == "dev")?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(placement: Placement, uplinks: &[&str], want: bool) {
        let uplinks: Vec<String> = uplinks.iter().map(|u| (*u).to_owned()).collect();
        assert_eq!(
            placement.holds(&uplinks, 2),
            want,
            "{placement:?} {uplinks:?}"
        );
    }

    #[test]
    fn a_collision_is_all_on_the_first_uplink() {
        check(Placement::Collision, &["up1", "up1", "up1"], true);
        check(Placement::Collision, &["up1", "up2", "up1"], false);
        check(Placement::Collision, &["up2", "up2", "up2"], false);
    }

    #[test]
    fn balance_tolerates_one_flow_more() {
        check(Placement::Balanced, &["up1", "up2", "up1"], true);
        check(Placement::Balanced, &["up1", "up1", "up1", "up2"], false);
    }

    #[test]
    fn the_device_is_the_one_that_leaves() {
        let line = "10.2.1.2 from 10.1.1.2 nhid 100 via 10.0.11.1 dev up1 ";
        assert_eq!(device(line), Some("up1"));
        assert_eq!(device("    cache iif h11"), None);
    }
}
