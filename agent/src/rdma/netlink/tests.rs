use super::*;
use proptest::prelude::*;

/// An attribute, padded as the kernel pads it.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, seq: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + payload.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(seq.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

fn counter(name: &[u8], value: u64) -> Vec<u8> {
    let entry = [
        attribute(ATTR_STAT_HWCOUNTER_ENTRY_NAME, name),
        attribute(ATTR_STAT_HWCOUNTER_ENTRY_VALUE, &value.to_ne_bytes()),
    ];
    attribute(ATTR_STAT_HWCOUNTER_ENTRY, &entry.concat())
}

#[test]
fn a_request_names_client_and_command() {
    let bytes = request(CMD_STAT_GET, 0, 7, &[(ATTR_DEV_INDEX, 2)]);
    assert_eq!(u32_at(&bytes, 0), Some(24));
    assert_eq!(u16_at(&bytes, 4), Some(0x1411));
    assert_eq!(u16_at(&bytes, 6), Some(NLM_F_REQUEST));
    assert_eq!(u32_at(&bytes, 8), Some(7));
    assert_eq!(
        Attributes(&bytes[HEADER..]).collect::<Vec<_>>(),
        [(1, &2u32.to_ne_bytes()[..])]
    );
}

#[test]
fn a_device_is_read() {
    let bytes = [
        attribute(ATTR_DEV_INDEX, &3u32.to_ne_bytes()),
        attribute(ATTR_DEV_NAME, b"mlx5_0\0"),
        attribute(ATTR_PORT_INDEX, &1u32.to_ne_bytes()),
        attribute(ATTR_FW_VERSION, b"28.39.1002\0"),
        attribute(ATTR_NODE_GUID, &0x0a7f_bc12_45ef_d23b_u64.to_ne_bytes()),
    ]
    .concat();
    let expected = Device {
        index: 3,
        name: "mlx5_0".into(),
        ports: 1,
        firmware: Some("28.39.1002".into()),
        node_guid: Some(0x0a7f_bc12_45ef_d23b),
    };
    assert_eq!(parse_device(&bytes), Some(expected));
    assert_eq!(parse_device(&bytes[..8]), None);
}

#[test]
fn a_port_is_read() {
    let bytes = [
        attribute(ATTR_PORT_STATE, &[4]),
        attribute(ATTR_PORT_PHYS_STATE, &[5]),
        attribute(ATTR_NDEV_INDEX, &9u32.to_ne_bytes()),
        attribute(ATTR_NDEV_NAME, b"eth2\0"),
    ]
    .concat();
    let expected = Port {
        state: Some(4),
        physical: Some(5),
        ifindex: Some(9),
        netdev: Some("eth2".into()),
    };
    assert_eq!(parse_port(&bytes), expected);
}

#[test]
fn counters_are_read_in_order_and_names_may_hold_spaces() {
    // The kernel sets NLA_F_NESTED on some tables and not on others.
    let table = [
        counter(b"cnpSent\0", 5),
        counter(b"Nak Sequence Error\0", 1 << 40),
        counter(b"\0", 1),
        counter(b"\xff\0", 1),
    ];
    let bytes = attribute(ATTR_STAT_HWCOUNTERS | 0x8000, &table.concat());
    let counters: Vec<(&str, u64)> = HwCounters(&bytes).iter().collect();
    assert_eq!(counters, [("cnpSent", 5), ("Nak Sequence Error", 1 << 40)]);
}

#[test]
fn counters_without_a_value_are_absent() {
    let name = attribute(ATTR_STAT_HWCOUNTER_ENTRY_NAME, b"out_of_buffer\0");
    let entry = attribute(ATTR_STAT_HWCOUNTER_ENTRY, &name);
    let bytes = attribute(ATTR_STAT_HWCOUNTERS, &entry);
    assert_eq!(HwCounters(&bytes).iter().count(), 0);
}

#[test]
fn only_optional_counters_have_a_state() {
    let entry = |name: &[u8], state: &[u8]| {
        let mut entry = attribute(ATTR_STAT_HWCOUNTER_ENTRY_NAME, name);
        if !state.is_empty() {
            entry.extend(attribute(ATTR_STAT_HWCOUNTER_DYNAMIC, state));
        }
        attribute(ATTR_STAT_HWCOUNTER_ENTRY, &entry)
    };
    let table = [
        entry(b"out_of_buffer\0", &[]),
        entry(b"cc_rx_ce_pkts\0", &[1]),
        entry(b"cc_tx_cnp_pkts\0", &[0]),
        entry(b"\0", &[1]),
    ];
    let bytes = attribute(ATTR_STAT_HWCOUNTERS, &table.concat());
    let found: Vec<(&str, bool)> = parse_optional(&bytes).collect();
    assert_eq!(found, [("cc_rx_ce_pkts", true), ("cc_tx_cnp_pkts", false)]);
    // The numbers of include/uapi/rdma/rdma_netlink.h.
    let request = request(CMD_STAT_GET_STATUS, 0, 1, &[]);
    assert_eq!(u16_at(&request, 4), Some(0x1418));
}

