use super::*;
use crate::time::from_us;

const LINE: f64 = 100e9;

fn constants(change: impl FnOnce(&mut RpParams)) -> RpConstants {
    let mut p = RpParams::default();
    change(&mut p);
    RpConstants::from(&p)
}

fn near(got: f64, want: f64) {
    assert!(
        (got - want).abs() <= want.abs() * 1e-9 + 1e-9,
        "got {got}, want {want}"
    );
}

#[test]
fn the_first_cut_comes_one_period_after_the_first_notification() {
    let c = constants(|_| ());
    let mut rp = Rp::new(LINE);
    rp.notified(from_us(10.0), &c);
    rp.catch_up(from_us(13.9), &c);
    near(rp.rate(), LINE);
    rp.catch_up(from_us(14.0), &c);
    // Four updates without a mark: alpha = (1019/1024)^4, and the cut takes half of it.
    let alpha = (1019.0f64 / 1024.0).powi(4);
    near(rp.alpha(), alpha);
    near(rp.rate(), LINE * (1.0 - alpha / 2.0));
    near(rp.target(), LINE);
}

#[test]
fn cuts_keep_to_the_grid_and_the_target_stays_while_no_increase_came_between() {
    let c = constants(|_| ());
    let mut rp = Rp::new(LINE);
    rp.notified(0, &c);
    for t in [5.0, 6.0, 7.0] {
        rp.notified(from_us(t), &c);
    }
    rp.catch_up(from_us(8.0), &c);
    assert_eq!(rp.cuts, 2);
    near(rp.target(), LINE);
    let keep = 1019.0f64 / 1024.0;
    // Marks of 5, 6 and 7 us enter at the updates of 6, 7 and 8 us.
    let first = keep.powi(4);
    let mut alpha = keep.powi(5);
    for _ in 0..3 {
        alpha = alpha * keep + (1.0 - keep);
    }
    near(rp.rate(), LINE * (1.0 - first / 2.0) * (1.0 - alpha / 2.0));
}

#[test]
fn recovery_is_fast_then_additive_then_hyper() {
    let c = constants(|p| {
        p.rpg_ai_rate = 100.0;
        p.rpg_hai_rate = 1000.0;
        p.rpg_time_reset = 55.0;
        p.initial_alpha = 1024.0;
        p.dce_tcp_g = 1024.0; // Alpha stays 1: the cut halves.
    });
    let mut rp = Rp::new(LINE);
    rp.notified(0, &c);
    rp.catch_up(from_us(4.0), &c);
    near(rp.rate(), 50e9);
    rp.catch_up(from_us(4.0 + 55.0), &c);
    near(rp.rate(), 75e9);
    near(rp.target(), LINE);
    // A cut after an increase takes the target along.
    rp.notified(from_us(60.0), &c);
    rp.catch_up(from_us(64.0), &c);
    near(rp.rate(), 37.5e9);
    near(rp.target(), 75e9);
    rp.catch_up(from_us(64.0 + 55.0), &c);
    near(rp.rate(), 56.25e9);
    rp.catch_up(from_us(64.0 + 110.0), &c);
    near(rp.target(), 75.1e9);
    near(rp.rate(), f64::midpoint(56.25e9, 75.1e9));
    rp.catch_up(from_us(64.0 + 165.0), &c);
    near(rp.target(), 76.1e9);
}

#[test]
fn the_byte_counter_counts_as_the_timer_does() {
    let c = constants(|p| {
        p.rpg_byte_reset = 10_000;
        p.rpg_threshold = 2;
        p.rpg_ai_rate = 1000.0;
        p.dce_tcp_g = 1024.0;
    });
    let mut rp = Rp::new(LINE);
    rp.notified(0, &c);
    rp.catch_up(from_us(4.0), &c);
    rp.sent(9_999, &c);
    near(rp.rate(), 50e9);
    rp.sent(1, &c);
    near(rp.rate(), 75e9);
    rp.sent(10_000, &c);
    near(rp.rate(), 87.5e9);
    near(rp.target(), LINE);
    rp.notified(from_us(5.0), &c);
    rp.catch_up(from_us(8.0), &c);
    near(rp.rate(), 43.75e9);
    near(rp.target(), 87.5e9);
    rp.sent(20_000, &c);
    near(rp.target(), 87.5e9);
    rp.sent(10_000, &c);
    near(rp.target(), 88.5e9);
}

#[test]
fn the_rate_keeps_its_bounds() {
    let c = constants(|p| p.min_rate = 200.0);
    let mut rp = Rp::new(LINE);
    for i in 0..2_000 {
        rp.notified(from_us(f64::from(i)), &c);
        rp.catch_up(from_us(f64::from(i)), &c);
        assert!(rp.rate() >= 200e6 && rp.rate() <= LINE);
    }
    near(rp.rate(), 200e6);
    rp.catch_up(from_us(60_000_000.0), &c);
    near(rp.rate(), LINE);
}

#[test]
fn min_dec_fac_bounds_a_cut_and_100_turns_cuts_off() {
    for (fac, want) in [(80.0, 80e9), (100.0, 100e9)] {
        let c = constants(|p| {
            p.min_dec_fac = fac;
            p.dce_tcp_g = 1024.0;
        });
        let mut rp = Rp::new(LINE);
        rp.notified(0, &c);
        rp.catch_up(from_us(4.0), &c);
        near(rp.rate(), want);
    }
}

#[test]
fn looking_often_or_once_gives_the_same() {
    let c = constants(|_| ());
    let (mut often, mut once) = (Rp::new(LINE), Rp::new(LINE));
    let marks = [0.0, 3.0, 9.5, 40.0, 41.0, 900.0, 901.0, 1300.0];
    let mut t = 0.0;
    for mark in marks {
        while t < mark {
            often.catch_up(from_us(t), &c);
            t += 0.7;
        }
        often.notified(from_us(mark), &c);
        once.notified(from_us(mark), &c);
    }
    often.catch_up(from_us(2500.0), &c);
    once.catch_up(from_us(2500.0), &c);
    near(often.rate(), once.rate());
    near(often.target(), once.target());
    near(often.alpha(), once.alpha());
}

/// What a sender of the independent simulator's victim trace did after its cuts, Gb/s at each change between two of them.
/// How deep a cut went depends on when notifications came, which the trace's counters do not say; how it climbs does not.
#[test]
fn rates_climb_back_as_those_of_the_independent_trace() {
    let c = constants(|_| ());
    let mut rp = Rp::new(LINE);
    for t in 0..20 {
        rp.notified(from_us(f64::from(t) * 4.0), &c);
    }
    // One target over all cuts in a row: the rate before the first.
    let mut now = 80.0;
    let mut climbs = |rp: &mut Rp, seen: &[f64]| {
        for gbps in seen {
            rp.catch_up(from_us(now), &c);
            let got = rp.rate() / 1e9;
            assert!(
                (got - gbps).abs() < 0.0101,
                "at {now} us {got}, theirs {gbps}"
            );
            now += 300.0;
        }
        now
    };
    let now = climbs(&mut rp, &[0.10, 50.05, 75.03]);
    // Cuts after increases take the target down to 75.03; it grows by 0, 5, 50 and 50 Mb/s.
    rp.notified(from_us(now - 299.0), &c);
    rp.catch_up(from_us(now - 290.0), &c);
    near(rp.target(), 75.025e9);
    rp.rate = 50.33e9;
    rp.timer_at = from_us(now);
    climbs(&mut rp, &[62.67, 68.85, 71.97, 73.55]);
}
