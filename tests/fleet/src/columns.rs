//! What an agent of the fleet tells: columns of ports, verbs devices and GPUs, as those of mlx5 and NVML.

use weir_wire::signal::Signal;
use weir_wire::v1;

macro_rules! table {
    ($(#[doc = $help:literal])+ $name:ident: $($variant:ident $([$index:literal])?),+ $(,)?) => {
        $(#[doc = $help])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($variant,)+ }

        impl $name {
            pub const ALL: &[(Signal, Option<u32>)] = &[$((Signal::$variant, {
                const INDEX: &[u32] = &[$($index)?];
                if INDEX.is_empty() { None } else { Some(INDEX[0]) }
            }),)+];
            /// The columns themselves, in the same order.
            pub const COLUMNS: &[$name] = &[$($name::$variant,)+];
        }
    };
}

table! {
    /// Of an interface. Pause is that of priority 3, which carries RoCE.
    Of: TxBytes, RxBytes, TxPackets, RxPackets, TxDrops, RxDrops, TxErrors, RxErrors, LinkUp, QueueBytes,
    QueueBytesMax, QueueDrops, EcnMarkedTx, KernelDrops, PauseRx[3], PauseTx[3], PauseRxUs[3], PauseTxUs[3],
    PauseStorms, RxDiscards, TxDiscards, SymbolErrors, LinkDowns, FecCorrected, FecUncorrected, PcieStalls,
    PcieErrors, RateBps, Lanes, ModuleTemperature,
}

table! {
    /// Of a verbs device's port. mlx5 does not count retransmissions: `Signal::Retransmits` is absent.
    Rdma: TxBytes, RxBytes, TxPackets, RxPackets, RxErrors, SymbolErrors, LinkRecoveries, LinkDowns, TxDiscards,
    LinkIntegrityErrors, TxWait, RxDiscards, OutOfSequence, RnrNaks, SequenceNaks, AckTimeouts,
    AdaptiveRetransmits, SlowRestarts, QpErrors, EcnMarkedRx, CnpTx, CnpRx, CnpIgnored, IcrcErrors, LinkUp,
    RateBps, Lanes,
}

table! {
    /// Of a GPU; its NVLinks follow.
    Gpu: GpuTemperature, GpuMemoryTemperature, GpuPower, GpuUtilisation, GpuMemoryUsed, GpuMemoryTotal,
    EccCorrected, EccUncorrected, EccCorrectedLifetime, EccUncorrectedLifetime, RowsRemappedCorrected,
    RowsRemappedUncorrected, RowRemapPending, RowRemapFailure, PcieGeneration, PcieWidth, PcieReplays,
    ClockReasons, FabricState, Xids, NvlinkTxBytes, NvlinkRxBytes,
}

/// GPUs of a host.
pub const GPUS: usize = 8;
/// NVLinks of a GPU (H100 and later).
pub const NVLINKS: usize = 18;
/// Columns of one NVLink: up, errors.
pub const NVLINK_COLUMNS: usize = 2;

/// PCI addresses of the GPUs of a host, as of an HGX board.
pub const GPU_ADDRESSES: [&str; GPUS] = [
    "0000:18:00.0",
    "0000:2a:00.0",
    "0000:3a:00.0",
    "0000:5d:00.0",
    "0000:9a:00.0",
    "0000:ab:00.0",
    "0000:ba:00.0",
    "0000:db:00.0",
];

/// PCI address of NIC `n`.
#[must_use]
pub fn nic_address(n: usize) -> String {
    format!("0000:{:02x}:00.0", 0x1b + 0x11 * n)
}

/// Where the columns of each thing of a node begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub ports: usize,
    pub devices: usize,
    pub gpus: usize,
    /// NVLinks told of each GPU.
    pub nvlinks: usize,
}

impl Layout {
    #[must_use]
    pub fn port(&self, n: usize, column: Of) -> usize {
        n * Of::ALL.len() + column as usize
    }

    #[must_use]
    pub fn device(&self, n: usize, column: Rdma) -> usize {
        self.ports * Of::ALL.len() + n * Rdma::ALL.len() + column as usize
    }

    #[must_use]
    pub fn gpu(&self, n: usize, column: Gpu) -> usize {
        self.gpu_start(n) + column as usize
    }

    /// Column of whether an NVLink is up; that of its errors follows.
    #[must_use]
    pub fn nvlink(&self, gpu: usize, link: usize) -> usize {
        self.gpu_start(gpu) + Gpu::ALL.len() + link * NVLINK_COLUMNS
    }

    fn gpu_start(&self, n: usize) -> usize {
        let each = Gpu::ALL.len() + self.nvlinks * NVLINK_COLUMNS;
        self.ports * Of::ALL.len() + self.devices * Rdma::ALL.len() + n * each
    }

    /// Columns in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.gpu_start(self.gpus)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The schema, given the names of the interfaces.
    #[must_use]
    pub fn schema(&self, epoch: u32, ports: &[String]) -> v1::Schema {
        let column =
            |name: &str, entity: v1::Entity, (signal, index): (Signal, Option<u32>)| v1::Column {
                port: name.to_owned(),
                signal: signal.number(),
                entity: entity.into(),
                index,
            };
        let mut columns = Vec::with_capacity(self.len());
        for port in ports {
            columns.extend(Of::ALL.iter().map(|c| column(port, v1::Entity::Port, *c)));
        }
        for n in 0..self.devices {
            let name = format!("mlx5_{n}/1");
            columns.extend(
                Rdma::ALL
                    .iter()
                    .map(|c| column(&name, v1::Entity::Rdma, *c)),
            );
        }
        for address in GPU_ADDRESSES.iter().take(self.gpus) {
            let gpu = |c| column(address, v1::Entity::Gpu, c);
            columns.extend(Gpu::ALL.iter().map(|c| gpu(*c)));
            for link in (0u32..).take(self.nvlinks) {
                columns.push(gpu((Signal::NvlinkUp, Some(link))));
                columns.push(gpu((Signal::NvlinkErrors, Some(link))));
            }
        }
        v1::Schema { epoch, columns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_one_devices() {
        let nics = (0..8).map(nic_address);
        let all: std::collections::BTreeSet<String> =
            nics.chain(GPU_ADDRESSES.map(str::to_owned)).collect();
        assert_eq!(all.len(), 8 + GPUS);
    }

    #[test]
    fn the_schema_has_each_column_where_the_layout_says() {
        let layout = Layout {
            ports: 2,
            devices: 2,
            gpus: 2,
            nvlinks: 3,
        };
        let schema = layout.schema(1, &["eth0".into(), "eth1".into()]);
        assert_eq!(schema.columns.len(), layout.len());
        let at = |n: usize| {
            let c = &schema.columns[n];
            (
                c.port.as_str(),
                Signal::from_number(c.signal).unwrap(),
                c.index,
            )
        };
        assert_eq!(
            at(layout.port(1, Of::PauseTxUs)),
            ("eth1", Signal::PauseTxUs, Some(3))
        );
        assert_eq!(
            at(layout.device(1, Rdma::CnpRx)),
            ("mlx5_1/1", Signal::CnpRx, None)
        );
        assert_eq!(
            at(layout.gpu(1, Gpu::Xids)),
            (GPU_ADDRESSES[1], Signal::Xids, None)
        );
        assert_eq!(
            at(layout.nvlink(1, 2)),
            (GPU_ADDRESSES[1], Signal::NvlinkUp, Some(2))
        );
        assert_eq!(at(layout.nvlink(1, 2) + 1).1, Signal::NvlinkErrors);
    }
}
