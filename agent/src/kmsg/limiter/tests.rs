use super::*;
use proptest::prelude::*;

fn event(name: &'static str, subject: &str, code: u32, severity: Severity) -> Event {
    Event {
        source: "kmsg",
        name,
        subject: subject.to_owned(),
        code: Some(code),
        severity,
        text: String::new(),
        action: String::new(),
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(1_000 + seconds)
}

#[test]
fn the_same_within_a_minute_is_only_counted() {
    let mut limiter = Limiter::default();
    let xid = event("xid", "a", 13, Severity::Warning);
    assert_eq!(limiter.admit(&xid, at(0)), Verdict::Pass { repeated: 0 });
    for second in [0, 1, 59] {
        assert_eq!(limiter.admit(&xid, at(second)), Verdict::Suppress);
    }
    assert_eq!(limiter.admit(&xid, at(60)), Verdict::Pass { repeated: 3 });
    assert_eq!(limiter.admit(&xid, at(61)), Verdict::Suppress);
    assert_eq!(limiter.admit(&xid, at(120)), Verdict::Pass { repeated: 1 });
}

fn of(source: &'static str, mut event: Event) -> Event {
    event.source = source;
    event
}

#[test]
fn what_two_sources_tell_is_one_event_whoever_comes_first() {
    for (first, second) in [("kmsg", "gpu"), ("gpu", "kmsg")] {
        let mut limiter = Limiter::default();
        let xid = |source| of(source, event("xid", "a", 79, Severity::Critical));
        let passed = Verdict::Pass { repeated: 0 };
        assert_eq!(limiter.admit(&xid(first), at(0)), passed);
        assert_eq!(limiter.admit(&xid(second), at(0)), Verdict::Duplicate);
        assert_eq!(limiter.admit(&xid(second), at(4)), Verdict::Duplicate);
        // Another GPU, or another number, is another fault.
        let other = of(second, event("xid", "b", 79, Severity::Critical));
        assert_eq!(limiter.admit(&other, at(4)), passed);
        // It happens again, and the other comes first this time: one repeat, not two.
        assert_eq!(limiter.admit(&xid(second), at(30)), Verdict::Suppress);
        assert_eq!(limiter.admit(&xid(first), at(31)), Verdict::Duplicate);
        let again = Verdict::Pass { repeated: 1 };
        assert_eq!(limiter.admit(&xid(first), at(60)), again);
    }
}

#[test]
fn the_graver_of_two_passes() {
    let mut limiter = Limiter::default();
    let number = of("gpu", event("xid", "a", 154, Severity::Warning));
    let line = event("xid", "a", 154, Severity::Critical);
    let passed = Verdict::Pass { repeated: 0 };
    assert_eq!(limiter.admit(&number, at(0)), passed);
    assert_eq!(limiter.admit(&line, at(1)), passed);
    assert_eq!(limiter.admit(&number, at(1)), Verdict::Duplicate);
}

#[test]
fn every_loss_after_a_return_passes() {
    let mut limiter = Limiter::default();
    let lost = event("gpu_lost", "a", 0, Severity::Critical);
    let back = event("gpu_back", "a", 0, Severity::Info);
    for second in 0..5 {
        for event in [&lost, &back] {
            let verdict = limiter.admit(event, at(second));
            assert_eq!(verdict, Verdict::Pass { repeated: 0 });
            assert_eq!(limiter.admit(event, at(second)), Verdict::Suppress);
        }
    }
}

#[test]
fn two_devices_without_a_name_are_two() {
    let mut limiter = Limiter::default();
    for text in ["GPU 5 no longer answers", "GPU 6 no longer answers"] {
        let mut lost = event("gpu_lost", "", 0, Severity::Critical);
        lost.text = text.to_owned();
        assert_eq!(limiter.admit(&lost, at(0)), Verdict::Pass { repeated: 0 });
    }
}

#[test]
fn a_flood_of_one_source_leaves_the_other_what_is_graver() {
    let limits = Shared::default();
    let (mut gpu, mut kmsg) = (HeldBack::default(), HeldBack::default());
    for n in 0..10_000 {
        let flood = event("ecc_corrected", &n.to_string(), 0, Severity::Info);
        limits.admit(of("gpu", flood), at(0), &mut gpu);
    }
    let kept = u64::from(TOTAL_BURST - CRITICAL_RESERVE);
    assert_eq!((gpu.suppressed, gpu.deduplicated), (10_000 - kept, 0));
    let lost = event("gpu_lost", "g", 0, Severity::Critical);
    assert!(limits.admit(lost.clone(), at(0), &mut kmsg).is_some());
    assert_eq!(kmsg, HeldBack::default());
    assert!(limits.admit(of("gpu", lost), at(1), &mut gpu).is_none());
    assert_eq!(gpu.deduplicated, 1);
}

#[test]
fn another_name_subject_or_code_is_another_event() {
    let mut limiter = Limiter::default();
    for event in [
        event("xid", "a", 13, Severity::Warning),
        event("xid", "a", 14, Severity::Warning),
        event("xid", "b", 13, Severity::Warning),
        event("sxid", "a", 13, Severity::Warning),
    ] {
        assert_eq!(limiter.admit(&event, at(0)), Verdict::Pass { repeated: 0 });
    }
}

#[test]
fn what_became_worse_passes() {
    let mut limiter = Limiter::default();
    let health = |severity| event("nic_health", "a", 0, severity);
    assert_ne!(
        limiter.admit(&health(Severity::Warning), at(0)),
        Verdict::Suppress
    );
    assert_ne!(
        limiter.admit(&health(Severity::Critical), at(1)),
        Verdict::Suppress
    );
    assert_eq!(
        limiter.admit(&health(Severity::Warning), at(2)),
        Verdict::Suppress
    );
    assert_eq!(
        limiter.admit(&health(Severity::Critical), at(3)),
        Verdict::Suppress
    );
}

#[test]
fn a_flood_of_one_subject_leaves_the_others_their_budget() {
    let mut limiter = Limiter::default();
    let passed = (0..100_000)
        .filter(|n| {
            limiter.admit(&event("xid", "flood", *n, Severity::Critical), at(0))
                != Verdict::Suppress
        })
        .count();
    assert_eq!(passed, usize::try_from(SUBJECT_BURST).unwrap());
    let other = event("xid", "other", 79, Severity::Info);
    assert_eq!(limiter.admit(&other, at(0)), Verdict::Pass { repeated: 0 });
}

#[test]
fn a_subject_gets_its_tokens_back() {
    let mut limiter = Limiter::default();
    let mut passed = |from: u32, to: u32, second| {
        (from..to)
            .filter(|n| {
                limiter.admit(&event("xid", "a", *n, Severity::Warning), at(second))
                    != Verdict::Suppress
            })
            .count()
    };
    assert_eq!(passed(0, 100, 0), 16);
    assert_eq!(passed(100, 200, 9), 0);
    assert_eq!(passed(200, 300, 25), 2);
    assert_eq!(passed(300, 400, 30), 1);
}

#[test]
fn a_flood_of_many_subjects_leaves_room_for_what_is_critical() {
    let mut limiter = Limiter::default();
    let passed = (0..100_000)
        .filter(|n| {
            let warning = event("link_down", &format!("eth{n}"), 0, Severity::Warning);
            limiter.admit(&warning, at(0)) != Verdict::Suppress
        })
        .count();
    assert_eq!(
        passed,
        usize::try_from(TOTAL_BURST - CRITICAL_RESERVE).unwrap()
    );
    let lost = event("gpu_lost", "g", 0, Severity::Critical);
    assert_eq!(limiter.admit(&lost, at(0)), Verdict::Pass { repeated: 0 });
}

#[test]
fn the_tables_do_not_grow_and_forget_what_is_over() {
    let mut limiter = Limiter::default();
    for n in 0..20_000u32 {
        let now = Duration::from_millis(1_000_000 + u64::from(n) * 300);
        limiter.admit(&event("xid", &n.to_string(), n, Severity::Critical), now);
        assert!(limiter.repeats.len() <= REPEATS_MAX);
        assert!(limiter.subjects.len() <= SUBJECTS_MAX + 1);
    }
}

#[test]
fn subjects_beyond_the_table_share_a_budget() {
    let mut limiter = Limiter::default();
    for n in 0..SUBJECTS_MAX {
        limiter.subject(&n.to_string(), at(0)).tokens = 0;
    }
    for name in ["x", "y"] {
        limiter.subject(name, at(1)).tokens -= 1;
    }
    assert_eq!(limiter.subjects[OTHERS].tokens, SUBJECT_BURST - 2);
    limiter.subject("z", at(1_000));
    assert!(limiter.subjects.contains_key("z"));
}

proptest! {
    /// One fault an hour, told by both in any order within the window: each is one event.
    #[test]
    fn each_fault_is_one_event(faults in prop::collection::vec((any::<bool>(), 0u64..4_000), 1..50)) {
        let limits = Shared::default();
        let mut held = HeldBack::default();
        let mut passed = 0;
        for (hour, (gpu_first, apart_ms)) in (1..).zip(&faults) {
            let now = Duration::from_hours(hour);
            let sources = if *gpu_first { ["gpu", "kmsg"] } else { ["kmsg", "gpu"] };
            let times = [now, now + Duration::from_millis(*apart_ms)];
            for (source, time) in sources.into_iter().zip(times) {
                let fault = of(source, event("xid", "a", 48, Severity::Critical));
                passed += usize::from(limits.admit(fault, time, &mut held).is_some());
            }
        }
        prop_assert_eq!(passed, faults.len());
        prop_assert_eq!(held.deduplicated, faults.len() as u64);
    }

    #[test]
    fn never_more_than_the_budget_whatever_the_clock_does(events in prop::collection::vec((0u8..4, 0u32..8, 0u64..300), 0..400)) {
        let mut limiter = Limiter::default();
        let mut passed = [0u64; 4];
        for (subject, code, second) in &events {
            let event = event("xid", &subject.to_string(), *code, Severity::Warning);
            if limiter.admit(&event, at(*second)) != Verdict::Suppress {
                passed[usize::from(*subject)] += 1;
            }
        }
        let budget = u64::from(SUBJECT_BURST) + 300 / SUBJECT_REFILL.as_secs();
        prop_assert!(passed.iter().all(|n| *n <= budget));
    }
}
