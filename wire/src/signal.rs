//! The one table of canonical signals: number on the wire, name, unit, kind and source.

/// How the values of a signal behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rises until it is reset; only differences mean something.
    Counter,
    /// Stands for itself.
    Gauge,
}

macro_rules! signals {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $unit:literal, $kind:ident;)+) => {
        /// A canonical signal. The number is the one on the wire and never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Signal { $($(#[$doc])* $variant = $number,)+ }

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

            /// Name, as in metrics and documents.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Signal::$variant => $name,)+ } }

            /// Base unit.
            #[must_use]
            pub fn unit(self) -> &'static str { match self { $(Signal::$variant => $unit,)+ } }

            /// Counter or gauge.
            #[must_use]
            pub fn kind(self) -> Kind { match self { $(Signal::$variant => Kind::$kind,)+ } }
        }
    };
}

signals! {
    /// IFLA_STATS64 tx_bytes.
    TxBytes = 1, "tx_bytes", "bytes", Counter;
    /// IFLA_STATS64 rx_bytes.
    RxBytes = 2, "rx_bytes", "bytes", Counter;
    /// IFLA_STATS64 tx_packets.
    TxPackets = 3, "tx_packets", "packets", Counter;
    /// IFLA_STATS64 rx_packets.
    RxPackets = 4, "rx_packets", "packets", Counter;
    /// IFLA_STATS64 tx_dropped.
    TxDrops = 5, "tx_drops", "packets", Counter;
    /// IFLA_STATS64 rx_dropped.
    RxDrops = 6, "rx_drops", "packets", Counter;
    /// IFLA_STATS64 tx_errors.
    TxErrors = 7, "tx_errors", "packets", Counter;
    /// IFLA_STATS64 rx_errors.
    RxErrors = 8, "rx_errors", "packets", Counter;
    /// IFLA_OPERSTATE is up: 1, otherwise 0.
    LinkUp = 9, "link_up", "bool", Gauge;
    /// Backlog of the root qdisc at the sample (TCA_STATS2 queue).
    QueueBytes = 10, "queue_bytes", "bytes", Gauge;
    /// Deepest backlog seen at an enqueue since the last sample (eBPF, qdisc_enqueue).
    QueueBytesMax = 11, "queue_bytes_max", "bytes", Gauge;
    /// Packets dropped by the root qdisc and its children (TCA_STATS2 queue).
    QueueDrops = 12, "queue_drops", "packets", Counter;
    /// Packets marked CE by the qdisc, where its kind marks.
    EcnMarkedTx = 13, "ecn_marked_tx", "packets", Counter;
    /// Packets freed with a drop reason on this port (eBPF, kfree_skb).
    KernelDrops = 14, "kernel_drops", "packets", Counter;
    /// Records that the eBPF programs could not hand over.
    BpfLostRecords = 15, "bpf_lost_records", "records", Counter;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        for signal in Signal::ALL {
            assert_eq!(Signal::from_number(signal.number()), Some(*signal));
        }
        assert_eq!(Signal::from_number(0), None);
    }
}
