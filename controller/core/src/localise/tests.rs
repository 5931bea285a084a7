use super::search::Search;
use super::*;
use proptest::prelude::*;

/// Three leaves with two hosts each under two spines, switches 3 and 4. Links: 0..6 up from hosts, 6..12 down to
/// them, 12..18 up from each leaf to both spines, 18..24 down to each leaf from both.
fn fabric() -> Observations {
    let mut leaves: Vec<Option<usize>> = vec![None; 6];
    leaves.extend((0..6).map(|host| Some(host / 2)));
    leaves.extend((0..6).map(|link| Some(link / 2)));
    leaves.extend((0..6).map(|link| Some(3 + link % 2)));
    Observations::new(leaves)
}

fn way(src: usize, dst: usize, spine: usize) -> [usize; 2] {
    [12 + src / 2 * 2 + spine, 18 + dst / 2 * 2 + spine]
}

/// Every host sends to every host of the other leaf over each spine; what is `lossy` loses 1 %.
fn all_pairs(seen: &mut Observations, told: bool, lossy: impl Fn(&[usize]) -> bool) {
    for (src, dst) in (0..6).flat_map(|s| (0..6).map(move |d| (s, d))) {
        if src / 2 == dst / 2 {
            continue;
        }
        let ways = [0, 1].map(|spine| way(src, dst, spine));
        for taken in &ways {
            let path = [&[src, 6 + dst], &taken[..]].concat();
            let bad = if lossy(&path) { 100 } else { 0 };
            if told {
                seen.flow(&path, None, 10_000, bad);
            } else {
                let stage = seen.stage(&[&ways[0], &ways[1]]);
                assert!(stage.is_some());
                seen.flow(&[src, 6 + dst], stage, 10_000, bad);
            }
        }
    }
}

fn faults(seen: &Observations) -> Vec<Vec<Element>> {
    let explanation = seen.explain(&Model::default());
    explanation.faults.into_iter().map(|f| f.elements).collect()
}

#[test]
fn a_lossy_link_is_found_with_its_loss() {
    let mut seen = fabric();
    all_pairs(&mut seen, true, |path| path.contains(&13));
    let explanation = seen.explain(&Model::default());
    let [fault] = &explanation.faults[..] else {
        panic!("{explanation:?}")
    };
    assert_eq!(fault.elements, [Element::Link(13)]);
    assert!((fault.loss / 0.01 - 1.0).abs() < 1e-9, "{fault:?}");
    assert!(fault.confidence > 0.999 && fault.flows == 8.0, "{fault:?}");
    assert!(explanation.noise < 1e-4);
}

#[test]
fn a_switch_that_loses_everywhere_is_one_fault() {
    let mut seen = fabric();
    all_pairs(&mut seen, true, |path| {
        [19, 21, 23].iter().any(|l| path.contains(l))
    });
    assert_eq!(faults(&seen), [[Element::Device(4)]]);
}

#[test]
fn two_links_at_once_are_two_faults() {
    let mut seen = fabric();
    all_pairs(&mut seen, true, |path| {
        path.contains(&3) || path.contains(&22)
    });
    assert_eq!(faults(&seen).concat().len(), 2);
    assert!(faults(&seen).contains(&vec![Element::Link(3)]));
    assert!(faults(&seen).contains(&vec![Element::Link(22)]));
}

#[test]
fn links_that_nothing_can_tell_apart_are_named_together() {
    let mut seen = fabric();
    all_pairs(&mut seen, false, |path| path.contains(&13));
    assert_eq!(faults(&seen), [[Element::Link(12), Element::Link(13)]]);
    // One probe series over a known path is enough to tell them apart.
    seen.flow(&way(0, 4, 1), None, 1_000, 10);
    seen.flow(&way(0, 4, 0), None, 1_000, 0);
    assert_eq!(faults(&seen), [[Element::Link(13)]]);
}

#[test]
fn an_ambiguous_flow_still_convicts_the_link_of_its_host() {
    let mut seen = fabric();
    all_pairs(&mut seen, false, |path| path.contains(&3));
    assert_eq!(faults(&seen), [[Element::Link(3)]]);
}

#[test]
fn no_single_flow_convicts_a_link() {
    let mut seen = fabric();
    all_pairs(&mut seen, true, |path| {
        path.contains(&0) && path.contains(&9) && path.contains(&12)
    });
    assert_eq!(faults(&seen), [[]; 0]);
    assert_eq!(
        vote::blame(&seen, vote::SHARE_MIN)[0],
        Element::Link(0),
        "votes have no such doubt"
    );
}

#[test]
fn loss_that_a_switch_counts_is_not_silent() {
    let mut seen = fabric();
    all_pairs(&mut seen, true, |path| {
        path.contains(&13) || path.contains(&5)
    });
    seen.counted(13, 0.011);
    assert_eq!(faults(&seen), [[Element::Link(5)]]);
    let blamed = vote::blame(&seen, vote::SHARE_MIN);
    assert_eq!(blamed, [Element::Link(5)]);
}

