//! The catalogue of metrics and the tables of counters behind it as Markdown: docs/metrics.md.

use crate::ethtool::table as ethtool;
use crate::metrics;
use crate::rdma::table as rdma;
use weir_common::catalogue;

/// Everything that `weir-agent metrics` prints.
#[must_use]
pub fn markdown() -> String {
    let mut text = catalogue::markdown(metrics::catalogue());
    text.push_str(
        "\n### Counters of verbs devices\n\n\
         What each driver's counter stands for (`agent/src/rdma/rows.rs`). A counter that is not here is \
         exported under its own name: as `weir_raw_total`, as `weir_raw_value` if it stands for itself (such as \
         bnxt_re's objects), as `weir_raw_untyped` if its driver is not known. *bits* is the width of the register, *at its end* \
         what it does there; *side* is the end of a connection that it speaks of; *together* says what \
         becomes of several counters of one signal.\n\n",
    );
    let rows = rdma::documented().map(|mut row| {
        row[1] = format!("`{}`", row[1]);
        row
    });
    text.push_str(&catalogue::table(rdma::DOCUMENT_HEADS, rows));
    text.push_str(
        "\n### Statistics of network interfaces\n\n\
         What each driver's statistic stands for (`agent/src/ethtool/table.rs`); `#` is a priority or lane. \
         What is not here is exported under its own name, as above. All are 64 bits wide and wrap; several of one signal add up.\n\n",
    );
    let rows = ethtool::documented().map(|mut row| {
        row[1] = format!("`{}`", row[1]);
        row
    });
    text.push_str(&catalogue::table(ethtool::DOCUMENT_HEADS, rows));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_listed_with_its_unit_width_end_and_side() {
        let text = markdown();
        for line in [
            "| any | `symbol_error` | symbol_errors | symbols | 1 | 16 | sticks | link | if nothing of rank 0 is there |",
            "| mlx5 | `out_of_sequence` | out_of_sequence | packets | 1 | 32 | wraps | receiver |  |",
            "| any | `port_xmit_data` | tx_bytes | bytes | 4 | 64 | wraps | link | if nothing of rank 0 is there |",
            "| ice | `link_xoff_rx.nic` | pause_rx | frames |",
            "| i40e | `port.link_xoff_rx` | pause_rx | frames |",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}");
        }
        let cells = |line: &str| line.matches(" |").count();
        assert!(
            text.lines()
                .filter(|l| l.starts_with("| "))
                .all(|l| cells(l) >= 4)
        );
    }
}
