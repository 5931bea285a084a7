//! The one table of canonical signals: number on the wire, name, unit, kind and source.

/// How the values of a signal behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rises until it is reset; only differences mean something.
    Counter,
    /// Stands for itself.
    Gauge,
}

/// What a signal is a property of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entity {
    /// The node as a whole.
    Node,
    /// A network interface, by name.
    Port,
    /// A port of a verbs device, as `DEVICE/PORT`.
    Rdma,
    /// A GPU, by its PCI address.
    Gpu,
    /// A target of active probes, as `SOURCE/NODE:PORT`: by which interface of ours they leave (empty:
    /// the kernel's choice), and whom they go to (PORT is empty where nobody told).
    Probe,
}

macro_rules! signals {
    ($(#[doc = $help:literal] $variant:ident = $number:literal, $name:literal, $unit:literal, $kind:ident, $metric:literal, $scale:literal, [$($entity:ident)+] $(by $index:literal)?;)+) => {
        /// A canonical signal. The number is the one on the wire and never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Signal { $(#[doc = $help] $variant = $number,)+ }

        impl Signal {
            /// Every signal, in the order of the table.
            pub const ALL: &[Signal] = &[$(Signal::$variant,)+];

            /// Number on the wire.
            #[must_use]
            pub fn number(self) -> u32 { match self { $(Signal::$variant => $number,)+ } }

            /// The signal of a number; `None` if a newer peer knows more than we do.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Signal> {
                match number { $($number => Some(Signal::$variant),)+ _ => None }
            }

            /// Name, as in documents and JSON.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Signal::$variant => $name,)+ } }

            /// What it counts or measures, in a sentence.
            #[must_use]
            pub fn help(self) -> &'static str { match self { $(Signal::$variant => $help,)+ } }

            /// Unit on the wire.
            #[must_use]
            pub fn unit(self) -> &'static str { match self { $(Signal::$variant => $unit,)+ } }

            /// Counter or gauge.
            #[must_use]
            pub fn kind(self) -> Kind { match self { $(Signal::$variant => Kind::$kind,)+ } }

            /// Name of its metric for an entity of this kind.
            #[must_use]
            pub fn metric(self, entity: Entity) -> &'static str {
                match self {
                    $(Signal::$variant => match entity {
                        Entity::Node => concat!("weir_node_", $metric),
                        Entity::Port => concat!("weir_port_", $metric),
                        Entity::Rdma => concat!("weir_rdma_", $metric),
                        Entity::Gpu => concat!("weir_gpu_", $metric),
                        Entity::Probe => concat!("weir_probe_", $metric),
                    },)+
                }
            }

            /// What its values may be told apart by, such as the priority of a pause.
            #[must_use]
            pub fn index(self) -> Option<&'static str> {
                match self {
                    $(Signal::$variant => {
                        const INDEX: &[&str] = &[$($index)?];
                        INDEX.first().copied()
                    })+
                }
            }

            /// Base units of the metric in one unit of the wire.
            #[must_use]
            pub fn scale(self) -> f64 { match self { $(Signal::$variant => $scale,)+ } }

            /// What it may be a property of.
            #[must_use]
            pub fn entities(self) -> &'static [Entity] { match self { $(Signal::$variant => &[$(Entity::$entity),+],)+ } }
        }
    };
}