#[test]
fn counters_are_bounded() {
    let table: Vec<u8> = (0..700).flat_map(|i| counter(b"x\0", i)).collect();
    let bytes = attribute(ATTR_STAT_HWCOUNTERS, &table);
    assert_eq!(HwCounters(&bytes).iter().count(), COUNTERS_MAX);
}

#[test]
fn queue_pairs_are_read() {
    let user = [
        attribute(ATTR_RES_LQPN, &17u32.to_ne_bytes()),
        attribute(ATTR_RES_RQPN, &18u32.to_ne_bytes()),
        attribute(ATTR_RES_TYPE, &[2]),
        attribute(ATTR_RES_STATE, &[3]),
        attribute(ATTR_RES_PID, &4711u32.to_ne_bytes()),
    ];
    let kernel = [
        attribute(ATTR_RES_LQPN, &1u32.to_ne_bytes()),
        attribute(ATTR_RES_KERN_NAME, b"mad\0"),
    ];
    let table = [
        attribute(ATTR_RES_QP_ENTRY, &user.concat()),
        attribute(ATTR_RES_QP_ENTRY, &kernel.concat()),
        attribute(ATTR_RES_QP_ENTRY, &attribute(ATTR_RES_TYPE, &[2])),
    ];
    let bytes = attribute(ATTR_RES_QP, &table.concat());
    let qps: Vec<Qp> = parse_qps(&bytes).collect();
    assert_eq!(qps.len(), 2);
    assert_eq!(
        (qps[0].lqpn, qps[0].rqpn, qps[0].pid),
        (17, Some(18), Some(4711))
    );
    assert_eq!((qps[0].kind, qps[0].state), (Some(2), Some(3)));
    assert_eq!(qps[1].comm.as_deref(), Some("mad"));
}

fn walked(datagram: &[u8], single: bool) -> (usize, Option<Option<i32>>) {
    let mut messages = 0;
    let verdict = walk(datagram, 7, single, &mut |_| messages += 1);
    (
        messages,
        verdict.map(|v| v.err().and_then(|e| e.raw_os_error())),
    )
}

#[test]
fn an_answer_ends_with_its_last_message_and_late_replies_are_passed_over() {
    let one = message(0x1411, 7, &[0; 8]);
    let late = message(0x1411, 6, &[0; 8]);
    let done = message(NLMSG_DONE, 7, &[0; 4]);
    let refused = message(NLMSG_ERROR, 7, &(-libc::EMSGSIZE).to_ne_bytes());
    assert_eq!(
        walked(&[late.clone(), one.clone()].concat(), true),
        (1, Some(None))
    );
    assert_eq!(walked(&late, true), (0, None));
    assert_eq!(
        walked(&[one.clone(), one.clone(), done].concat(), false),
        (2, Some(None))
    );
    assert_eq!(walked(&one, false), (1, None));
    assert_eq!(walked(&refused, true), (0, Some(Some(libc::EMSGSIZE))));
}

#[test]
fn a_reply_that_is_cut_short_is_an_error() {
    let one = message(0x1411, 7, &[0; 8]);
    assert!(walk(&one[..20], 7, true, &mut |_| {}).unwrap().is_err());
    assert!(walk(&[0; 16], 7, true, &mut |_| {}).unwrap().is_err());
}

#[test]
fn without_an_rdma_subsystem_the_reason_is_one_line() {
    if let Err(error) = RdmaNetlink::open() {
        let reason = error.to_string();
        assert!(!reason.is_empty() && !reason.contains('\n'));
    }
}

proptest! {
    #[test]
    fn garbage_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), seq in 0u32..4) {
        let mut seen = 0;
        let _ = walk(&bytes, seq, false, &mut |message| {
            seen += 1;
            let _ = (parse_device(message), parse_port(message));
            seen += parse_qps(message).count() + HwCounters(message).iter().count();
            seen += parse_optional(message).count();
        });
        prop_assert!(seen <= bytes.len());
    }

    #[test]
    fn garbage_inside_a_table_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for table in [ATTR_RES_QP, ATTR_STAT_HWCOUNTERS] {
            for entry in [ATTR_RES_QP_ENTRY, ATTR_STAT_HWCOUNTER_ENTRY] {
                let message = attribute(table, &attribute(entry, &bytes));
                prop_assert!(parse_qps(&message).count() + HwCounters(&message).iter().count() <= 1);
            }
        }
    }
}
