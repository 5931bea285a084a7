use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
/// The wall clock of these tests starts here.
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;

fn settings() -> Settings {
    Settings {
        timeout: 500 * MS,
        window: 10 * S,
        interval: 100 * MS,
    }
}

fn target(name: &str, address: u32, paths: u8) -> Target<u32> {
    Target {
        name: name.into(),
        address,
        paths,
        wire_bytes: 130,
    }
}

fn wall(now: Duration) -> u64 {
    EPOCH_NS + u64::try_from(now.as_nanos()).unwrap()
}

fn ns(n: u64) -> Duration {
    Duration::from_nanos(n)
}

/// A prober of one target with `paths`, whose first probe is out; and that probe.
fn one_out(paths: u8) -> (Prober<u32>, Order<u32>, Duration) {
    let mut prober = Prober::new(settings(), 7, Duration::ZERO);
    prober.set_targets(vec![target("b", 2, paths)], 1000, None, Duration::ZERO);
    let mut now = Duration::ZERO;
    loop {
        now += MS;
        if let Some(order) = prober.poll_order(wall(now), now) {
            return (prober, order, now);
        }
    }
}

/// Kernel's stamps of a reply that came at `now`, `late` before the user read it.
fn rx(now: Duration, late: Duration) -> Stamps {
    Stamps {
        user: wall(now),
        kernel: Some(wall(now - late)),
        nic: None,
    }
}

/// All windows over.
fn closed(prober: &mut Prober<u32>) -> TargetReport {
    prober.handle_timeout(3600 * S);
    prober.report().remove(0)
}

#[test]
fn the_rtt_is_without_the_responder_s_delay_and_the_host_s() {
    let (mut prober, order, now) = one_out(1);
    // 20 us to our kernel, 300 us out and back, 5 ms at the responder, 40 us until we read it.
    prober.stamped(&order.packet, Some(wall(now) + 20_000), None);
    let back = now + ns(20_000 + 300_000 + 5_000_000 + 40_000);
    let reply = order.packet.reply(Some(5 * MS));
    prober.replied(&reply, 2, 0, rx(back, ns(40_000)), back);
    assert_eq!(
        (prober.counters.answered, prober.counters.by_kernel),
        (1, 1)
    );
    let window = closed(&mut prober).window.unwrap();
    assert_eq!(window.all.rtt.unwrap().p50, ns(300_000));
    assert_eq!(window.own_delay.unwrap().p50, ns(60_000));
    assert_eq!(window.their_delay.unwrap().p50, 5 * MS);
}

#[test]
fn a_nic_s_stamps_are_preferred_and_waited_for() {
    let (mut prober, order, now) = one_out(1);
    prober.stamped(&order.packet, Some(wall(now)), None);
    let stamps = Stamps {
        nic: Some(9_000_700),
        ..rx(now + MS, Duration::ZERO)
    };
    let reply = order.packet.reply(Some(ns(100)));
    prober.replied(&reply, 2, 0, stamps, now + MS);
    assert_eq!(prober.counters.answered, 0);
    prober.stamped(&order.packet, None, Some(9_000_000));
    assert_eq!((prober.counters.answered, prober.counters.by_nic), (1, 1));
    assert_eq!(
        closed(&mut prober).window.unwrap().all.rtt.unwrap().p50,
        ns(600)
    );
}

#[test]
fn a_stamp_that_never_comes_costs_precision_and_not_the_answer() {
    let (mut prober, order, now) = one_out(1);
    let reply = order.packet.reply(Some(Duration::ZERO));
    prober.replied(&reply, 2, 0, rx(now + MS, ns(10)), now + MS);
    assert_eq!(prober.counters.answered, 0);
    prober.handle_timeout(now + MS + HOLD);
    assert_eq!((prober.counters.answered, prober.counters.by_user), (1, 1));
    assert_eq!(closed(&mut prober).window.unwrap().all.rtt.unwrap().p50, MS);
}

#[test]
fn a_second_answer_is_a_duplicate_and_one_after_the_time_out_is_late_and_stays_lost() {
    let (mut prober, order, now) = one_out(1);
    let reply = order.packet.reply(Some(Duration::ZERO));
    prober.stamped(&order.packet, Some(wall(now)), None);
    for _ in 0..2 {
        prober.replied(&reply, 2, 0, rx(now + MS, Duration::ZERO), now + MS);
    }
    assert_eq!(prober.counters.duplicates, 1);

    let (mut prober, order, now) = one_out(1);
    let reply = order.packet.reply(Some(Duration::ZERO));
    let late = now + 501 * MS;
    prober.handle_timeout(late);
    prober.replied(&reply, 2, 0, rx(late, Duration::ZERO), late);
    let counters = prober.counters;
    assert_eq!((counters.lost, counters.late, counters.answered), (1, 1, 0));
    let report = closed(&mut prober);
    assert_eq!(report.total, Count { sent: 1, lost: 1 });
    assert_eq!(report.window.unwrap().all.rtt, None);
}

