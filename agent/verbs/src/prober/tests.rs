use super::*;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const HARDWARE: Clock = Clock::Device {
    khz: 1_000_000,
    mask: u64::MAX,
};

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn aim(id: &str, gid: &str) -> Aim {
    Aim {
        target: Target {
            id: id.into(),
            device: "rxe1".into(),
            port: 1,
            gid: gid.into(),
            qpn: 17,
            qkey: 1,
            flow_label: 0,
            hop_limit: 64,
        },
        gid: gid.parse().unwrap(),
    }
}

fn peer() -> Ipv6Addr {
    "::1".parse().unwrap()
}

/// A prober with one target, and its first ping.
fn first(clock: Clock) -> (Prober, Shot) {
    let mut prober = Prober::new(clock, at(0));
    aims(&mut prober, vec![aim("a", "::1")], 0);
    let shot = ready(&mut prober);
    prober.posted(&shot, at(0));
    (prober, shot)
}

/// The same once the target has answered: its second ping.
fn fired(clock: Clock) -> (Prober, Shot) {
    let (mut prober, shot) = first(clock);
    assert!(prober.answered(shot.sequence, peer(), 0, at(0)));
    prober.departed(shot.sequence, 0);
    assert!(prober.delayed(shot.sequence, peer(), 0));
    assert_eq!(prober.reports(at(0)).len(), 1);
    let shot = ready(&mut prober);
    prober.posted(&shot, at(0));
    (prober, shot)
}

/// Targets at a rate that is no matter.
fn aims(prober: &mut Prober, aims: Vec<Aim>, now: u64) {
    prober.set_aims(aims, PACKETS_PER_S_MAX, None, at(now));
}

/// The next ping, once its time has come.
fn ready(prober: &mut Prober) -> Shot {
    let due = prober.pace.due(WIRE_BYTES).unwrap();
    prober.shoot(due).unwrap()
}

fn only(mut prober: Prober, now: u64) -> Report {
    let mut reports = prober.reports(at(now));
    assert_eq!(reports.len(), 1);
    reports.remove(0)
}

#[test]
fn six_times_give_three_parts_in_whatever_order_they_come() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]] {
        let (mut prober, shot) = fired(HARDWARE);
        for step in order {
            match step {
                0 => prober.departed(shot.sequence, 5_000),
                1 => assert!(prober.answered(shot.sequence, peer(), 105_000, at(1))),
                _ => assert!(prober.delayed(shot.sequence, peer(), 30_000)),
            }
        }
        let report = only(prober, 1000);
        assert_eq!((report.sent, report.lost), (1, 0));
        assert_eq!(report.rtt_ns.unwrap().max, 70_000);
        assert_eq!(report.responder_ns.unwrap().max, 30_000);
        assert_eq!(report.host_ns.unwrap().max, MS - 100_000);
        assert_eq!(report.timestamps, Timestamps::Hardware);
    }
}

#[test]
fn without_times_of_the_device_the_hosts_part_is_absent() {
    let (mut prober, shot) = fired(Clock::Host);
    // A completion that is polled late must not shorten the way.
    prober.departed(shot.sequence, 999_999);
    prober.answered(shot.sequence, peer(), 0, at(1));
    prober.delayed(shot.sequence, peer(), 400_000);
    let report = only(prober, 1000);
    assert_eq!(report.rtt_ns.unwrap().p50, MS - 400_000);
    assert_eq!(report.host_ns, None);
    assert_eq!(report.timestamps, Timestamps::Software);
}

#[test]
fn a_ping_is_lost_once_its_time_is_over_and_what_comes_later_is_nobodys() {
    let (mut prober, shot) = fired(Clock::Host);
    // Of the next ping.
    assert!(prober.wake() < Some(at(100)));
    prober.set_limit(0);
    assert_eq!(prober.wake(), Some(at(1000)));
    prober.expire(at(999));
    assert_eq!(prober.reports(at(999)), []);
    prober.expire(at(1000));
    assert!(!prober.answered(shot.sequence, peer(), 0, at(1001)));
    let report = only(prober, 2000);
    assert_eq!((report.sent, report.lost), (1, 1));
    assert_eq!(report.rtt_ns, None);
}

