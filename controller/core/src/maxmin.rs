//! Max-min fair rates of elastic flows: what a fabric of fair queues, or long-lived TCP flows of
//! like round-trip time, settles at. Used for "what if": the rates under another placement.
//!
//! Progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2): raise all rates together,
//! freeze the flows of the first link that is full, go on with the rest. O(links x path hops).

use std::collections::BTreeMap;

/// Returns the rate of each flow, in the unit of `capacity`.
///
/// `paths` holds the links of each flow. A link that `capacity` does not know is not a limit; a
/// flow with no limit at all gets infinity.
pub fn rates<L: Ord + Clone>(paths: &[Vec<L>], capacity: &BTreeMap<L, f64>) -> Vec<f64> {
    let mut left: BTreeMap<&L, (f64, Vec<usize>)> = BTreeMap::new();
    for (flow, path) in paths.iter().enumerate() {
        for link in path {
            if let Some(c) = capacity.get(link) {
                let (_, flows) = left.entry(link).or_insert_with(|| (c.max(0.0), Vec::new()));
                if flows.last() != Some(&flow) {
                    flows.push(flow);
                }
            }
        }
    }
    let mut rates = vec![f64::INFINITY; paths.len()];
    loop {
        let tightest = left
            .iter()
            .filter_map(|(link, (c, flows))| {
                let open = flows.iter().filter(|f| rates[**f].is_infinite()).count();
                (open > 0).then(|| (*link, c / open as f64))
            })
            .min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((link, share)) = tightest else {
            return rates;
        };
        let frozen: Vec<usize> = left[link]
            .1
            .iter()
            .copied()
            .filter(|f| rates[*f].is_infinite())
            .collect();
        for flow in frozen {
            rates[flow] = share;
            for on_path in &paths[flow] {
                if let Some((c, _)) = left.get_mut(on_path) {
                    *c = (*c - share).max(0.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(paths: &[&[&str]], capacity: &[(&str, f64)], expected: &[f64]) {
        let paths: Vec<Vec<&str>> = paths.iter().map(|p| p.to_vec()).collect();
        let capacity = capacity.iter().copied().collect();
        assert_eq!(rates(&paths, &capacity), expected);
    }

    #[test]
    fn four_flows_share_one_link() {
        check(&[&["u"][..]; 4], &[("u", 200.0)], &[50.0; 4]);
    }

    #[test]
    fn a_flow_held_elsewhere_leaves_its_share_to_the_others() {
        check(
            &[&["a"], &["a", "b"]],
            &[("a", 100.0), ("b", 20.0)],
            &[80.0, 20.0],
        );
    }

    #[test]
    fn an_unknown_link_is_no_limit() {
        check(&[&["x"][..]], &[], &[f64::INFINITY]);
    }
}
