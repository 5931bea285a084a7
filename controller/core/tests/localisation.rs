//! Silent loss is found in labelled cases of every kind, and more often than by votes.

#[path = "../examples/localisation/cases.rs"]
mod cases;
#[path = "../examples/localisation/score.rs"]
mod score;

use cases::{Faults, Kind, Paths};
use score::Score;
use weir_controller_core::localise::{Model, vote};

#[test]
fn joint_likelihood_finds_what_votes_do_not() {
    let [mut healthy, mut faulty, mut votes] = [Score::default(); 3];
    for (n, kind) in (0..).zip(Kind::all()) {
        for seed in 0..3 {
            let case = cases::case(kind, 77_000 + 100 * n + seed);
            let named = score::named(&case.seen.explain(&Model::default()));
            let blamed = vote::blame(&case.seen, vote::SHARE_MIN)
                .into_iter()
                .collect();
            if kind.faults == Faults::None {
                healthy.add(&case, &named);
            } else {
                faulty.add(&case, &named);
            }
            votes.add(&case, &blamed);
        }
    }
    let ours = healthy.sum(&faulty);
    assert_eq!(healthy.named, 0.0, "a healthy fabric has no faults");
    assert!(
        ours.f1() > 0.9 && ours.f1() > votes.f1() + 0.2,
        "{ours:?} {votes:?}"
    );
}

#[test]
fn a_large_fabric_s_fault_is_the_one_that_was_made() {
    for told in [true, false] {
        let explanation = cases::large(2_000, told, 5).explain(&Model::default());
        assert_eq!(explanation.faults.len(), 1, "{explanation:?}");
        let class = if told { 1 } else { 16 };
        assert_eq!(explanation.faults[0].elements.len(), class);
    }
    assert!(Kind::all().iter().any(|k| k.paths == Paths::Unknown));
}
