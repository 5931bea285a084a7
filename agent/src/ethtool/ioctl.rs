//! Three requests of SIOCETHTOOL (include/uapi/linux/ethtool.h): driver, names and values of the
//! statistics. No subprocess.

#![expect(
    unsafe_code,
    reason = "ioctl takes a pointer to a request that holds a pointer"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETH_SS_STATS: u32 = 1;
const STRING_BYTES: usize = 32;
/// A NIC with 256 queues has about 10,000.
const STATISTICS_MAX: u32 = 65_536;

/// Room for the values of any device: `struct ethtool_stats` with cmd, n_stats and u64 data. The
/// kernel writes as many as the device has at that moment, whatever was asked for. Pages that no
/// device needs are never touched.
#[derive(Debug)]
pub struct Buffer(Box<[u32]>);

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer(vec![0; 2 + 2 * STATISTICS_MAX as usize].into_boxed_slice())
    }
}

/// A socket to ask through: any will do.
#[derive(Debug)]
pub struct Ethtool(OwnedFd);

/// `struct ethtool_drvinfo`, the part that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    pub name: String,
    pub firmware: String,
    /// PCI address or what the bus calls the device; empty for virtual ones.
    pub bus: String,
    /// Of the driver, or of the kernel where it has none of its own.
    pub version: String,
    pub expansion_rom: String,
}

impl Ethtool {
    /// # Errors
    /// No socket can be had.
    pub fn open() -> io::Result<Ethtool> {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(Ethtool(socket.into()))
    }

    /// # Errors
    /// The interface has gone, or has no driver that answers (EOPNOTSUPP).
    pub fn driver(&self, interface: &str) -> io::Result<Driver> {
        // cmd, then driver, version, fw_version, bus_info, erom_version of 32 bytes each and numbers:
        // 196 bytes.
        let mut request = vec![0u32; 49];
        request[0] = ETHTOOL_GDRVINFO;
        self.ask(interface, &mut request)?;
        let bytes: Vec<u8> = request.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let field = |n: usize| text(bytes.get(4 + 32 * n..36 + 32 * n).unwrap_or_default());
        Ok(Driver {
            name: field(0),
            firmware: field(2),
            bus: field(3),
            version: field(1),
            expansion_rom: field(4),
        })
    }

    /// Names of the statistics, in the order of their values.
    ///
    /// # Errors
    /// As [`Self::driver`].
    pub fn names(&self, interface: &str) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info: cmd, reserved, u64 mask, u32 data[]: the answer holds the length.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_STATS, 0, 0];
        self.ask(interface, &mut info)?;
        let count = if info[2] == 0 && info[3] == 0 {
            0
        } else {
            info[4]
        };
        if count == 0 || count > STATISTICS_MAX {
            return Ok(Vec::new());
        }
        // struct ethtool_gstrings: cmd, set, length, then 32 bytes each.
        let length = usize::try_from(count).map_err(io::Error::other)?;
        let mut request = vec![0u32; 3 + length * STRING_BYTES / 4];
        (request[0], request[1], request[2]) = (ETHTOOL_GSTRINGS, ETH_SS_STATS, count);
        self.ask(interface, &mut request)?;
        // The set may have shrunk since it was measured, never grown over what was asked for.
        let returned = usize::try_from(request[2])
            .map_err(io::Error::other)?
            .min(length);
        let bytes: Vec<u8> = request[3..].iter().flat_map(|w| w.to_ne_bytes()).collect();
        Ok(parse_names(&bytes).take(returned).collect())
    }

    /// Values of the statistics, in the order of their names.
    ///
    /// # Errors
    /// As [`Self::driver`]; `InvalidData` if there are not `expected` any more, so that names and
    /// values would not belong together.
    pub fn values<'b>(
        &self,
        interface: &str,
        expected: usize,
        buffer: &'b mut Buffer,
    ) -> io::Result<impl Iterator<Item = u64> + use<'b>> {
        buffer.0[0] = ETHTOOL_GSTATS;
        buffer.0[1] = u32::try_from(expected).map_err(io::Error::other)?;
        self.ask(interface, &mut buffer.0)?;
        if usize::try_from(buffer.0[1]) != Ok(expected) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the set of statistics changed",
            ));
        }
        let pairs = buffer.0[2..].chunks_exact(2).take(expected);
        Ok(pairs.map(|pair| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&pair[0].to_ne_bytes());
            bytes[4..].copy_from_slice(&pair[1].to_ne_bytes());
            u64::from_ne_bytes(bytes)
        }))
    }

    fn ask(&self, interface: &str, request: &mut [u32]) -> io::Result<()> {
        // SAFETY: ifreq is plain data, for which all zeros are valid.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        if interface.len() >= ifreq.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
        // SAFETY: the descriptor is open; the request is as large as its command makes the kernel
        // write, and outlives the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Names of 32 bytes each, as the driver laid them out.
pub(crate) fn parse_names(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes.chunks_exact(STRING_BYTES).map(text)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}
