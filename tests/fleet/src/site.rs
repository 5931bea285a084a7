//! What a site has, and so what its agents tell: switches of its own or a provider's, GPUs of NVIDIA or AMD, Ethernet
//! or InfiniBand.

use crate::columns::{Gpu, Of, Rdma};
use weir_controller_core::verdict::Class;

/// A kind of site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Site {
    /// Agents on hosts and switches, RoCE, GPUs of NVIDIA.
    #[default]
    Ethernet,
    /// The switches are the provider's: nobody says how hosts are cabled, nor what a switch counts.
    Cloud,
    /// As `Ethernet`, with GPUs of AMD (amdgpu's sysfs).
    Amd,
    /// Switches that no agent runs on; credits instead of pause, so that there are no marks and no CNPs.
    Infiniband,
}

impl Site {
    /// Whether agents run on the switches, and the operator's file says how all is cabled.
    #[must_use]
    pub fn switches_tell(self) -> bool {
        match self {
            Site::Ethernet | Site::Amd => true,
            Site::Cloud | Site::Infiniband => false,
        }
    }

    /// Whether what hosts tell is enough to name a fault of the class. Where it is not, none is to be found, but nothing
    /// false is to be said of it either.
    #[must_use]
    pub fn shows(self, class: Class) -> bool {
        match class {
            Class::Straggler
            | Class::NicFault
            | Class::GpuFault
            | Class::NodeOutlier
            | Class::LinkFlap
            | Class::LinkDown
            | Class::LinkErrors
            | Class::DegradedLink => true,
            // Paths, siblings of a link and what is cabled to what are not known without switches.
            Class::EcmpCollision
            | Class::Incast
            | Class::SlowReceiver
            | Class::Oversubscription
            | Class::StorageBurst
            | Class::PfcStorm
            | Class::SilentLoss
            | Class::Cabling => self.switches_tell(),
        }
    }

    /// Whether nobody tells this column of an interface.
    #[must_use]
    pub fn lacks_of_port(self, column: Of) -> bool {
        let of_ethernet = [
            Of::PauseRx,
            Of::PauseTx,
            Of::PauseRxUs,
            Of::PauseTxUs,
            Of::PauseStorms,
            Of::FecCorrected,
            Of::FecUncorrected,
        ];
        self == Site::Infiniband && of_ethernet.contains(&column)
    }

    /// Whether nobody tells this column of a verbs device.
    #[must_use]
    pub fn lacks_of_device(self, column: Rdma) -> bool {
        let congestion = [
            Rdma::EcnMarkedRx,
            Rdma::CnpTx,
            Rdma::CnpRx,
            Rdma::CnpIgnored,
            Rdma::IcrcErrors,
        ];
        self == Site::Infiniband && congestion.contains(&column)
    }

    /// Whether nobody tells this column of a GPU: amdgpu has no rows, no reasons for clocks, no fabric manager and no XIDs.
    #[must_use]
    pub fn lacks_of_gpu(self, column: Gpu) -> bool {
        let told = [
            Gpu::GpuTemperature,
            Gpu::GpuMemoryTemperature,
            Gpu::GpuPower,
            Gpu::GpuUtilisation,
            Gpu::GpuMemoryUsed,
            Gpu::GpuMemoryTotal,
            Gpu::EccCorrected,
            Gpu::EccUncorrected,
            Gpu::PcieGeneration,
            Gpu::PcieWidth,
            Gpu::PcieReplays,
        ];
        self == Site::Amd && !told.contains(&column)
    }
}
