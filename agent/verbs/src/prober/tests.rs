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
fn fired(clock: Clock) -> (Prober, Shot) {
    let mut prober = Prober::new(clock, at(0));
    prober.set_aims(vec![aim("a", "::1")], 1, at(0));
    let shot = prober.shoot(at(0)).unwrap();
    prober.posted(&shot, at(0));
    (prober, shot)
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
    assert_eq!(prober.wake(), Some(at(0)));
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
    let aims = vec![aim("a", "::1"), aim("b", "::2"), aim("c", "::3")];
    prober.set_aims(aims, 1000, at(0));
    let ids: Vec<String> = (0..7)
        .map(|_| prober.shoot(at(0)).unwrap().aim.target.id)
        .collect();
    assert_eq!(ids, ["a", "b", "c", "a", "b", "c", "a"]);
    // The turn goes on where it was when the targets change.
    prober.set_aims(vec![aim("a", "::1"), aim("bb", "::2")], 1000, at(0));
    assert_eq!(prober.shoot(at(10)).unwrap().aim.target.id, "bb");
}

#[test]
fn what_was_measured_of_a_target_that_stays_stays() {
    let (mut prober, shot) = fired(Clock::Host);
    prober.set_aims(vec![aim("a", "::1"), aim("b", "::2")], 1, at(1));
    assert!(prober.answered(shot.sequence, peer(), 0, at(2)));
    prober.delayed(shot.sequence, peer(), 0);
    // Another address under the same name is another target.
    prober.set_aims(vec![aim("a", "::9")], 1, at(3));
    assert_eq!(prober.reports(at(4)), []);
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
        prober.set_aims(vec![aim("a", "::1"), aim("b", "::1")], 1000, at(0));
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
                3 => prober.expire(at(now)),
                _ => count(prober.reports(at(now))),
            }
        }
        prober.expire(at(now + 2000));
        prop_assert!(prober.flights.is_empty());
        count(prober.reports(at(now + 2000)));
        prop_assert_eq!(sent, shots);
        prop_assert!(lost + timed <= sent);
    }
}
