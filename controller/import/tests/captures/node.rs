//! Captures of nodes, adapters and links.

use super::{capture, count, document};
use weir_import::affinity::Path;
use weir_import::finding::Kind;
use weir_import::format::{Document, Format};
use weir_import::guid::Guid;
use weir_import::mlxlink::Ber;
use weir_wire::signal::Signal;

#[test]
fn counters_and_which_of_them_are_stuck() {
    let path = "fabric/snippets/ibqueryerrors-sx6036-saturated.txt";
    let Some(Document::Counters(ports)) = document(path, Format::Ibqueryerrors) else {
        return;
    };
    assert_eq!(
        ports.len(),
        15,
        "fourteen ports and the sum over those of the switch"
    );
    let readings: Vec<_> = ports
        .iter()
        .flat_map(weir_import::counters::PortCounters::readings)
        .collect();
    let stuck = |signal| {
        readings
            .iter()
            .filter(|r| r.saturated && r.signal == signal)
            .count()
    };
    assert_eq!((stuck(Signal::SymbolErrors), stuck(Signal::TxWait)), (2, 7));
    assert_eq!(ports[2].guid, Guid::parse("0x0002c9030042dff1"));
    let findings = weir_import::counters::findings(&ports);
    assert_eq!(count(&findings, Kind::Saturated), 9);
    assert_eq!(count(&findings, Kind::Errors), 8);
}

#[test]
fn perfquery() {
    let mut read = 0;
    for (path, ports, counters) in [
        ("perfquery/0x506b4b03005c2740.out", 1, 22),
        ("perfquery/0x7cfe9003003b4b96.out", 1, 22),
        ("perfquery/0x7cfe9003003b4bde.out", 1, 22),
        ("perfquery/0x7cfe9003009ce5b0.out", 2, 44),
        ("perfquery-rcv-error/0x506b4b03005c2740-1.out", 1, 6),
        ("perfquery-rcv-error/0x7cfe9003003b4b96-1.out", 1, 6),
        ("perfquery-rcv-error/0x7cfe9003003b4bde-1.out", 1, 6),
        ("perfquery-rcv-error/0x7cfe9003009ce5b0-1.out", 1, 6),
        ("perfquery-rcv-error/0x7cfe9003009ce5b0-2.out", 1, 6),
    ] {
        let path = format!("fabric/treydock/{path}");
        let Some(Document::Counters(found)) = document(&path, Format::Perfquery) else {
            return;
        };
        let all: usize = found.iter().map(|p| p.counters.len()).sum();
        assert_eq!((found.len(), all), (ports, counters), "{path}");
        read += 1;
    }
    assert_eq!(read, 9);
    let text = capture("fabric/treydock/perfquery/0x506b4b03005c2740.out").unwrap();
    let found = weir_import::counters::parse_perfquery(&text).unwrap();
    let sent = found[0]
        .readings()
        .into_iter()
        .find(|r| r.signal == Signal::TxBytes);
    assert_eq!(
        sent.unwrap().value,
        178_791_657_177_235 * 4,
        "words of four bytes"
    );
    // A query that failed leaves an empty file.
    let empty = capture("fabric/treydock/perfquery/0x506b4b0300cc02a6.out").unwrap();
    assert_eq!(read_counters(&empty), 0);
}

fn read_counters(text: &str) -> usize {
    weir_import::counters::parse_perfquery(text).unwrap().len()
}

