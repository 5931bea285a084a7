//! Which NVML fields make up which column, as tables, and the reading of many columns from one
//! batch of fields (nvmlDeviceGetFieldValues).
//!
//! Generations of GPUs and drivers count the same thing in different fields. Each part of a column
//! names its alternatives; a device is asked for all of them now and then, and in between only for
//! the first alternative that it supports.

use crate::source::Reading;
use nvml_wrapper::sys_exports::field_id as id;
use std::collections::{BTreeMap, BTreeSet};
use weir_wire::signal::Signal;

/// A field of one device, or of one of its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// NVML_FI_*.
    pub id: u32,
    /// Number of the link; 0 where the field has no scope.
    pub scope: u32,
}

/// A column as the sum of its parts.
type Row = (Signal, &'static [Part]);

/// A part under its own name, where it has one, and the fields that give it, best first. The factor
/// brings the field to the signal's unit.
type Part = (Option<&'static str>, &'static [(u64, Given)]);

#[derive(Debug, Clone, Copy)]
enum Given {
    /// By one field.
    Field(u32),
    /// By one field whose scope is the link.
    Link(u32),
    /// By one field whose scope is every link (UINT_MAX).
    Links(u32),
    /// By the sum of numbered fields: the first of links 0 to 5 and the first of links 6 to 11.
    Numbered(&'static [(u32, u32)]),
}

use Given::{Field as One, Link, Links, Numbered};

const DEVICE: &[Row] = &[
    (
        Signal::EccCorrected,
        &[(None, &[(1, One(id::NVML_FI_DEV_ECC_SBE_VOL_TOTAL))])],
    ),
    (
        Signal::EccUncorrected,
        &[(None, &[(1, One(id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL))])],
    ),
    (
        Signal::EccCorrectedLifetime,
        &[(None, &[(1, One(id::NVML_FI_DEV_ECC_SBE_AGG_TOTAL))])],
    ),
    (
        Signal::EccUncorrectedLifetime,
        &[(None, &[(1, One(id::NVML_FI_DEV_ECC_DBE_AGG_TOTAL))])],
    ),
    (
        Signal::RowsRemappedCorrected,
        &[(None, &[(1, One(id::NVML_FI_DEV_REMAPPED_COR))])],
    ),
    (
        Signal::RowsRemappedUncorrected,
        &[(None, &[(1, One(id::NVML_FI_DEV_REMAPPED_UNC))])],
    ),
    (
        Signal::RowRemapPending,
        &[(None, &[(1, One(id::NVML_FI_DEV_REMAPPED_PENDING))])],
    ),
    (
        Signal::RowRemapFailure,
        &[(None, &[(1, One(id::NVML_FI_DEV_REMAPPED_FAILURE))])],
    ),
    (
        Signal::PcieReplays,
        &[(None, &[(1, One(id::NVML_FI_DEV_PCIE_REPLAY_COUNTER))])],
    ),
    (
        Signal::GpuMemoryTemperature,
        &[(None, &[(1000, One(id::NVML_FI_DEV_MEMORY_TEMP))])],
    ),
    (
        Signal::RecoveryAction,
        &[(None, &[(1, One(id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION))])],
    ),
    // The average is over a second, which suits a sample a second.
    (
        Signal::GpuPower,
        &[(
            None,
            &[
                (1, One(id::NVML_FI_DEV_POWER_AVERAGE)),
                (1, One(id::NVML_FI_DEV_POWER_INSTANT)),
            ],
        )],
    ),
];

/// Blackwell drops the counters of the data link layer for those of packets and recovery events.
const LINK: &[Row] = &[
    (
        Signal::NvlinkUp,
        &[(None, &[(1, Link(id::NVML_FI_DEV_NVLINK_GET_STATE))])],
    ),
    (
        Signal::NvlinkTxBytes,
        &[(
            None,
            &[
                (1024, Link(id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX)),
                (1, Link(id::NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES)),
            ],
        )],
    ),
    (
        Signal::NvlinkRxBytes,
        &[(
            None,
            &[
                (1024, Link(id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)),
                (1, Link(id::NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES)),
            ],
        )],
    ),
    (
        Signal::NvlinkErrors,
        &[
            (
                Some("nvlink_receive_errors"),
                &[
                    (1, Link(id::NVML_FI_DEV_NVLINK_ERROR_DL_CRC)),
                    (
                        1,
                        Numbered(&[
                            (
                                id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L0,
                                id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L6,
                            ),
                            (
                                id::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_L0,
                                id::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_L6,
                            ),
                        ]),
                    ),
                    (1, Link(id::NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS)),
                ],
            ),
            (
                Some("nvlink_replays"),
                &[
                    (1, Link(id::NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY)),
                    (
                        1,
                        Numbered(&[(
                            id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L0,
                            id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L6,
                        )]),
                    ),
                ],
            ),
            (
                Some("nvlink_recoveries"),
                &[
                    (1, Link(id::NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY)),
                    (
                        1,
                        Numbered(&[(
                            id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_L0,
                            id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_L6,
                        )]),
                    ),
                    (1, Link(id::NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS)),
                ],
            ),
        ],
    ),
];

/// Of all links together, where the device does not tell them apart.
const LINKS: &[Row] = &[
    (
        Signal::NvlinkTxBytes,
        &[(
            None,
            &[(1024, Links(id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX))],
        )],
    ),
    (
        Signal::NvlinkRxBytes,
        &[(
            None,
            &[(1024, Links(id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX))],
        )],
    ),
];

/// The number of NVLinks of the device.
pub const LINK_COUNT: Field = Field {
    id: id::NVML_FI_DEV_NVLINK_LINK_COUNT,
    scope: 0,
};

impl Given {
    /// The fields to add up; `None` if there is no field for that link.
    fn fields(self, link: u8) -> Option<Vec<Field>> {
        let link = u32::from(link);
        let field = |id, scope| Field { id, scope };
        match self {
            One(id) => Some(vec![field(id, 0)]),
            Link(id) => Some(vec![field(id, link)]),
            Links(id) => Some(vec![field(id, u32::MAX)]),
            Numbered(_) if link >= 12 => None,
            Numbered(runs) => {
                let of = |(low, high)| {
                    if link < 6 {
                        low + link
                    } else {
                        high + link - 6
                    }
                };
                Some(runs.iter().map(|run| field(of(*run), 0)).collect())
            }
        }
    }
}

/// Every column that a device of so many links may have.
fn rows(links: u8) -> impl Iterator<Item = (Row, Option<u8>)> {
    let of_device = DEVICE.iter().map(|row| (*row, None));
    let of_links = (0..links).flat_map(|link| LINK.iter().map(move |row| (*row, Some(link))));
    let of_all = LINKS.iter().map(|row| (*row, None));
    of_device.chain(of_links).chain(of_all)
}

/// Every field that may be of use: what to ask a device for to learn what it supports.
#[must_use]
pub fn candidates(links: u8) -> Vec<Field> {
    let fields: BTreeSet<Field> = rows(links)
        .flat_map(|((_, parts), link)| {
            parts
                .iter()
                .flat_map(|(_, any_of)| any_of.iter())
                .filter_map(move |(_, given)| given.fields(link.unwrap_or(0)))
        })
        .flatten()
        .collect();
    fields.into_iter().collect()
}

/// What to ask a device for at each sample, and what its answers mean.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    fields: Vec<Field>,
    columns: Vec<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    signal: Signal,
    index: Option<u8>,
    terms: Vec<Term>,
}

#[derive(Debug, Clone, Copy)]
struct Term {
    /// Place in the batch.
    at: usize,
    factor: u64,
    name: Option<&'static str>,
}

/// Columns of one batch, and the named parts summed over the links.
#[derive(Debug, Clone, Default)]
pub struct Values {
    pub columns: Vec<(Signal, Option<u8>, Reading)>,
    pub parts: BTreeMap<&'static str, u64>,
}

impl Plan {
    /// The plan for a device that supports these fields.
    #[must_use]
    pub fn new(links: u8, supported: &BTreeSet<Field>) -> Plan {
        let mut plan = Plan::default();
        let mut told_apart = BTreeSet::new();
        for ((signal, parts), index) in rows(links) {
            if index.is_none() && told_apart.contains(&signal) {
                continue;
            }
            let mut terms = Vec::new();
            for (name, any_of) in parts {
                let chosen = any_of.iter().find_map(|(factor, given)| {
                    let fields = given.fields(index.unwrap_or(0))?;
                    let all = fields.iter().all(|f| supported.contains(f));
                    all.then_some((*factor, fields))
                });
                for (factor, field) in chosen
                    .into_iter()
                    .flat_map(|(factor, fields)| fields.into_iter().map(move |f| (factor, f)))
                {
                    terms.push(Term {
                        at: plan.fields.len(),
                        factor,
                        name: *name,
                    });
                    plan.fields.push(field);
                }
            }
            if !terms.is_empty() {
                if index.is_some() {
                    told_apart.insert(signal);
                }
                plan.columns.push(Column {
                    signal,
                    index,
                    terms,
                });
            }
        }
        plan
    }

    /// The batch to ask for.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Whether some field gives this column.
    #[must_use]
    pub fn gives(&self, signal: Signal, index: Option<u8>) -> bool {
        self.columns
            .iter()
            .any(|c| c.signal == signal && c.index == index)
    }

    /// Columns from the answers to the batch, in its order; `None` is a field that gave no value.
    /// A column or a sum one of whose terms is absent is absent too, lest it seem to fall.
    #[must_use]
    pub fn read(&self, answers: &[Option<Reading>]) -> Values {
        let mut columns = Vec::with_capacity(self.columns.len());
        let mut parts: BTreeMap<&'static str, Option<u64>> = BTreeMap::new();
        for column in &self.columns {
            let scaled = column.terms.iter().map(|term| {
                let reading = answers.get(term.at).copied().flatten()?;
                scale(reading, term.factor)
            });
            for (term, value) in column.terms.iter().zip(scaled.clone()) {
                if let Some(name) = term.name {
                    let sum = parts.entry(name).or_insert(Some(0));
                    *sum = sum.zip(value).and_then(|(a, b)| a.checked_add(b.value));
                }
            }
            let sum = scaled.reduce(|a, b| {
                let (a, b) = a.zip(b)?;
                a.value.checked_add(b.value).map(Reading::wide)
            });
            if let Some(reading) = sum.flatten() {
                columns.push((column.signal, column.index, reading));
            }
        }
        let parts = parts
            .into_iter()
            .filter_map(|(name, sum)| Some((name, sum?)))
            .collect();
        Values { columns, parts }
    }
}

fn scale(reading: Reading, factor: u64) -> Option<Reading> {
    match factor {
        1 => Some(reading),
        _ => reading.value.checked_mul(factor).map(Reading::wide),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CRC: u32 = id::NVML_FI_DEV_NVLINK_ERROR_DL_CRC;
    const REPLAY: u32 = id::NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY;
    const TX: u32 = id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX;

    /// A plan for a device that supports these fields, and what it reads when each gives its id.
    fn read(links: u8, supported: impl Fn(&Field) -> bool) -> (Plan, Values) {
        let supported = candidates(links).into_iter().filter(supported).collect();
        let plan = Plan::new(links, &supported);
        let answers: Vec<_> = plan
            .fields()
            .iter()
            .map(|f| Some(Reading::wide(u64::from(f.id))))
            .collect();
        let values = plan.read(&answers);
        (plan, values)
    }

    fn column(values: &Values, signal: Signal, index: Option<u8>) -> Option<u64> {
        let mut found = values
            .columns
            .iter()
            .filter(|(s, i, _)| *s == signal && *i == index);
        let value = found.next().map(|(_, _, reading)| reading.value);
        assert!(found.next().is_none(), "{signal:?} twice");
        value
    }

    #[test]
    fn the_best_supported_alternative_is_taken() {
        let (_, all) = read(18, |_| true);
        assert_eq!(column(&all, Signal::GpuPower, None), Some(185));
        assert_eq!(
            column(&all, Signal::NvlinkErrors, Some(17)),
            Some(163 + 161 + 162)
        );
        assert_eq!(
            column(&all, Signal::NvlinkTxBytes, Some(0)),
            Some(138 * 1024)
        );
        assert_eq!(column(&all, Signal::NvlinkTxBytes, None), None);

        let (_, old) = read(12, |f| f.id < 138);
        assert_eq!(column(&old, Signal::GpuPower, None), None);
        assert_eq!(
            column(&old, Signal::NvlinkErrors, Some(7)),
            Some(97 + 103 + 109 + 115)
        );

        let (_, new) = read(18, |f| f.id > 200);
        assert_eq!(column(&new, Signal::NvlinkRxBytes, Some(1)), Some(204));
        assert_eq!(column(&new, Signal::NvlinkErrors, Some(1)), Some(208 + 215));
    }

    #[test]
    fn links_that_are_not_told_apart_give_a_total() {
        let (_, values) = read(4, |f| f.scope == u32::MAX);
        assert_eq!(
            column(&values, Signal::NvlinkTxBytes, None),
            Some(138 * 1024)
        );
        assert_eq!(column(&values, Signal::NvlinkTxBytes, Some(0)), None);
    }

    #[test]
    fn an_absent_term_takes_its_sum_with_it() {
        let supported = [CRC, REPLAY, TX]
            .iter()
            .flat_map(|id| (0..2).map(|scope| Field { id: *id, scope }))
            .collect();
        let plan = Plan::new(2, &supported);
        let answers: Vec<_> = plan
            .fields()
            .iter()
            .map(|f| (f.id != CRC || f.scope == 0).then_some(Reading::wide(3)))
            .collect();
        let values = plan.read(&answers);
        assert_eq!(column(&values, Signal::NvlinkErrors, Some(0)), Some(6));
        assert_eq!(column(&values, Signal::NvlinkErrors, Some(1)), None);
        assert_eq!(column(&values, Signal::NvlinkTxBytes, Some(1)), Some(3072));
        assert_eq!(values.parts, BTreeMap::from([("nvlink_replays", 6)]));
    }

    #[test]
    fn a_device_that_supports_nothing_has_an_empty_plan() {
        let (plan, values) = read(18, |_| false);
        assert!(plan.fields().is_empty() && values.columns.is_empty());
    }

    proptest! {
        #[test]
        fn any_answers_give_distinct_columns(
            links in 0u8..40,
            bits in prop::collection::vec(any::<bool>(), 500),
            answers in prop::collection::vec(prop::option::of(any::<u64>()), 0..500),
        ) {
            let supported = candidates(links)
                .into_iter()
                .zip(bits.iter().cycle())
                .filter_map(|(field, on)| on.then_some(field))
                .collect();
            let plan = Plan::new(links, &supported);
            prop_assert!(plan.fields().iter().all(|f| supported.contains(f)));
            let answers: Vec<_> = answers.into_iter().map(|a| a.map(Reading::wide)).collect();
            let values = plan.read(&answers);
            let keys: BTreeSet<_> = values.columns.iter().map(|(s, i, _)| (*s, *i)).collect();
            prop_assert_eq!(keys.len(), values.columns.len());
        }
    }
}
