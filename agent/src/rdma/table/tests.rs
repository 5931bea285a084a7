use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use weir_wire::signal::{Entity, Kind};

#[test]
fn every_signal_is_a_counter_of_a_verbs_port() {
    for row in ROWS {
        assert!(row.signal.entities().contains(&Entity::Rdma), "{row:?}");
        assert_eq!(row.signal.kind(), Kind::Counter, "{row:?}");
    }
}

#[test]
fn a_driver_names_a_counter_once() {
    let names: BTreeSet<(Driver, &str)> = ROWS.iter().map(|r| (r.driver, r.raw)).collect();
    assert_eq!(names.len(), ROWS.len());
}

#[test]
fn two_counters_of_one_signal_say_which_counts() {
    let mut groups: BTreeMap<(Driver, Signal, u8), Vec<&Row>> = BTreeMap::new();
    for row in ROWS {
        groups
            .entry((row.driver, row.signal, row.rank))
            .or_default()
            .push(row);
    }
    for rows in groups.values() {
        let first = rows[0];
        assert!(rows.iter().all(|r| r.merge == first.merge), "{first:?}");
        assert!(rows.len() == 1 || first.merge != Merge::Only, "{first:?}");
        if first.merge == Merge::Adds {
            assert!(
                rows.iter()
                    .all(|r| r.bits == first.bits && r.overflow == Overflow::Wraps),
                "{first:?}"
            );
        }
    }
}

#[test]
fn a_common_counter_gives_way_to_the_drivers_own() {
    for row in ROWS.iter().filter(|r| r.driver == Driver::Iba) {
        assert!(row.rank == 1, "{row:?}");
    }
}

#[test]
fn widths_and_factors_are_sound() {
    for row in ROWS {
        assert!((1..=64).contains(&row.bits), "{row:?}");
        assert!(row.times == 1 || row.bits == 64, "{row:?}");
    }
}

#[test]
fn lifespan_is_a_setting_and_not_a_counter() {
    assert!(ROWS.iter().all(|r| r.raw != "lifespan"));
}

#[test]
fn a_driver_without_rows_has_the_common_ones() {
    assert_eq!(
        lookup(Driver::Other, "link_downed").map(|r| r.bits),
        Some(8)
    );
    assert_eq!(lookup(Driver::Rxe, "link_downed").map(|r| r.bits), Some(64));
    assert_eq!(lookup(Driver::Other, "out_of_buffer"), None);
}

#[test]
fn drivers_are_known_by_module_and_by_name() {
    assert_eq!(Driver::of_module("bnxt_en"), Driver::BnxtRe);
    assert_eq!(Driver::of_module("virtio_net"), Driver::Other);
    assert_eq!(Driver::of_device("mlx5_bond_0"), Driver::Mlx5);
    assert_eq!(Driver::of_device("rdmap16s27"), Driver::Efa);
    assert_eq!(Driver::of_device("rocep24s0"), Driver::Other);
}

fn merged(driver: Driver, counters: &[(&str, u64)]) -> BTreeMap<Signal, Reading> {
    let mut merged = Merged::default();
    for (name, value) in counters {
        merged.add(lookup(driver, name).unwrap(), *value);
    }
    merged.readings().collect()
}

#[test]
fn parts_are_added_and_wrap_at_their_width() {
    let all = merged(
        Driver::Mlx5,
        &[
            ("req_remote_access_errors", u64::from(u32::MAX)),
            ("resp_local_length_error", 3),
        ],
    );
    assert_eq!(all[&Signal::QpErrors].value, 2);
    assert_eq!(all[&Signal::QpErrors].bits, 32);
}

#[test]
fn the_lower_rank_counts_in_either_order() {
    let mut counters = [("np_cnp_sent", 5), ("cc_tx_cnp_pkts", 9)];
    assert_eq!(merged(Driver::Mlx5, &counters)[&Signal::CnpTx].value, 5);
    counters.reverse();
    assert_eq!(merged(Driver::Mlx5, &counters)[&Signal::CnpTx].value, 5);
    assert_eq!(
        merged(Driver::Mlx5, &counters[..1])[&Signal::CnpTx].value,
        9
    );
}

#[test]
fn a_wide_form_outlives_the_pinned_narrow_one() {
    let all = merged(
        Driver::Mlx4,
        &[
            ("port_xmit_data", 4_294_967_295),
            ("port_xmit_data_64", 5_000_000_000),
        ],
    );
    assert_eq!(all[&Signal::TxBytes].value, 20_000_000_000);
}

#[test]
fn what_is_part_of_a_sum_is_not_told_by_it() {
    let mut merged = Merged::default();
    let parts = ["ip4InOctets", "ip6InOctets"].map(|n| lookup(Driver::Irdma, n).unwrap());
    merged.add(parts[0], 1);
    assert!(merged.tells(parts[0]));
    merged.add(parts[1], 1);
    assert!(!merged.tells(parts[0]));
}

#[test]
fn a_value_wider_than_its_row_is_not_cut() {
    let row = lookup(Driver::Iba, "link_downed").unwrap();
    assert_eq!(row.reading(300), Some(Reading::wide(300)));
    assert_eq!(row.reading(255).map(|r| r.bits), Some(8));
}

#[test]
fn documents_have_a_line_for_each_row() {
    assert_eq!(documented().count(), ROWS.len());
    assert!(documented().any(|line| line[0] == "efa" && line[1] == "tx_bytes"));
}

proptest! {
    #[test]
    fn no_value_panics_and_none_exceeds_its_width(picks in prop::collection::vec((0..ROWS.len(), any::<u64>()), 0..60)) {
        let mut merged = Merged::default();
        for (index, value) in picks {
            merged.add(&ROWS[index], value);
        }
        for (_, reading) in merged.readings() {
            prop_assert!(reading.bits == 64 || reading.value >> reading.bits == 0);
        }
    }
}

#[test]
fn raw_counters_count_but_for_objects_that_are_there() {
    for (driver, name, kind) in [
        (Driver::BnxtRe, "active_qps", RawKind::Gauge),
        (Driver::BnxtRe, "watermark_mrs", RawKind::Gauge),
        (Driver::BnxtRe, "resize_cq_count", RawKind::Counter),
        (Driver::Mlx5, "active_qps", RawKind::Counter),
        (Driver::Efa, "submitted_cmds", RawKind::Counter),
        (Driver::Other, "anything", RawKind::Unknown),
    ] {
        assert_eq!(raw_kind(driver, name), kind, "{driver:?} {name}");
    }
}