#[test]
fn adapters() {
    let path = "fabric/snippets/ibstat-b300-cx8-cx7.txt";
    let Some(Document::Adapters(adapters)) = document(path, Format::Ibstat) else {
        return;
    };
    let ports: Vec<_> = adapters.iter().flat_map(|a| &a.ports).collect();
    let told: Vec<_> = ports.iter().map(|p| (p.lid, p.rate_bps)).collect();
    assert_eq!(told, [(None, None), (None, None), (Some(1), Some(100e9))]);
    assert_eq!(weir_import::ibstat::findings(&adapters).len(), 2);
    let path = "fabric/snippets/ibstatus-cx7-2xNDR.txt";
    let Some(Document::Adapters(adapters)) = document(path, Format::Ibstat) else {
        return;
    };
    let port = &adapters[0].ports[0];
    assert_eq!(
        (port.lid, port.rate_bps, port.lanes),
        (Some(0x6c), Some(200e9), Some(2))
    );
}

#[test]
fn switches_of_their_own_account() {
    let file = |name: &str| capture(&format!("fabric/treydock/ibswinfo/{name}.out"));
    for (name, fans, supplies, findings) in [
        ("test1", 8, 2, 1),
        ("test2", 9, 2, 0),
        ("test3", 9, 1, 2),
        ("test1-missing", 7, 1, 0),
    ] {
        let Some(text) = file(name) else { return };
        let switch = weir_import::ibswinfo::parse(&text).unwrap();
        let found = weir_import::ibswinfo::findings(&switch).len();
        assert_eq!(
            (switch.fans_rpm.len(), switch.power_w.len(), found),
            (fans, supplies, findings),
            "{name}"
        );
    }
    for (name, line) in [("test-err1", 20), ("test-err2", 28), ("test-err3", 32)] {
        let Some(text) = file(name) else { return };
        let error = weir_import::ibswinfo::parse(&text).unwrap_err();
        assert_eq!(
            (error.line, error.found.contains("foo")),
            (line, true),
            "{error}"
        );
    }
}

#[test]
fn nccl_topologies() {
    for (name, gpus, nics, speed) in [
        ("H100-topology.xml", 8, 8, Some(360e9)),
        ("H100-topology-kubernetes.xml", 8, 8, Some(400e9)),
        ("topo-flattened.xml", 8, 8, None),
        ("topo-flattened-b4.xml", 8, 8, None),
    ] {
        let path = format!("nccl-topo/oci-hpc/{name}");
        let Some(Document::Affinity(affinity)) = document(&path, Format::Nccl) else {
            return;
        };
        assert_eq!(
            (affinity.gpus.len(), affinity.nics.len()),
            (gpus, nics),
            "{name}"
        );
        assert_eq!(affinity.nics[0].rate_bps, speed, "{name}");
        assert!(
            affinity.nearest().iter().all(|n| n.path == Path::Pix),
            "{name}"
        );
        assert!(affinity.findings().is_empty(), "{name}");
        // The flattened files put two GPUs beside two NICs, the full ones one GPU beside one.
        let near = if speed.is_some() { 1 } else { 2 };
        assert!(
            affinity.nearest().iter().all(|n| n.nics.len() == near),
            "{name}"
        );
        assert_eq!(affinity.gpus[0].nvlinks, speed.map(|_| 18), "{name}");
        let switched = affinity.gpu_gpu[0][7] == Some(Path::NvLink(18));
        assert_eq!(switched, speed.is_some(), "{name}");
    }
}

#[test]
fn matrices() {
    let Some(Document::Affinity(full)) = document("topo-m/h100-8gpu-9nic.txt", Format::TopoM)
    else {
        return;
    };
    assert_eq!((full.gpus.len(), full.nics.len()), (8, 9));
    let pairs: Vec<_> = full
        .nearest()
        .into_iter()
        .map(|n| (n.path, n.nics.join(",")))
        .collect();
    let expected = [8, 7, 6, 5, 4, 3, 2, 1].map(|n| (Path::Pix, format!("NIC{n}")));
    assert_eq!(pairs, expected);
    assert_eq!(
        (full.gpus[7].numa, full.gpus[7].cpus.as_deref()),
        (Some(1), Some("80-159"))
    );
    assert_eq!(full.gpu_gpu[0][1], Some(Path::NvLink(18)));
    let Some(Document::Affinity(vm)) = document("topo-m/h100-vm-ansi-escaped.txt", Format::TopoM)
    else {
        return;
    };
    assert_eq!((vm.gpus.len(), vm.nics.len()), (1, 0));
    assert_eq!(vm.gpus[0].cpus.as_deref(), Some("0-19"));
}