#[test]
fn when_an_answer_came_counts_and_not_when_it_was_read() {
    let (mut prober, order, now) = one_out(1);
    let reply = order.packet.reply(Some(Duration::ZERO));
    prober.stamped(&order.packet, Some(wall(now)), None);
    let read = now + 600 * MS;
    prober.replied(&reply, 2, 0, rx(read, 599 * MS), read);
    assert_eq!((prober.counters.answered, prober.counters.late), (1, 0));
    let window = closed(&mut prober).window.unwrap();
    assert_eq!(window.all.rtt.unwrap().p50, MS);
    assert_eq!(window.own_delay, None, "we slept");

    let (mut prober, order, now) = one_out(1);
    let reply = order.packet.reply(Some(Duration::ZERO));
    prober.stamped(&order.packet, Some(wall(now)), None);
    let read = now + 600 * MS;
    prober.replied(&reply, 2, 0, rx(read, 50 * MS), read);
    let counters = prober.counters;
    assert_eq!((counters.answered, counters.late, counters.lost), (0, 1, 1));
    assert_eq!(closed(&mut prober).total, Count { sent: 1, lost: 1 });
}

#[test]
fn a_few_probes_are_watched_and_only_they_tell_the_host_s_delay() {
    let mut prober = Prober::new(settings(), 7, Duration::ZERO);
    prober.set_targets(vec![target("b", 2, 32)], 100, None, Duration::ZERO);
    let (mut sent, mut watched) = (0, 0);
    for ms in 2500..4500u32 {
        let now = ms * MS;
        while let Some(order) = prober.poll_order(wall(now), now) {
            sent += 1;
            let is_watched = prober.is_watching(now);
            watched += u32::from(is_watched);
            prober.stamped(&order.packet, Some(wall(now)), None);
            // It comes after 100 us, and is read at once or 30 ms later.
            let late = if is_watched { ns(0) } else { 30 * MS };
            let read = now + ns(100_000) + late;
            let reply = order.packet.reply(Some(Duration::ZERO));
            prober.replied(&reply, 2, order.path, rx(read, late), read);
            assert!(!prober.is_watching(now));
        }
    }
    assert!(
        sent > 150 && (7..=9).contains(&watched),
        "{watched} of {sent}"
    );
    let window = closed(&mut prober).window.unwrap();
    assert_eq!(window.own_delay.unwrap().max, Duration::ZERO);
    assert_eq!(window.all.rtt.unwrap().max, ns(100_000));
}

#[test]
fn without_stamps_every_probe_is_watched() {
    let (mut prober, order, now) = one_out(2);
    let bare = Stamps {
        user: wall(now + MS),
        ..Stamps::default()
    };
    assert!(prober.is_watching(now + 499 * MS) && !prober.is_watching(now + 500 * MS));
    let reply = order.packet.reply(Some(Duration::ZERO));
    prober.replied(&reply, 2, order.path, bare, now + MS);
    assert_eq!(prober.counters.by_user, 1);
    let mut now = now;
    for _ in 0..3 {
        while prober.poll_order(wall(now), now).is_none() {
            now += MS;
        }
        assert!(prober.is_watching(now));
    }
}

#[test]
fn an_answer_with_another_nonce_path_source_or_sequence_is_a_stray() {
    let (mut prober, order, now) = one_out(2);
    let good = order.packet.reply(Some(Duration::ZERO));
    let mut nonce = good;
    nonce.nonce ^= 1;
    let mut sequence = good;
    sequence.sequence += 1;
    let stamps = rx(now + MS, Duration::ZERO);
    prober.replied(&nonce, 2, order.path, stamps, now + MS);
    prober.replied(&sequence, 2, order.path, stamps, now + MS);
    prober.replied(&good, 3, order.path, stamps, now + MS);
    prober.replied(&good, 2, order.path ^ 1, stamps, now + MS);
    prober.replied(&order.packet, 2, order.path, stamps, now + MS);
    assert_eq!(prober.counters.strays, 5);
    prober.stamped(&order.packet, Some(wall(now)), None);
    prober.replied(&good, 2, order.path, stamps, now + MS);
    assert_eq!(prober.counters.answered, 1);
}

#[test]
fn a_target_without_a_responder_is_refused_and_not_lost() {
    let (mut prober, order, now) = one_out(1);
    prober.refused(&order.packet);
    prober.handle_timeout(now + S);
    assert_eq!((prober.counters.refused, prober.counters.lost), (1, 0));
}

