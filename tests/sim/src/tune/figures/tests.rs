use super::*;
use crate::tune::case::JobRun;

/// A run of 1.2 ms in which iterations of two jobs began every 100 us.
fn outcome(a: &[f64], b: &[f64], paused_worst: f64) -> Outcome {
    let job = |name: &str, durations: &[f64]| JobRun {
        name: name.to_owned(),
        iterations: (0u32..)
            .zip(durations)
            .map(|(n, d)| (f64::from(n) * 100.0, *d))
            .collect(),
        flow_us_p99: durations.iter().copied().fold(0.0, f64::max),
    };
    Outcome {
        us: 1200.0,
        jobs: vec![job("a", a), job("b", b)],
        paused_worst,
        paused_mean: 0.0,
        lost: 0,
        out_of_sequence: 0,
    }
}

fn close(e: &Estimate, wanted: f64) {
    assert!((e.mean - wanted).abs() < 1e-9, "{} {wanted}", e.mean);
}

#[test]
fn a_row_weighs_jobs_alike_and_names_the_one_that_lost_most() {
    let nv = [outcome(&[100.0; 12], &[50.0; 12], 0.01)];
    // The first job gains a half in the last third, the second loses a fifth.
    let mut a = [100.0; 12];
    a[8..].fill(50.0);
    let mut search = Search::default();
    search.note(0.0, true, false);
    search.note(200.0, false, true);
    search.end(1200.0);
    let ran = Ran {
        search: Some(search),
        outcome: outcome(&a, &[60.0; 12], 0.03),
    };
    let row = row("x", vec![(1, ran)], &nv);
    close(
        &row.time_pct,
        ((0.5f64.powf(1.0 / 3.0) * 1.2).sqrt() - 1.0) * 100.0,
    );
    close(&row.settled_pct, ((0.5f64 * 1.2).sqrt() - 1.0) * 100.0);
    close(&row.flow_p99_pct, (1.2f64.sqrt() - 1.0) * 100.0);
    close(&row.pause_points, 2.0);
    let victim = row.victim().unwrap();
    assert_eq!(victim.name, "b");
    close(&victim.slower_pct, 20.0);
    // Until 200 us: nothing of the first, twice 0.2 of the second; 20 of 1200 us.
    close(row.lost_iterations.as_ref().unwrap(), 0.4 / 2.0);
    close(row.lost_pct.as_ref().unwrap(), 20.0 / 1200.0 * 100.0 / 2.0);
    let search = row.runs[0].search.as_ref().unwrap();
    assert_eq!(search.settled_us, Some(200.0));
}

/// What `nv` gains with time cancels, whatever part of it a contestant gains beside it.
#[test]
fn drift_that_both_share_is_nobodys_gain() {
    let falling: Vec<f64> = (0..12).map(|n| 90.0 - 5.0 * f64::from(n)).collect();
    let nv = outcome(&falling, &falling, 0.0);
    let tenth: Vec<f64> = falling.iter().map(|d| d * 0.9).collect();
    let ran = outcome(&tenth, &falling, 0.0);
    let by_job = over_all(&ran, &nv);
    assert!(
        (by_job[0] - 0.9f64.ln()).abs() < 1e-12 && by_job[1] == 0.0,
        "{by_job:?}"
    );
}

#[test]
fn what_is_faster_than_nv_does_not_pay_for_what_is_slower() {
    let nv = [outcome(&[100.0; 12], &[100.0; 12], 0.0)];
    let mut a = [50.0; 12];
    a[3] = 99.0;
    let mut search = Search::default();
    search.note(0.0, true, false);
    search.end(1200.0);
    let ran = Ran {
        search: Some(search),
        outcome: outcome(&a, &[100.0; 12], 0.0),
    };
    let row = row("x", vec![(1, ran)], &nv);
    assert_eq!(row.lost_iterations.unwrap().by_seed, [0.0]);
}