signals! {
    /// Bytes sent.
    TxBytes = 1, "tx_bytes", "bytes", Counter, "transmit_bytes_total", 1.0, [Port Rdma];
    /// Bytes received.
    RxBytes = 2, "rx_bytes", "bytes", Counter, "receive_bytes_total", 1.0, [Port Rdma];
    /// Packets sent.
    TxPackets = 3, "tx_packets", "packets", Counter, "transmit_packets_total", 1.0, [Port Rdma];
    /// Packets received.
    RxPackets = 4, "rx_packets", "packets", Counter, "receive_packets_total", 1.0, [Port Rdma];
    /// Packets dropped on the way out, by the stack or the driver.
    TxDrops = 5, "tx_drops", "packets", Counter, "transmit_drops_total", 1.0, [Port];
    /// Packets dropped on the way in: by the stack, the driver, or the device for want of a buffer.
    RxDrops = 6, "rx_drops", "packets", Counter, "receive_drops_total", 1.0, [Port];
    /// Packets that could not be sent.
    TxErrors = 7, "tx_errors", "packets", Counter, "transmit_errors_total", 1.0, [Port Rdma];
    /// Damaged packets received.
    RxErrors = 8, "rx_errors", "packets", Counter, "receive_errors_total", 1.0, [Port Rdma];
    /// 1 if the port is up and has a carrier, otherwise 0.
    LinkUp = 9, "link_up", "bool", Gauge, "up", 1.0, [Port Rdma];
    /// Backlog of the root qdisc at the sample (TCA_STATS2 queue).
    QueueBytes = 10, "queue_bytes", "bytes", Gauge, "queue_bytes", 1.0, [Port];
    /// Deepest backlog seen at an enqueue since the last sample (eBPF).
    QueueBytesMax = 11, "queue_bytes_max", "bytes", Gauge, "queue_max_bytes", 1.0, [Port];
    /// Packets dropped by the root qdisc and its children (TCA_STATS2 queue).
    QueueDrops = 12, "queue_drops", "packets", Counter, "queue_drops_total", 1.0, [Port];
    /// Packets marked CE by the qdisc, where its kind marks.
    EcnMarkedTx = 13, "ecn_marked_tx", "packets", Counter, "ecn_marked_total", 1.0, [Port];
    /// Packets freed with a drop reason on this port (eBPF, kfree_skb).
    KernelDrops = 14, "kernel_drops", "packets", Counter, "kernel_drops_total", 1.0, [Port];
    /// Records that the eBPF programs could not hand over.
    BpfLostRecords = 15, "bpf_lost_records", "records", Counter, "bpf_lost_records_total", 1.0, [Node];
    /// RoCE packets received with Congestion Experienced (notification point).
    EcnMarkedRx = 16, "ecn_marked_rx", "packets", Counter, "ecn_marked_receive_total", 1.0, [Rdma];
    /// Congestion notification packets sent by the receiver (notification point).
    CnpTx = 17, "cnp_tx", "packets", Counter, "cnp_transmit_total", 1.0, [Rdma];
    /// Congestion notification packets that made the sender slow down (reaction point).
    CnpRx = 18, "cnp_rx", "packets", Counter, "cnp_receive_total", 1.0, [Rdma];
    /// Congestion notification packets received and ignored.
    CnpIgnored = 19, "cnp_ignored", "packets", Counter, "cnp_ignored_total", 1.0, [Rdma];
    /// Pause frames received: the peer asks us to stop. Of one priority where PFC is on.
    PauseRx = 20, "pause_rx", "frames", Counter, "pause_receive_total", 1.0, [Port] by "priority";
    /// Pause frames sent: we ask the peer to stop. Of one priority where PFC is on.
    PauseTx = 21, "pause_tx", "frames", Counter, "pause_transmit_total", 1.0, [Port] by "priority";
    /// Time for which our transmitter was paused by the peer.
    PauseRxUs = 22, "pause_rx_us", "microseconds", Counter, "pause_receive_seconds_total", 1e-6, [Port] by "priority";
    /// Time for which we kept the peer's transmitter paused.
    PauseTxUs = 23, "pause_tx_us", "microseconds", Counter, "pause_transmit_seconds_total", 1e-6, [Port] by "priority";
    /// Times that a receiver which could not drain made the device send pause for too long.
    PauseStorms = 24, "pause_storms", "events", Counter, "pause_storms_total", 1.0, [Port];
    /// Packets sent again by the transport.
    Retransmits = 25, "retransmits", "packets", Counter, "retransmits_total", 1.0, [Rdma];
    /// Packets received out of sequence (receiver's side of a loss).
    OutOfSequence = 26, "out_of_sequence", "packets", Counter, "out_of_sequence_total", 1.0, [Rdma];
    /// Times that no acknowledgement came in time (sender's side of a loss).
    AckTimeouts = 27, "ack_timeouts", "events", Counter, "ack_timeouts_total", 1.0, [Rdma];
    /// Sequence-error NAKs that the sender received (sender's side of a loss).
    SequenceNaks = 28, "sequence_naks", "packets", Counter, "sequence_naks_total", 1.0, [Rdma];
    /// Receiver-not-ready NAKs that the sender received: the peer's application is late.
    RnrNaks = 29, "rnr_naks", "packets", Counter, "rnr_naks_total", 1.0, [Rdma];
    /// Packets that arrived and found no buffer.
    RxDiscards = 30, "rx_discards", "packets", Counter, "receive_discards_total", 1.0, [Port Rdma];
    /// Packets that could not leave in time, or at all.
    TxDiscards = 31, "tx_discards", "packets", Counter, "transmit_discards_total", 1.0, [Port Rdma];
    /// Symbols received that no code has.
    SymbolErrors = 32, "symbol_errors", "symbols", Counter, "symbol_errors_total", 1.0, [Port Rdma];
    /// Times that the link went down.
    LinkDowns = 33, "link_downs", "events", Counter, "link_downs_total", 1.0, [Port Rdma];
    /// Times that the link recovered by itself after errors.
    LinkRecoveries = 34, "link_recoveries", "events", Counter, "link_recoveries_total", 1.0, [Rdma];
    /// Times that local errors passed the threshold of the port's buffers.
    LinkIntegrityErrors = 35, "link_integrity_errors", "events", Counter, "link_integrity_errors_total", 1.0, [Rdma];
    /// Blocks that forward error correction repaired; not zero on a healthy link.
    FecCorrected = 36, "fec_corrected", "blocks", Counter, "fec_corrected_total", 1.0, [Port];
    /// Blocks that forward error correction could not repair.
    FecUncorrected = 37, "fec_uncorrected", "blocks", Counter, "fec_uncorrected_total", 1.0, [Port];
    /// Errors that the physical layer saw on one lane.
    LaneErrors = 38, "lane_errors", "errors", Counter, "lane_errors_total", 1.0, [Port] by "lane";
    /// Ticks in which the port had data to send and no credit (PortXmitWait).
    TxWait = 39, "tx_wait", "ticks", Counter, "transmit_wait_ticks_total", 1.0, [Rdma];
    /// Requests and completions that failed: access, length, operation or state of the queue pair.
    QpErrors = 40, "qp_errors", "events", Counter, "queue_pair_errors_total", 1.0, [Rdma];
    /// Retransmissions of mlx5's adaptive timer.
    AdaptiveRetransmits = 41, "adaptive_retransmits", "packets", Counter, "adaptive_retransmits_total", 1.0, [Rdma];
    /// Times that mlx5 began a slow restart.
    SlowRestarts = 42, "slow_restarts", "events", Counter, "slow_restarts_total", 1.0, [Rdma];
    /// RoCE packets whose invariant checksum was wrong.
    IcrcErrors = 43, "icrc_errors", "packets", Counter, "icrc_errors_total", 1.0, [Rdma];
    /// Events in which the device waited for the host's PCIe.
    PcieStalls = 44, "pcie_stalls", "events", Counter, "pcie_stalls_total", 1.0, [Port];
    /// Signal integrity errors of the host's PCIe as the NIC sees them.
    PcieErrors = 45, "pcie_errors", "errors", Counter, "pcie_errors_total", 1.0, [Port];
    /// Rate that the link trained to.
    RateBps = 46, "rate_bps", "bits per second", Gauge, "rate_bits_per_second", 1.0, [Port Rdma];
    /// Lanes that the link trained to.
    Lanes = 47, "lanes", "lanes", Gauge, "lanes", 1.0, [Port Rdma];
    /// Temperature of the transceiver module.
    ModuleTemperature = 48, "module_temperature", "millidegrees Celsius", Gauge, "module_temperature_celsius", 1e-3, [Port];
    /// Power that the transceiver module may draw at most.
    ModulePower = 49, "module_power", "milliwatts", Gauge, "module_power_watts", 1e-3, [Port];
    /// Temperature from which the transceiver module says that it is too hot.
    ModuleTemperatureLimit = 50, "module_temperature_limit", "millidegrees Celsius", Gauge, "module_temperature_limit_celsius", 1e-3, [Port];
    /// Packets that an EC2 instance's inbound bandwidth allowance queued or dropped.
    RxAllowanceExceeded = 51, "rx_allowance_exceeded", "packets", Counter, "receive_allowance_exceeded_total", 1.0, [Port];
    /// Packets that an EC2 instance's outbound bandwidth allowance queued or dropped.
    TxAllowanceExceeded = 52, "tx_allowance_exceeded", "packets", Counter, "transmit_allowance_exceeded_total", 1.0, [Port];
    /// Packets that an EC2 instance's allowance of packets per second, of both directions, queued or dropped.
    PacketAllowanceExceeded = 53, "packet_allowance_exceeded", "packets", Counter, "packet_allowance_exceeded_total", 1.0, [Port];
    /// Rate that the port is expected to run at: its best since the agent started, or what most ports of its kind run at.
    RateExpectedBps = 54, "rate_expected_bps", "bits per second", Gauge, "rate_expected_bits_per_second", 1.0, [Rdma];
    /// Lanes that the port is expected to run on, by the same rule.
    LanesExpected = 55, "lanes_expected", "lanes", Gauge, "lanes_expected", 1.0, [Rdma];
    /// 1 while the port is up below its expected rate or lanes, otherwise 0; absent while it is down.
    LinkDowngraded = 56, "link_downgraded", "bool", Gauge, "link_downgraded", 1.0, [Rdma];
    /// Temperature of the GPU.
    GpuTemperature = 60, "gpu_temperature", "millidegrees Celsius", Gauge, "temperature_celsius", 1e-3, [Gpu];
    /// Temperature of the GPU's memory.
    GpuMemoryTemperature = 61, "gpu_memory_temperature", "millidegrees Celsius", Gauge, "memory_temperature_celsius", 1e-3, [Gpu];
    /// Power that the GPU draws.
    GpuPower = 62, "gpu_power", "milliwatts", Gauge, "power_watts", 1e-3, [Gpu];
    /// Share of time in which a kernel ran, 0 to 100.
    GpuUtilisation = 63, "gpu_utilisation", "percent", Gauge, "utilisation_ratio", 1e-2, [Gpu];
    /// Memory in use.
    GpuMemoryUsed = 64, "gpu_memory_used", "bytes", Gauge, "memory_used_bytes", 1.0, [Gpu];
    /// Memory in all.
    GpuMemoryTotal = 65, "gpu_memory_total", "bytes", Gauge, "memory_total_bytes", 1.0, [Gpu];
    /// Memory errors corrected since the driver was loaded.
    EccCorrected = 66, "ecc_corrected", "errors", Counter, "ecc_corrected_total", 1.0, [Gpu];
    /// Memory errors not corrected since the driver was loaded.
    EccUncorrected = 67, "ecc_uncorrected", "errors", Counter, "ecc_uncorrected_total", 1.0, [Gpu];
    /// Memory errors corrected in the life of the device.
    EccCorrectedLifetime = 68, "ecc_corrected_lifetime", "errors", Counter, "ecc_corrected_lifetime_total", 1.0, [Gpu];
    /// Memory errors not corrected in the life of the device.
    EccUncorrectedLifetime = 69, "ecc_uncorrected_lifetime", "errors", Counter, "ecc_uncorrected_lifetime_total", 1.0, [Gpu];
    /// Rows remapped after corrected errors.
    RowsRemappedCorrected = 70, "rows_remapped_corrected", "rows", Gauge, "rows_remapped_corrected", 1.0, [Gpu];
    /// Rows remapped after errors that were not corrected.
    RowsRemappedUncorrected = 71, "rows_remapped_uncorrected", "rows", Gauge, "rows_remapped_uncorrected", 1.0, [Gpu];
    /// 1 while a row waits for a reset of the GPU to be remapped.
    RowRemapPending = 72, "row_remap_pending", "bool", Gauge, "row_remap_pending", 1.0, [Gpu];
    /// 1 after a row could not be remapped.
    RowRemapFailure = 73, "row_remap_failure", "bool", Gauge, "row_remap_failure", 1.0, [Gpu];
    /// Generation at which the device's PCIe link runs; of a verbs port only where no interface tells it.
    PcieGeneration = 74, "pcie_generation", "generation", Gauge, "pcie_generation", 1.0, [Gpu Port Rdma];
    /// Lanes at which the device's PCIe link runs; of a verbs port only where no interface tells it.
    PcieWidth = 75, "pcie_width", "lanes", Gauge, "pcie_lanes", 1.0, [Gpu Port Rdma];
    /// PCIe packets sent again.
    PcieReplays = 76, "pcie_replays", "packets", Counter, "pcie_replays_total", 1.0, [Gpu];
    /// Why the clocks are not at their highest: a bit set of nvmlClocksEventReasons.
    ClockReasons = 77, "clock_reasons", "bits", Gauge, "clock_event_reasons", 1.0, [Gpu];
    /// 1 while the link is active. Of one NVLink.
    NvlinkUp = 78, "nvlink_up", "bool", Gauge, "nvlink_up", 1.0, [Gpu] by "link";
    /// Bytes sent over NVLink. Of one link, or of all.
    NvlinkTxBytes = 79, "nvlink_tx_bytes", "bytes", Counter, "nvlink_transmit_bytes_total", 1.0, [Gpu] by "link";
    /// Bytes received over NVLink. Of one link, or of all.
    NvlinkRxBytes = 80, "nvlink_rx_bytes", "bytes", Counter, "nvlink_receive_bytes_total", 1.0, [Gpu] by "link";
    /// CRC errors, replays and recoveries. Of one NVLink.
    NvlinkErrors = 81, "nvlink_errors", "errors", Counter, "nvlink_errors_total", 1.0, [Gpu] by "link";
    /// State of the GPU in the NVLink fabric: 0 unsupported, 1 not started, 2 in progress, 3 completed.
    FabricState = 82, "fabric_state", "state", Gauge, "fabric_state", 1.0, [Gpu];
    /// Critical XIDs since the agent started.
    Xids = 83, "xids", "events", Counter, "xids_total", 1.0, [Gpu];
    /// Highest generation that the PCIe link can run at, as far as the device and its slot tell.
    PcieMaxGeneration = 84, "pcie_max_generation", "generation", Gauge, "pcie_max_generation", 1.0, [Gpu Port Rdma];
    /// Most lanes that the PCIe link can run on, as far as the device and its slot tell.
    PcieMaxWidth = 85, "pcie_max_width", "lanes", Gauge, "pcie_max_lanes", 1.0, [Gpu Port Rdma];
    /// Temperature at which the GPU slows its clocks down (AMD: its critical temperature).
    GpuTemperatureLimit = 86, "gpu_temperature_limit", "millidegrees Celsius", Gauge, "temperature_limit_celsius", 1e-3, [Gpu];
    /// The same of the GPU's memory.
    GpuMemoryTemperatureLimit = 87, "gpu_memory_temperature_limit", "millidegrees Celsius", Gauge, "memory_temperature_limit_celsius", 1e-3, [Gpu];
    /// What the driver asks for: 0 nothing, 1 reset, 2 reboot of the node, 3 drain of peer-to-peer, 4 drain and reset.
    RecoveryAction = 88, "recovery_action", "action", Gauge, "recovery_action", 1.0, [Gpu];
    /// Time to a target and back without the responder's delay, median of the last window. Of one path, or of all.
    ProbeRttNs = 90, "probe_rtt_ns", "nanoseconds", Gauge, "rtt_seconds", 1e-9, [Probe] by "path";
    /// Probes that were not answered in time. Of one path, or of all.
    ProbesLost = 91, "probes_lost", "packets", Counter, "lost_total", 1.0, [Probe] by "path";
    /// Probes that were answered or lost. Of one path, or of all.
    ProbesSent = 92, "probes_sent", "packets", Counter, "sent_total", 1.0, [Probe] by "path";
    /// Share of the last window's probes that was lost, 0 to 1. Of one path, or of all.
    ProbeLossPpm = 93, "probe_loss_ppm", "parts per million", Gauge, "loss_ratio", 1e-6, [Probe] by "path";
    /// As probe_rtt_ns, the 99th percentile.
    ProbeRttP99Ns = 94, "probe_rtt_p99_ns", "nanoseconds", Gauge, "rtt_p99_seconds", 1e-9, [Probe] by "path";
    /// As probe_rtt_ns, the shortest. Of all paths.
    ProbeRttMinNs = 95, "probe_rtt_min_ns", "nanoseconds", Gauge, "rtt_min_seconds", 1e-9, [Probe] by "path";
    /// As probe_rtt_ns, the longest. Of all paths.
    ProbeRttMaxNs = 96, "probe_rtt_max_ns", "nanoseconds", Gauge, "rtt_max_seconds", 1e-9, [Probe] by "path";
    /// Time that probes and replies spent in this host, between the agent and the stamps; 99th percentile of the last window.
    ProbeHostDelayNs = 97, "probe_host_delay_ns", "nanoseconds", Gauge, "host_delay_seconds", 1e-9, [Probe] by "path";
    /// Time for which the responder held the probes; 99th percentile of the last window.
    ProbeResponderDelayNs = 98, "probe_responder_delay_ns", "nanoseconds", Gauge, "responder_delay_seconds", 1e-9, [Probe] by "path";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_are_unique_and_come_back() {
        for signal in Signal::ALL {
            assert_eq!(Signal::from_number(signal.number()), Some(*signal));
        }
        assert_eq!(Signal::from_number(0), None);
    }

    #[test]
    fn names_are_unique_and_say_the_kind() {
        let names: BTreeSet<&str> = Signal::ALL.iter().map(|s| s.name()).collect();
        assert_eq!(names.len(), Signal::ALL.len());
        for signal in Signal::ALL {
            let total = signal.metric(Entity::Port).ends_with("_total");
            assert_eq!(total, signal.kind() == Kind::Counter, "{signal:?}");
        }
    }
}