#[test]
fn what_was_answered_has_not_failed() {
    let (mut prober, order, now) = one_out(1);
    prober.stamped(&order.packet, Some(wall(now)), None);
    let reply = order.packet.reply(None);
    prober.replied(&reply, 2, 0, rx(now + MS, Duration::ZERO), now + MS);
    prober.failed(order.packet.sequence);
    assert_eq!((prober.counters.answered, prober.counters.failed), (1, 0));
}

#[test]
fn a_step_of_the_clock_gives_no_rtt_but_an_answer() {
    let (mut prober, order, now) = one_out(1);
    prober.stamped(&order.packet, Some(wall(now)), None);
    let stepped = Stamps {
        user: wall(now) - 1_000_000,
        kernel: Some(wall(now) - 1_000_000),
        nic: None,
    };
    let reply = order.packet.reply(Some(Duration::ZERO));
    prober.replied(&reply, 2, 0, stepped, now + MS);
    assert_eq!(
        (prober.counters.answered, prober.counters.implausible),
        (1, 1)
    );
    let window = closed(&mut prober).window.unwrap();
    assert_eq!(window.all.count, Count { sent: 1, lost: 0 });
    assert_eq!(window.all.rtt, None);
}

/// A world of targets that answer after a while, and lose every n-th probe of one path.
fn run(
    prober: &mut Prober<u32>,
    seconds: u32,
    lossy: (u32, u8),
    every: u64,
) -> BTreeMap<(u32, u8), u64> {
    let mut sent = BTreeMap::new();
    let mut on_lossy = 0;
    for ms in 1..seconds * 1000 {
        let now = ms * MS;
        while let Some(order) = prober.poll_order(wall(now), now) {
            *sent.entry((order.address, order.path)).or_default() += 1;
            prober.stamped(&order.packet, Some(wall(now)), None);
            if (order.address, order.path) == lossy {
                on_lossy += 1;
                if on_lossy % every == 0 {
                    continue;
                }
            }
            let reply = order.packet.reply(Some(MS));
            let back = now + 2 * MS;
            prober.replied(&reply, order.address, order.path, rx(back, ns(5)), back);
        }
        prober.handle_timeout(now);
    }
    sent
}

#[test]
fn the_lossy_path_stands_out_and_all_paths_get_their_share() {
    let mut prober = Prober::new(settings(), 1, Duration::ZERO);
    let targets = (1..=4u32).map(|n| target(&format!("t{n}"), n, 8)).collect();
    prober.set_targets(targets, 200, None, Duration::ZERO);
    let sent = run(&mut prober, 62, (3, 5), 5);
    assert_eq!(sent.len(), 32);
    let (least, most) = (sent.values().min().unwrap(), sent.values().max().unwrap());
    assert!(most * 3 < least * 4, "{least} to {most}");
    let all: u64 = sent.values().sum();
    // A tenth of the limit is kept for bursts.
    assert!((180 * 59..=200 * 62).contains(&all), "{all}");
    for (report, n) in prober.report().iter().zip(1..) {
        for path in &report.paths {
            let loss = path.window.unwrap().count.loss().unwrap();
            if (n, path.path) == (3, 5) {
                assert!((0.15..0.25).contains(&loss), "{loss}");
            } else {
                assert!(loss == 0.0, "{loss}");
            }
        }
    }
}

#[test]
fn a_path_is_not_probed_faster_than_the_interval() {
    let mut prober = Prober::new(settings(), 1, Duration::ZERO);
    prober.set_targets(vec![target("b", 2, 1)], 1000, None, Duration::ZERO);
    let sent: u64 = run(&mut prober, 12, (0, 0), 1).values().sum();
    assert!((90..=111).contains(&sent), "{sent}");
}

#[test]
fn a_target_that_stays_keeps_its_figures_and_one_that_goes_is_forgotten() {
    let mut prober = Prober::new(settings(), 1, Duration::ZERO);
    let (b, c) = (target("b", 2, 2), target("c", 3, 2));
    prober.set_targets(vec![b.clone(), c.clone()], 100, None, Duration::ZERO);
    run(&mut prober, 15, (0, 0), 1);
    let before = prober.report();
    let now = 15 * S;
    prober.set_targets(vec![c.clone(), target("d", 4, 1)], 100, None, now);
    let after = prober.report();
    assert_eq!(
        after.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["c", "d"]
    );
    assert_eq!(after[0], before[1]);
    // Probes of the forgotten one that were out are nobody's.
    prober.handle_timeout(now + S);
    assert!(prober.report().iter().all(|r| r.total.lost == 0));
    // The same name at another address is another target.
    prober.set_targets(vec![target("c", 9, 2)], 100, None, now);
    assert_eq!(prober.report()[0].total, Count::default());
}