#[test]
fn module_reports() {
    let path = "mlxlink/cx7-400g-dr4-fec-histogram-mft4.34.1.json";
    let Some(Document::Link(link)) = document(path, Format::Mlxlink) else {
        return;
    };
    assert_eq!(link.histogram.len(), 16);
    assert!(link.histogram.windows(2).all(|b| b[0].low < b[1].low));
    assert_eq!((link.histogram[8].low, link.histogram[8].codewords), (8, 3));
    assert_eq!(
        (link.effective_ber, link.raw_ber),
        (Some(Ber::NoErrors), Some(Ber::Rate(5e-10)))
    );
    let corrected = link
        .readings()
        .into_iter()
        .find(|r| r.signal == Signal::FecCorrected);
    assert_eq!(
        corrected.unwrap().value,
        65_755_507 + 7970 + 177 + 64 + 2 + 1 + 1 + 3
    );
    let path = "mlxlink/cx7-400g-dr4-mft4.34.1.json";
    let Some(Document::Link(link)) = document(path, Format::Mlxlink) else {
        return;
    };
    let temperature = link.temperature_c.as_ref().unwrap();
    assert_eq!(
        (temperature.values.as_slice(), temperature.range),
        ([61.0].as_slice(), Some((-10.0, 80.0)))
    );
    assert_eq!(
        (link.rate_bps, link.lanes, link.power_max_w),
        (Some(400e9), Some(4), Some(8.0))
    );
    assert_eq!(
        link.rx_power_dbm.as_ref().unwrap().values,
        [3.583, 3.253, 3.233, 2.658]
    );
    assert_eq!(
        link.lane_errors,
        [3_017_647, 15_132_549, 7_368_641, 9_233_545]
    );
    assert!(link.findings("mlx5_0").is_empty() && link.histogram.is_empty());
}

#[test]
fn gpu_inventories() {
    for (name, gpus, product, findings) in [
        ("qx-a100-healthy", 2, "NVIDIA A100-SXM4-40GB", 0),
        ("qx-gb200-ecc-injected", 2, "NVIDIA GB200", 0),
        ("qx-gb200-fabric-degraded", 2, "NVIDIA GB200", 0),
        ("qx-gb200-healthy", 2, "NVIDIA GB200", 0),
        ("qx-gb200-lost", 2, "NVIDIA GB200", 1),
        ("qx-gb200-throttle-counters", 2, "NVIDIA GB200", 0),
        ("hardware/qx-a100", 1, "NVIDIA A100-SXM4-40GB", 0),
        ("hardware/qx-b200", 8, "NVIDIA B200", 0),
        ("hardware/qx-gb200", 4, "NVIDIA GB200", 0),
        ("hardware/qx-gb300", 4, "NVIDIA GB300", 0),
        ("hardware/qx-h100", 8, "NVIDIA H100 80GB HBM3", 0),
        ("hardware/qx-l40s", 1, "NVIDIA L40S", 0),
        ("hardware/qx-t4", 1, "Tesla T4", 0),
    ] {
        let path = format!("nvidia-smi/k8s-test-infra/{name}.xml");
        let Some(Document::Gpus(inventory)) = document(&path, Format::Smi) else {
            return;
        };
        assert_eq!(inventory.gpus.len(), gpus, "{name}");
        assert_eq!(
            inventory.gpus[0].product.as_deref(),
            Some(product),
            "{name}"
        );
        assert!(inventory.driver.is_some(), "{name}");
        assert_eq!(
            weir_import::smi::findings(&inventory).len(),
            findings,
            "{name}"
        );
    }
}
