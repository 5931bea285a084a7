use super::*;
use proptest::prelude::*;

pub(crate) fn nv(xoff_kb: f64) -> (Setting, Bounds) {
    let ecn = Ecn {
        on: true,
        kmin_kb: 150.0,
        kmax_kb: 1500.0,
        pmax: 1.0,
    };
    let rate = Rate {
        timer_us: 300.0,
        ai_mbps: 5.0,
        hai_mbps: 50.0,
        cut_gap_us: 4.0,
        cnp_gap_us: 4.0,
    };
    let setting = Setting {
        ecn: [("leaf".into(), ecn), ("spine".into(), ecn)].into(),
        nic: [("cx7".into(), rate)].into(),
        pins: Vec::new(),
    };
    let xoff_kb = [("leaf".into(), xoff_kb), ("spine".into(), xoff_kb)].into();
    (setting, Bounds { xoff_kb })
}

fn with_ecn(change: impl Fn(&mut Ecn)) -> Result<(), Refusal> {
    let (from, bounds) = nv(1750.0);
    let mut to = from.clone();
    change(to.ecn.get_mut("leaf").unwrap());
    to.check(&from, &bounds)
}

#[test]
fn thresholds_stand_in_order_below_xoff_and_one_step_away() {
    assert_eq!(with_ecn(|e| e.kmin_kb = 400.0), Ok(()));
    assert!(matches!(
        with_ecn(|e| e.kmin_kb = 1500.0),
        Err(Refusal::Order { .. })
    ));
    assert!(matches!(
        with_ecn(|e| e.kmin_kb = f64::NAN),
        Err(Refusal::Order { .. })
    ));
    assert!(matches!(
        with_ecn(|e| e.kmax_kb = 1750.0),
        Err(Refusal::Xoff { .. })
    ));
    assert!(matches!(
        with_ecn(|e| e.kmax_kb = f64::NAN),
        Err(Refusal::Order { .. })
    ));
    assert!(matches!(
        with_ecn(|e| e.kmin_kb = 1300.0),
        Err(Refusal::Step { .. })
    ));
    assert!(matches!(
        with_ecn(|e| e.pmax = 1.1),
        Err(Refusal::Range { .. })
    ));
    assert_eq!(with_ecn(|_| ()), Err(Refusal::Same));
    let (from, _) = nv(1750.0);
    let mut to = from.clone();
    to.ecn.get_mut("leaf").unwrap().kmin_kb = 200.0;
    let unknown = to.check(&from, &Bounds::default());
    assert!(matches!(unknown, Err(Refusal::Unknown { .. })));
}

#[test]
fn hastened_rates_climb_by_more_and_sooner_within_a_step_and_never_more_slowly() {
    let (mut setting, _) = nv(1750.0);
    let found = setting.clone();
    let fast = setting.hastened(&found)["cx7"];
    assert_eq!(
        (fast.timer_us, fast.ai_mbps, fast.hai_mbps),
        (75.0, 40.0, 400.0)
    );
    // A candidate that climbs faster by itself is not driven further.
    let (_, bounds) = nv(1750.0);
    let loose = Move::Loosen.from(&setting, &bounds);
    assert_eq!(loose.hastened(&found)["cx7"], fast);
    let rate = setting.nic.get_mut("cx7").unwrap();
    (rate.timer_us, rate.ai_mbps, rate.hai_mbps) = (20.0, 200.0, 2000.0);
    // Beyond what the tuner would set, as it was found: left as it is.
    assert_eq!(setting.hastened(&setting), setting.nic);
}

proptest! {
    #[test]
    fn whatever_moves_follow_each_other_each_candidate_holds_the_bounds(
        moves in proptest::collection::vec(0usize..Move::ALL.len(), 1..30), xoff in 200.0f64..5000.0,
    ) {
        let (mut at, bounds) = nv(xoff);
        for m in moves {
            let to = Move::ALL[m].from(&at, &bounds);
            if to.check(&at, &bounds).is_ok() {
                at = to;
                for ecn in at.ecn.values().filter(|e| e.on) {
                    prop_assert!(ecn.kmin_kb < ecn.kmax_kb, "{ecn:?}");
                    // What was there before the session may be above; what a move made is not.
                    prop_assert!(ecn.kmax_kb < xoff || (ecn.kmin_kb, ecn.kmax_kb) == (150.0, 1500.0), "{ecn:?}");
                }
            }
        }
    }

    #[test]
    fn steps_towards_a_goal_are_legal_and_arrive(kmin in 20.0f64..900.0, pmax in 0.01f64..1.0, timer in 50.0f64..600.0) {
        let (mut at, bounds) = nv(1750.0);
        let mut goal = at.clone();
        for ecn in goal.ecn.values_mut() {
            (ecn.kmin_kb, ecn.pmax) = (kmin, pmax);
        }
        goal.nic.get_mut("cx7").unwrap().timer_us = timer;
        for _ in 0..4 {
            let next = at.towards(&goal);
            if next != at {
                prop_assert_eq!(next.check(&at, &bounds), Ok(()));
            }
            at = next;
        }
        prop_assert_eq!(at, goal);
    }
}