#[test]
fn a_list_beyond_the_limits_is_cut_and_the_rest_is_counted() {
    let mut prober = Prober::new(settings(), 1, Duration::ZERO);
    let many = (0..500).map(|n| target(&format!("t{n}"), n, 32)).collect();
    let left_out = prober.set_targets(many, 1000, None, Duration::ZERO);
    assert_eq!(left_out, 500 - PATHS_TOTAL_MAX / 32);
    let twice = vec![target("a", 1, 1), target("a", 2, 1)];
    assert_eq!(prober.set_targets(twice, 1000, None, Duration::ZERO), 1);
}

#[test]
fn the_timeout_is_when_something_is_to_be_done() {
    let mut prober = Prober::new(settings(), 3, Duration::ZERO);
    assert_eq!(prober.poll_timeout(), None);
    prober.set_targets(vec![target("b", 2, 4)], 5, None, Duration::ZERO);
    let mut sent = 0;
    let mut now = Duration::ZERO;
    for _ in 0..100_000 {
        let next = prober.poll_timeout().unwrap();
        assert!(next > now, "it would spin at {now:?}");
        now = next;
        prober.handle_timeout(now);
        while prober.poll_order(wall(now), now).is_some() {
            sent += 1;
        }
        if now > 60 * S {
            break;
        }
    }
    assert!((200..=300).contains(&sent), "{sent}");
}

#[derive(Debug, Clone)]
enum Step {
    Pass(i64),
    Order,
    Answer(usize, u64, bool),
    Stamp(usize, Option<u64>, Option<u64>),
    Refuse(usize),
    Fail(usize),
    Set(u8, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (-2_000_000i64..300_000_000).prop_map(Step::Pass),
        Just(Step::Order),
        Just(Step::Order),
        (any::<usize>(), any::<u64>(), any::<bool>()).prop_map(|(a, b, c)| Step::Answer(a, b, c)),
        (any::<usize>(), any::<Option<u64>>(), any::<Option<u64>>())
            .prop_map(|(a, b, c)| Step::Stamp(a, b, c)),
        any::<usize>().prop_map(Step::Refuse),
        any::<usize>().prop_map(Step::Fail),
        (0u8..6, 0u32..2000).prop_map(|(a, b)| Step::Set(a, b)),
    ]
}

proptest! {
    /// Whatever comes in whatever order: nothing panics, every probe has one outcome at most, no
    /// second has more than the budget, and nothing grows without bound.
    #[test]
    fn every_probe_has_one_outcome(steps in prop::collection::vec(step(), 0..300), seed: u64) {
        let mut prober = Prober::new(settings(), seed, Duration::ZERO);
        let mut now = 10_000_000_000i64;
        let mut orders: Vec<Order<u32>> = Vec::new();
        let pick = |orders: &[Order<u32>], n: usize| orders.get(n % orders.len().max(1)).copied();
        for step in steps {
            let at = ns(now.unsigned_abs());
            match step {
                Step::Pass(by) => {
                    now = (now + by).max(0);
                    prober.handle_timeout(ns(now.unsigned_abs()));
                }
                Step::Order => orders.extend(prober.poll_order(wall(at), at)),
                Step::Answer(n, held, damaged) => if let Some(order) = pick(&orders, n) {
                    let mut reply = order.packet.reply(Some(ns(held)));
                    reply.nonce ^= u64::from(damaged);
                    prober.replied(&reply, order.address, order.path, rx(at, Duration::ZERO), at);
                },
                Step::Stamp(n, kernel, nic) => if let Some(order) = pick(&orders, n) {
                    prober.stamped(&order.packet, kernel, nic);
                },
                Step::Refuse(n) => if let Some(order) = pick(&orders, n) {
                    prober.refused(&order.packet);
                },
                Step::Fail(n) => if let Some(order) = pick(&orders, n) {
                    prober.failed(order.packet.sequence);
                },
                Step::Set(paths, rate) => {
                    let targets = (0..u32::from(paths)).map(|n| target(&n.to_string(), n, paths)).collect();
                    prober.set_targets(targets, rate, Some(20_000), at);
                }
            }
        }
        prober.handle_timeout(ns(now.unsigned_abs()) + 10 * S);
        let c = prober.counters;
        prop_assert_eq!(c.sent, orders.len() as u64);
        prop_assert_eq!(c.sent, c.answered + c.lost + c.refused + c.failed);
        prop_assert!(c.answered == c.by_nic + c.by_kernel + c.by_user + c.implausible);
        prop_assert!(prober.flights.is_empty() && prober.waiting.is_empty());
        for report in prober.report() {
            prop_assert!(report.total.lost <= report.total.sent);
            let sent: u64 = report.paths.iter().map(|p| p.total.sent).sum();
            prop_assert_eq!(sent, report.total.sent);
        }
    }
}