#[test]
fn a_search_knows_when_candidates_stood_and_since_when_it_rests() {
    let mut search = Search::default();
    for (now, stands, rests) in [
        (0.0, false, true),
        (1.0, true, false),
        (2.0, true, false),
        (3.0, false, false),
        (4.0, false, true),
        (5.0, false, true),
        (6.0, true, false),
    ] {
        search.note(now, stands, rests);
    }
    let mut over = search.clone();
    search.end(9.0);
    assert_eq!(search.stood_us, [(1.0, 3.0), (6.0, 9.0)]);
    assert_eq!(search.settled_us, None);
    over.note(7.0, false, true);
    over.note(8.0, false, true);
    over.end(9.0);
    assert_eq!(over.stood_us, [(1.0, 3.0), (6.0, 7.0)]);
    assert_eq!(over.settled_us, Some(7.0));
}

fn scenario(contended: bool, rows: &[(&str, [f64; 2], [f64; 2])]) -> ScenarioResult {
    let estimate = |x: &[f64; 2]| Estimate::of(x.to_vec());
    let rows = rows.iter().map(|(name, time, victim)| Row {
        name: (*name).to_owned(),
        time_pct: estimate(time),
        settled_pct: Estimate::default(),
        flow_p99_pct: Estimate::default(),
        pause_points: estimate(&victim.map(|x| x / 10.0)),
        jobs: vec![JobRow {
            name: "job".to_owned(),
            slower_pct: estimate(victim),
        }],
        lost_iterations: None,
        lost_pct: None,
        runs: Vec::new(),
    });
    ScenarioResult {
        name: String::new(),
        about: String::new(),
        contended,
        simulated_ms: 1.0,
        warm_up_ms: 0.0,
        rows: rows.collect(),
    }
}

#[test]
fn keys_take_the_mean_where_flows_contend_and_the_worst_of_all_seeds() {
    let all = [
        scenario(false, &[("weir", [1.0, 0.0], [1.0, 1.0])]),
        scenario(
            true,
            &[
                ("nv_routed", [-10.0, -10.0], [0.0; 2]),
                ("weir", [-20.0, -16.0], [-5.0, 3.0]),
                ("weir, second session", [-20.0, 2.0], [6.0, -4.0]),
            ],
        ),
        scenario(
            true,
            &[
                ("nv_routed", [0.0; 2], [0.0; 2]),
                ("oracle", [-30.0; 2], [0.0; 2]),
                ("weir", [-10.0, -10.0], [2.0, 3.0]),
            ],
        ),
    ];
    let keys = keys(&all, &[90.0, 100.0]);
    let get = |key: &str| keys.get(key).copied();
    let near = |key: &str, wanted: f64| {
        let value = get(key).unwrap();
        assert!((value - wanted).abs() < 1e-9, "{key} {value} {wanted}");
    };
    near("tuning_mean_gain_pct_vs_nv", 14.0);
    // Two seeds, 15 and 13: 12.706 standard errors of 1.
    near("tuning_mean_gain_pct_vs_nv_ci95", 12.706);
    near("tuning_mean_gain_pct_on_oracle_scenarios", 10.0);
    let added = |a: f64, b: f64| (1.0 - a / b) * 100.0;
    let first = (added(80.0, 90.0) + added(84.0, 90.0)) / 2.0;
    near(
        "tuning_mean_gain_pct_vs_nv_routed",
        f64::midpoint(first, 10.0),
    );
    near("tuning_worst_scenario_pct", 2.0);
    near("tuning_worst_scenario_pct_mean", 0.5);
    near("tuning_worst_victim_slowdown_pct", 6.0);
    near("tuning_worst_victim_slowdown_pct_mean", 2.5);
    near("tuning_pause_points_over_nv", 0.6);
    near("oracle_tuning_mean_gain_pct_vs_nv", 30.0);
    near("nv_routed_tuning_worst_scenario_pct", 0.0);
    near("routing_pct_of_collision_free", 95.0);
    near("routing_pct_of_collision_free_min", 90.0);
    assert_eq!(get("paraleon_tuning_mean_gain_pct_vs_nv"), None);
    assert_eq!(get("oracle_tuning_mean_gain_pct_on_oracle_scenarios"), None);
}
