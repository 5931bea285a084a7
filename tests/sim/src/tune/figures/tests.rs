use super::*;
use crate::tune::case::JobRun;

/// A run of 1 ms in which iterations of two jobs took so long, us.
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
        us: 1000.0,
        jobs: vec![job("a", a), job("b", b)],
        paused_worst,
        paused_mean: 0.0,
        lost: 0,
        out_of_sequence: 0,
    }
}

#[test]
fn a_row_weighs_jobs_alike_and_names_the_one_that_lost_most() {
    let nv = [outcome(&[100.0; 10], &[50.0; 10], 0.01)];
    // The first job gains a half from its third iteration on, the second loses a fifth.
    let mut a = [50.0; 10];
    (a[0], a[1]) = (100.0, 130.0);
    let ran = Ran {
        settled: Some(WARM_UP + 200 * crate::time::US),
        ..Ran::plain(outcome(&a, &[60.0; 10], 0.03))
    };
    let row = row("x", true, vec![(1, ran)], &nv);
    let close = |e: &Estimate, wanted: f64| {
        assert!((e.mean - wanted).abs() < 1e-9, "{} {wanted}", e.mean);
    };
    close(&row.time_pct, ((0.63f64 * 1.2).sqrt() - 1.0) * 100.0);
    close(&row.settled_pct, ((0.5f64 * 1.2).sqrt() - 1.0) * 100.0);
    close(&row.flow_p99_pct, ((1.3f64 * 1.2).sqrt() - 1.0) * 100.0);
    close(&row.pause_points, 2.0);
    assert_eq!(row.victim, "b");
    close(&row.victim_pct, 20.0);
    // Until 200 us: 0.3 of an iteration of the first, twice 0.2 of the second.
    close(row.lost_iterations.as_ref().unwrap(), (0.3 + 0.4) / 2.0);
    assert_eq!(row.runs[0].settled_ms, Some(0.2));
}

#[test]
fn keys_take_the_mean_where_flows_contend_and_the_worst_of_all() {
    let estimate = |x: f64| Estimate::of(vec![x]);
    let scenario = |contended: bool, time: f64, victim: f64| ScenarioResult {
        name: String::new(),
        about: String::new(),
        contended,
        simulated_ms: 1.0,
        rows: vec![Row {
            name: "weir".to_owned(),
            time_pct: estimate(time),
            settled_pct: estimate(0.0),
            flow_p99_pct: estimate(0.0),
            pause_points: estimate(victim / 10.0),
            victim: String::new(),
            victim_pct: estimate(victim),
            lost_iterations: None,
            runs: Vec::new(),
        }],
    };
    let all = [
        scenario(false, 1.0, 1.0),
        scenario(true, -20.0, -5.0),
        scenario(true, -10.0, 3.0),
    ];
    let keys = keys(&all, &[90.0, 100.0]);
    let wanted = [
        ("routing_pct_of_collision_free", 95.0),
        ("tuning_mean_gain_pct_vs_nv", 15.0),
        ("tuning_pause_points_over_nv", 0.3),
        ("tuning_worst_scenario_pct", 1.0),
        ("tuning_worst_victim_slowdown_pct", 3.0),
    ];
    let wanted: BTreeMap<String, f64> = wanted.map(|(k, v)| (k.to_owned(), v)).into();
    assert_eq!(keys, wanted);
}
