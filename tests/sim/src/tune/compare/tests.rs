use super::*;

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|c| c.name == name).unwrap()
}

/// Whatever `nv` gains with time, in a scenario in which it gains much.
#[test]
fn a_contestant_that_does_nothing_has_nothing_in_every_column() {
    let start = Start::new(case("incast"), 1).unwrap();
    let nv = fixed(&start, start.time, None, false);
    let half = |from, until| nv.jobs[0].mean_us(from, until).unwrap();
    let ms = nv.us / 1e3;
    assert!(ms > 100.0, "{ms}");
    assert_ne!(half(0.0, nv.us / 2.0), half(nv.us / 2.0, nv.us));
    let outcome = start.run(start.time, weir::TICK, &mut |sim| {
        sim.sample();
    });
    // It says that a candidate stands all the time, and leaves everything as it is.
    let mut search = Search::default();
    search.note(0.0, true, false);
    search.end(outcome.us);
    let ran = Ran {
        outcome,
        search: Some(search),
    };
    let row = row("idle", vec![(1, ran)], &[nv]);
    for estimate in [
        &row.time_pct,
        &row.settled_pct,
        &row.flow_p99_pct,
        &row.pause_points,
        &row.jobs[0].slower_pct,
    ] {
        assert_eq!(estimate.by_seed, [0.0], "{row:?}");
    }
    assert!(row.lost_pct.unwrap().mean < 1e-9);
}

#[test]
fn threads_change_nothing() {
    let results = |jobs| {
        let options = Options {
            seeds: 2,
            scenarios: vec!["clean-ring".to_owned()],
            contestants: vec!["paraleon".to_owned(), "weir".to_owned()],
            jobs,
        };
        let told = Mutex::new(Vec::new());
        let results = tuning_results(&options, |scenario, contestant| {
            told.lock()
                .unwrap()
                .push(format!("{scenario}, {contestant}"));
        });
        let told = told.into_inner().unwrap();
        assert_eq!(told.len() as u64, runs(&options));
        serde_json::to_string(&results.unwrap()).unwrap()
    };
    let one = results(1);
    assert_eq!(one, results(3));
    assert!(one.contains("paraleon") && !one.contains("oracle"));
}

#[test]
fn work_is_done_in_order_and_an_error_ends_it() {
    let squares = on_threads(100, 4, |n| Ok::<_, String>(n * n)).unwrap();
    assert_eq!(squares, (0..100).map(|n| n * n).collect::<Vec<_>>());
    let failed = on_threads(10, 4, |n| if n == 7 { Err("seven") } else { Ok(n) });
    assert_eq!(failed, Err("seven"));
    assert_eq!(on_threads(0, 4, Err::<(), usize>), Ok(Vec::new()));
}