#[test]
fn an_answer_whose_delay_was_lost_is_no_loss_and_no_measurement() {
    let (mut prober, shot) = fired(Clock::Host);
    prober.answered(shot.sequence, peer(), 0, at(5));
    prober.expire(at(1500));
    let report = only(prober, 2000);
    assert_eq!((report.sent, report.lost, report.rtt_ns), (1, 0, None));
}

#[test]
fn an_answer_of_another_than_the_target_is_nobodys() {
    let (mut prober, shot) = fired(Clock::Host);
    let other = "::2".parse().unwrap();
    assert!(!prober.answered(shot.sequence, other, 0, at(5)));
    assert!(!prober.delayed(shot.sequence, other, 0));
    assert!(!prober.answered(shot.sequence + 1, peer(), 0, at(5)));
}

#[test]
fn a_delay_longer_than_the_time_away_is_not_believed() {
    let (mut prober, shot) = fired(Clock::Host);
    prober.answered(shot.sequence, peer(), 0, at(1));
    prober.delayed(shot.sequence, peer(), 2 * MS);
    let report = only(prober, 2000);
    assert_eq!((report.sent, report.lost, report.rtt_ns), (1, 0, None));
}

#[test]
fn targets_take_turns() {
    let mut prober = Prober::new(Clock::Host, at(0));
    let three = vec![aim("a", "::1"), aim("b", "::2"), aim("c", "::3")];
    aims(&mut prober, three, 0);
    let ids: Vec<String> = (0..7).map(|_| ready(&mut prober).aim.target.id).collect();
    assert_eq!(ids, ["a", "b", "c", "a", "b", "c", "a"]);
    // The turn goes on where it was when the targets change.
    aims(&mut prober, vec![aim("a", "::1"), aim("bb", "::2")], 100);
    assert_eq!(ready(&mut prober).aim.target.id, "bb");
}

#[test]
fn what_was_measured_of_a_target_that_stays_stays() {
    let (mut prober, shot) = fired(Clock::Host);
    aims(&mut prober, vec![aim("a", "::1"), aim("b", "::2")], 1);
    assert!(prober.answered(shot.sequence, peer(), 0, at(2)));
    prober.delayed(shot.sequence, peer(), 0);
    // Another address under the same name is another target.
    aims(&mut prober, vec![aim("a", "::9")], 3);
    assert_eq!(prober.reports(at(4)), []);
}

#[test]
fn a_target_whose_endpoint_changed_starts_anew() {
    let (mut prober, old) = fired(Clock::Host);
    prober.expire(at(1000));
    let shot = ready(&mut prober);
    prober.posted(&shot, at(1000));
    // It has started anew: another queue pair, another key.
    let mut moved = aim("a", "::1");
    moved.target.qpn += 1;
    aims(&mut prober, vec![moved], 1500);
    assert_eq!(prober.reports(at(1500)), [], "the loss was of the old one");
    prober.expire(at(3000));
    assert_eq!(prober.reports(at(3000)), [], "so was the ping under way");
    assert!(!prober.answered(old.sequence, peer(), 0, at(3000)));
    assert!(!prober.answered(shot.sequence, peer(), 0, at(3000)));
}

#[test]
fn silence_of_a_target_that_was_only_just_named_is_no_loss_for_a_while() {
    let (mut prober, _) = first(Clock::Host);
    prober.expire(at(1000));
    assert_eq!((prober.reports(at(1000)), prober.unknown), (vec![], 1));
    let shot = ready(&mut prober);
    prober.unreachable(&shot, at(2000));
    assert_eq!((prober.reports(at(2000)), prober.unknown), (vec![], 2));
    // It never comes: then that is a loss.
    let shot = ready(&mut prober);
    let grace = u64::try_from(GRACE.as_millis()).unwrap();
    prober.posted(&shot, at(grace - 1000));
    prober.expire(at(grace));
    let report = only(prober, grace);
    assert_eq!((report.sent, report.lost), (1, 1));
    // One that has answered is known.
    let (mut prober, _) = fired(Clock::Host);
    prober.expire(at(1000));
    assert_eq!(prober.unknown, 0);
    assert_eq!(only(prober, 1000).lost, 1);
}

