//! A GPU that left the bus, where the driver gives no XID for it: when it starts, for one.

use super::{event, pci};
use crate::source::{Event, Severity};

const ACTION: &str = "drain and reboot the node; if it returns, reseat or replace the GPU";

/// A GPU that no longer answers, without an XID: in one line, or at the end of several.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The GPU that the line before spoke of.
    named: Option<String>,
}

impl Lost {
    /// `body` is a message of the driver, without its name, which may hold further lines.
    pub(super) fn read(&mut self, body: &str) -> Option<Event> {
        let here = body
            .starts_with("The NVIDIA GPU ")
            .then(|| pci::find(body))
            .flatten();
        if !body.contains("fallen off the bus") {
            let continued = body.starts_with("(PCI ID:");
            self.named = here.or_else(|| self.named.take().filter(|_| continued));
            return None;
        }
        let subject = pci::find(body).or_else(|| self.named.take());
        self.named = None;
        Some(event(
            "gpu_lost",
            subject.unwrap_or_default(),
            Severity::Critical,
            "GPU no longer answers on PCIe".to_owned(),
            ACTION,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmsg::classify_line;

    #[test]
    fn a_gpu_that_left_the_bus_in_one_line() {
        for line in [
            "NVRM: GPU 0000:5e:00.0: GPU has fallen off the bus.",
            "NVRM: GPU at PCI:0000:5e:00 has fallen off the bus.",
            "NVRM: The NVIDIA GPU 0000:5e:00.0 (PCI ID: 10de:2330)\nNVRM: installed in this system has fallen off the bus and is not responding to commands.",
            "NVRM: The NVIDIA GPU 0000:5e:00.0\nNVRM: (PCI ID: 10de:2330) installed in this system has\nNVRM: fallen off the bus and is not responding to commands.",
        ] {
            let event = classify_line(line).unwrap();
            assert_eq!(
                (event.name, event.subject.as_str()),
                ("gpu_lost", "0000:5e:00.0"),
                "{line}"
            );
            assert_eq!((event.code, event.severity), (None, Severity::Critical));
        }
    }

    #[test]
    fn a_gpu_that_left_the_bus_over_several_messages() {
        let mut lost = Lost::default();
        assert_eq!(lost.read("The NVIDIA GPU 0000:5e:00.0"), None);
        assert_eq!(
            lost.read("(PCI ID: 10de:2330) installed in this system has"),
            None
        );
        let event = lost
            .read("fallen off the bus and is not responding to commands.")
            .unwrap();
        assert_eq!(event.subject, "0000:5e:00.0");
    }

    #[test]
    fn a_gpu_named_earlier_is_not_blamed() {
        let mut lost = Lost::default();
        assert_eq!(lost.read("The NVIDIA GPU 0000:5e:00.0"), None);
        assert_eq!(lost.read("something else"), None);
        assert_eq!(lost.read("GPU has fallen off the bus").unwrap().subject, "");
    }
}