#[test]
fn what_makes_no_sense_is_refused_and_counted() {
    let mut seen = fabric();
    seen.flow(&[0], None, 0, 0);
    seen.flow(&[0], None, 1, 2);
    seen.flow(&[99], None, 1, 0);
    seen.flow(&[0], Some(Stage(7)), 1, 0);
    assert_eq!(seen.refused(), 4);
    assert_eq!(seen.stage(&[]), None);
    assert_eq!(seen.stage(&[&[12], &[99]]), None);
    assert_eq!(seen.explain(&Model::default()).faults, []);
    assert!(vote::blame(&seen, vote::SHARE_MIN).is_empty());
}

#[test]
fn votes_blame_the_link_that_most_bad_flows_cross() {
    let mut seen = fabric();
    all_pairs(&mut seen, true, |path| path.contains(&13));
    assert_eq!(vote::blame(&seen, vote::SHARE_MIN), [Element::Link(13)]);
}

/// Flows as (source, destination, spine, told, packets, bad).
type Flows = Vec<(usize, usize, usize, bool, u64, u64)>;

fn any_flows() -> impl Strategy<Value = Flows> {
    let flow = (
        0..6usize,
        0..6usize,
        0..2usize,
        any::<bool>(),
        0..100_000u64,
    );
    let bad = prop_oneof![3 => Just(0u64), 1 => 0..50u64, 1 => 0..200_000u64];
    proptest::collection::vec(
        (flow, bad).prop_map(|((s, d, w, t, n), b)| (s, d, w, t, n, b)),
        0..80,
    )
}

fn observed(flows: &Flows) -> Observations {
    let mut seen = fabric();
    for (src, dst, spine, told, sent, bad) in flows {
        let ways = [way(*src, *dst, 0), way(*src, *dst, 1)];
        if *told {
            seen.flow(
                &[&[*src, 6 + *dst], &ways[*spine][..]].concat(),
                None,
                *sent,
                *bad,
            );
        } else {
            let stage = seen.stage(&[&ways[0], &ways[1]]);
            seen.flow(&[*src, 6 + *dst], stage, *sent, *bad);
        }
    }
    seen
}

proptest! {
    /// What is kept up to date move by move is what one gets from scratch.
    #[test]
    fn the_search_keeps_its_books(flows in any_flows(), moves in proptest::collection::vec((0..40usize, 0..8usize), 0..12)) {
        let seen = observed(&flows);
        let model = Model::default();
        let mut search = Search::new(&seen, &model, 1e-5);
        let mut expected = search.total();
        for (element, to) in moves {
            if seen.elements.is_empty() {
                break;
            }
            let element = element % seen.elements.len();
            expected += search.gains(element)[to];
            search.apply(element, to);
            prop_assert!((search.total() - expected).abs() < 1e-6 * expected.abs().max(1.0));
            search.check();
        }
    }

    #[test]
    fn any_flows_are_explained_and_in_any_order_the_same(flows in any_flows()) {
        let model = Model::default();
        let forward = observed(&flows).explain(&model);
        for fault in &forward.faults {
            prop_assert!((0.5..=1.0).contains(&fault.confidence) && (0.0..=1.0).contains(&fault.loss));
            prop_assert!(!fault.elements.is_empty() && fault.bad <= fault.sent && fault.bad > 0.0);
        }
        let mut reversed = flows.clone();
        reversed.reverse();
        let backward = observed(&reversed).explain(&model);
        let names = |e: &Explanation| e.faults.iter().map(|f| f.elements.clone()).collect::<BTreeSet<_>>();
        prop_assert_eq!(names(&forward), names(&backward));
        prop_assert_eq!(forward, observed(&flows).explain(&model));
    }

    #[test]
    fn without_loss_nothing_is_named(flows in any_flows()) {
        let clean: Flows = flows.into_iter().map(|(s, d, w, t, n, _)| (s, d, w, t, n, 0)).collect();
        prop_assert!(faults(&observed(&clean)).is_empty());
        prop_assert!(vote::blame(&observed(&clean), vote::SHARE_MIN).is_empty());
    }
}

#[test]
fn one_flow_convicts_a_link_only_if_it_has_no_losses_of_its_own() {
    for (outlier, expected) in [(None, 0), (Some(1e-6), 1)] {
        let mut seen = fabric();
        for src in 0..6 {
            let bad = if src == 2 { 1_000 } else { 0 };
            let dst = (src + 2) % 6;
            let path = [&[src, 6 + dst][..], &way(src, dst, src % 2)].concat();
            seen.flow_with_outlier(&path, None, (1_000_000, bad), outlier);
        }
        let explanation = seen.explain(&Model::default());
        assert_eq!(explanation.faults.len(), expected, "{explanation:?}");
        for fault in &explanation.faults {
            let links = [2, 10, 14, 22].map(Element::Link);
            assert_eq!(fault.elements, links, "its whole path, and no switch");
            assert!(fault.confidence > 0.95, "{fault:?}");
        }
    }
}