#[test]
fn a_way_is_in_doubt_once_three_pings_in_a_row_are_lost() {
    let (mut prober, _) = fired(Clock::Host);
    let route = aim("a", "::1").route();
    let mut doubtful = Vec::new();
    for second in 1..=5 {
        doubtful.push(prober.expire(at(second * 1000)));
        let shot = ready(&mut prober);
        prober.posted(&shot, at(second * 1000));
    }
    assert_eq!(
        doubtful,
        [vec![], vec![], vec![route], vec![route], vec![route]]
    );
    let (last, _) = prober.flights.last_key_value().unwrap();
    assert!(prober.answered(*last, peer(), 0, at(5500)));
    assert_eq!(prober.expire(at(7000)), []);
}

#[test]
fn no_target_is_pinged_more_often_than_it_answers_and_no_link_is_filled() {
    let sent = |aims: Vec<Aim>, bytes_per_s| {
        let mut prober = Prober::new(Clock::Host, at(0));
        prober.set_aims(aims, u32::MAX, bytes_per_s, at(0));
        let shots = (0..1000).map(|ms| std::iter::from_fn(|| prober.shoot(at(ms))).count());
        u32::try_from(shots.sum::<usize>()).unwrap()
    };
    // Two paths of one source are one source.
    let paths = vec![aim("a#0", "::1"), aim("a#1", "::1")];
    let most = TARGET_PER_S_MAX;
    assert!((most * 9 / 10..=most).contains(&sent(paths.clone(), None)));
    assert!((5..=7).contains(&sent(paths, Some(7 * u64::from(WIRE_BYTES)))));
}

#[test]
fn the_devices_clock_wraps() {
    let clock = Clock::Device {
        khz: 156_250,
        mask: 0xffff_ffff,
    };
    assert_eq!(clock.between(0xffff_fff0, 0x10), 32 * 1_000_000 / 156_250);
    assert_eq!(clock.between(10, 10), 0);
}

#[test]
fn ranks_are_nearest() {
    let spread = spread((1..=200).rev().collect()).unwrap();
    assert_eq!((spread.min, spread.p50), (1, 100));
    assert_eq!((spread.p99, spread.max), (198, 200));
    assert_eq!(super::spread(Vec::new()), None);
}

proptest! {
    #[test]
    fn every_ping_has_one_outcome_and_flights_are_bounded(
        steps in prop::collection::vec((0_u64..400, 0_u8..5, 0_u64..40), 1..400),
    ) {
        let mut prober = Prober::new(Clock::Host, at(0));
        aims(&mut prober, vec![aim("a", "::1"), aim("b", "::1")], 0);
        let (mut now, mut shots, mut sent, mut lost, mut timed) = (0, 0, 0, 0, 0);
        let mut count = |reports: Vec<Report>| {
            for report in reports {
                sent += report.sent;
                lost += report.lost;
                timed += report.rtt_ns.map_or(0, |rtt| rtt.samples);
            }
        };
        for (ms, what, sequence) in steps {
            now += ms;
            match what {
                0 => if let Some(shot) = prober.shoot(at(now)) {
                    shots += 1;
                    prober.posted(&shot, at(now));
                },
                1 => { prober.answered(sequence, peer(), 0, at(now)); }
                2 => { prober.delayed(sequence, peer(), ms); }
                3 => drop(prober.expire(at(now))),
                _ => count(prober.reports(at(now))),
            }
        }
        prober.expire(at(now + 2000));
        prop_assert!(prober.flights.is_empty());
        count(prober.reports(at(now + 2000)));
        prop_assert_eq!(sent + prober.unknown, shots);
        prop_assert!(lost + timed <= sent);
    }
}
