//! `mlxlink --json`: one link's module, error rates and FEC histogram.

use crate::finding::{Finding, Kind};
use crate::rate;
use crate::reading::Reading;
use crate::text::Error;
use serde::{Serialize, Serializer};
use serde_json::Value;
use weir_wire::signal::Signal;

/// Exponents below this are mlxlink's way to say that it saw no error (`15E-255`).
const NO_ERRORS_BELOW: f64 = 1e-100;

/// Degrees below the module's upper limit at which it is called hot.
const HOT_MARGIN_C: f64 = 5.0;

/// Symbols in error in one codeword of RS(544,514) from which few are left to correct (15 at most).
const DEEP_BIN: u32 = 12;

/// A bit error rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ber {
    /// No error was seen; how good the link is, is not known.
    NoErrors,
    Rate(f64),
}

impl Serialize for Ber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Ber::NoErrors => serializer.serialize_f64(0.0),
            Ber::Rate(rate) => serializer.serialize_f64(*rate),
        }
    }
}

/// Values, mostly one for each lane, and the range in which they should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    pub values: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<(f64, f64)>,
}

/// How many codewords had how many symbols in error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bin {
    pub low: u32,
    pub high: u32,
    pub codewords: u64,
}

/// What one query tells. What was not asked or not answered (`N/A`) is absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LinkReport {
    pub state: Option<String>,
    pub rate_bps: Option<f64>,
    pub lanes: Option<u8>,
    pub fec: Option<String>,
    pub part_number: Option<String>,
    pub serial_number: Option<String>,
    pub temperature_c: Option<Measured>,
    pub voltage_mv: Option<Measured>,
    pub bias_ma: Option<Measured>,
    pub rx_power_dbm: Option<Measured>,
    pub tx_power_dbm: Option<Measured>,
    /// Watts that the module may draw at most.
    pub power_max_w: Option<f64>,
    pub raw_ber: Option<Ber>,
    pub raw_ber_per_lane: Vec<Ber>,
    /// After forward error correction.
    pub effective_ber: Option<Ber>,
    pub effective_errors: Option<u64>,
    pub lane_errors: Vec<u64>,
    pub link_downs: Option<u64>,
    pub link_recoveries: Option<u64>,
    pub minutes_since_clear: Option<f64>,
    /// By number of symbols.
    pub histogram: Vec<Bin>,
    pub recommendation: Option<String>,
}

/// Reads the JSON of mlxlink.
///
/// # Errors
/// [`Error`] if it is no JSON or has no `result.output`, or if mlxlink itself failed.
pub fn parse(text: &str) -> Result<LinkReport, Error> {
    let root: Value = serde_json::from_str(text).map_err(|e| Error::json(&e, text))?;
    let Some(output) = root.get("result").and_then(|r| r.get("output")) else {
        let message = root.get("status").and_then(|s| s.get("message"));
        let found = message.and_then(Value::as_str).unwrap_or(text);
        return Err(Error::new(1, 1, "an object with result.output", found));
    };
    let field = |section: &str, key: &str| -> Option<&str> {
        let text = output.get(section)?.get(key)?.as_str()?.trim();
        (!text.is_empty() && text != "N/A").then_some(text)
    };
    let list = |section: &str, key: &str| -> Vec<&str> {
        let values = output
            .get(section)
            .and_then(|s| s.get(key)?.get("values")?.as_array());
        values
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    };
    let own = |section: &str, key: &str| field(section, key).map(str::to_owned);
    let (module, counters, operation) = (
        "Module Info",
        "Physical Counters and BER Info",
        "Operational Info",
    );
    let count = |key: &str| field(counters, key).and_then(|t| t.parse().ok());
    let measure = |key: &str| field(module, key).and_then(measured);
    Ok(LinkReport {
        state: own(operation, "State"),
        rate_bps: field(operation, "Speed").and_then(speed),
        lanes: field(operation, "Width").and_then(rate::lanes),
        fec: own(operation, "FEC"),
        part_number: own(module, "Vendor Part Number"),
        serial_number: own(module, "Vendor Serial Number"),
        temperature_c: measure("Temperature [C]"),
        voltage_mv: measure("Voltage [mV]"),
        bias_ma: measure("Bias Current [mA]"),
        rx_power_dbm: measure("Rx Power Current [dBm]"),
        tx_power_dbm: measure("Tx Power Current [dBm]"),
        power_max_w: field(module, "MAX Power").and_then(leading),
        raw_ber: field(counters, "Raw Physical BER").and_then(ber),
        raw_ber_per_lane: list(counters, "Raw Physical BER Per Lane")
            .into_iter()
            .filter_map(ber)
            .collect(),
        effective_ber: field(counters, "Effective Physical BER").and_then(ber),
        effective_errors: count("Effective Physical Errors"),
        lane_errors: list(counters, "Raw Physical Errors Per Lane")
            .into_iter()
            .filter_map(|t| t.parse().ok())
            .collect(),
        link_downs: count("Link Down Counter"),
        link_recoveries: count("Link Error Recovery Counter"),
        minutes_since_clear: field(counters, "Time Since Last Clear [Min]").and_then(leading),
        histogram: histogram(output.get("Histogram of FEC Errors")),
        recommendation: own("Troubleshooting Info", "Recommendation"),
    })
}

/// `400G`, and `IB-NDR` for all lanes alike is left to the width.
fn speed(text: &str) -> Option<f64> {
    let gigabits: f64 = text.strip_suffix('G')?.parse().ok()?;
    (gigabits > 0.0 && gigabits.is_finite()).then_some(gigabits * 1e9)
}

/// The number before the unit of `8.0 W max`.
fn leading(text: &str) -> Option<f64> {
    let number: f64 = text.split_whitespace().next()?.parse().ok()?;
    number.is_finite().then_some(number)
}

fn ber(text: &str) -> Option<Ber> {
    let rate: f64 = text.parse().ok()?;
    if !(0.0..=1.0).contains(&rate) {
        return None;
    }
    Some(if rate < NO_ERRORS_BELOW {
        Ber::NoErrors
    } else {
        Ber::Rate(rate)
    })
}

/// `61 [-10..80]`, `3.5,3.2 [-9.9..6.9]`, `61`.
fn measured(text: &str) -> Option<Measured> {
    let (values, range) = match text.split_once('[') {
        Some((values, range)) => (values, range.trim_end().strip_suffix(']')),
        None => (text, None),
    };
    let number = |t: &str| t.trim().parse().ok().filter(|n: &f64| n.is_finite());
    let values: Option<Vec<f64>> = values.split(',').map(number).collect();
    let range = range.and_then(|r| {
        let (low, high) = r.split_once("..")?;
        Some((number(low)?, number(high)?))
    });
    Some(Measured {
        values: values.filter(|v| !v.is_empty())?,
        range,
    })
}

/// Bins as a histogram has them: by number, not by name, which would put 10 before 2.
fn histogram(section: Option<&Value>) -> Vec<Bin> {
    let bin = |(name, value): (&String, &Value)| {
        name.strip_prefix("Bin ")?;
        let range = value.get("values")?.get(0)?.as_str()?;
        let codewords = value.get("values")?.get(1)?.as_str()?.parse().ok()?;
        let range = range.strip_prefix('[')?.strip_suffix(']')?;
        let (low, high) = range
            .split_once("..")
            .or_else(|| range.split_once(':'))
            .unwrap_or((range, range));
        Some(Bin {
            low: low.trim().parse().ok()?,
            high: high.trim().parse().ok()?,
            codewords,
        })
    };
    let entries = section.and_then(Value::as_object).into_iter().flatten();
    let mut bins: Vec<Bin> = entries.filter_map(bin).collect();
    bins.sort_by_key(|b| b.low);
    bins
}

impl LinkReport {
    /// What Weir has signals for.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        let mut readings = Vec::new();
        let mut count = |signal, value: Option<u64>| {
            readings.extend(value.map(|v| Reading::counted(signal, v)));
        };
        let up = self.state.as_deref().map(|s| u64::from(s == "Active"));
        count(Signal::LinkUp, up);
        count(Signal::LinkDowns, self.link_downs);
        count(Signal::LinkRecoveries, self.link_recoveries);
        count(Signal::Lanes, self.lanes.map(u64::from));
        let repaired = self.histogram.iter().filter(|b| b.low > 0);
        let repaired = repaired.fold(0_u64, |sum, b| sum.saturating_add(b.codewords));
        count(
            Signal::FecCorrected,
            (!self.histogram.is_empty()).then_some(repaired),
        );
        for (lane, errors) in (0_u8..).zip(&self.lane_errors) {
            readings.push(Reading::counted(Signal::LaneErrors, *errors).of(lane));
        }
        let hottest = self.temperature_c.as_ref().and_then(|t| t.values.first());
        for (signal, value) in [
            (Signal::RateBps, self.rate_bps),
            (Signal::ModuleTemperature, hottest.map(|t| t * 1e3)),
            (Signal::ModulePower, self.power_max_w.map(|w| w * 1e3)),
        ] {
            readings.extend(value.and_then(|v| Reading::measured(signal, v)));
        }
        readings
    }

    /// What is not well; `subject` is the port.
    #[must_use]
    pub fn findings(&self, subject: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut warn = |kind, text: String| findings.push(Finding::warning(kind, subject, text));
        if let Some(state) = self.state.as_deref().filter(|s| *s != "Active") {
            warn(Kind::Down, format!("{subject} is not active: {state}"));
        }
        if let Some(advice) = self
            .recommendation
            .as_deref()
            .filter(|r| !r.starts_with("No issue"))
        {
            warn(
                Kind::Hardware,
                format!("{subject}: the firmware says: {advice}"),
            );
        }
        if let Some(errors) = self.effective_errors.filter(|e| *e > 0) {
            let minutes = self.minutes_since_clear.unwrap_or(0.0);
            warn(
                Kind::Errors,
                format!(
                    "{subject} had {errors} errors in {minutes} minutes that forward error correction could not repair: clean or change the cable"
                ),
            );
        }
        let deep = self.histogram.iter().filter(|b| b.low >= DEEP_BIN);
        let deep: u64 = deep.map(|b| b.codewords).fold(0, u64::saturating_add);
        if deep > 0 {
            warn(
                Kind::Errors,
                format!(
                    "{subject} had {deep} codewords with {DEEP_BIN} or more symbols in error, of 15 that can be repaired: it will lose packets soon"
                ),
            );
        }
        for (what, measured, unit) in [
            ("receives", &self.rx_power_dbm, "dBm"),
            ("sends", &self.tx_power_dbm, "dBm"),
            ("has a laser bias of", &self.bias_ma, "mA"),
            ("has a supply of", &self.voltage_mv, "mV"),
        ] {
            let Some(Measured {
                values,
                range: Some((low, high)),
            }) = measured
            else {
                continue;
            };
            for (lane, value) in values.iter().enumerate() {
                if !(*low..=*high).contains(value) {
                    warn(
                        Kind::Hardware,
                        format!(
                            "{subject} {what} {value} {unit} on lane {lane}, outside of {low} to {high}"
                        ),
                    );
                }
            }
        }
        if let Some(Measured {
            values,
            range: Some((_, high)),
        }) = &self.temperature_c
        {
            for value in values.iter().filter(|v| **v > high - HOT_MARGIN_C) {
                warn(
                    Kind::Hardware,
                    format!("the module of {subject} is at {value} degrees, its limit is {high}"),
                );
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_errors_is_no_rate() {
        assert_eq!(ber("15E-255"), Some(Ber::NoErrors));
        assert_eq!(ber("5E-10"), Some(Ber::Rate(5e-10)));
        assert_eq!(ber("N/A"), None);
        assert_eq!(ber("NaN"), None);
    }

    #[test]
    fn a_value_and_its_range_come_apart() {
        let t = measured("61 [-10..80]").unwrap();
        assert_eq!((t.values, t.range), (vec![61.0], Some((-10.0, 80.0))));
        assert_eq!(measured("1.5,-2").unwrap().values, [1.5, -2.0]);
        assert_eq!(measured("N/A"), None);
        assert_eq!(measured("1 [x..y]").unwrap().range, None);
    }

    #[test]
    fn bins_are_in_order_of_their_numbers_and_deep_ones_are_told() {
        let text = r#"{"result":{"output":{"Histogram of FEC Errors":{"Header":{"values":["a","b"]},"Bin 10":{"values":["[12..13]","4"]},"Bin 2":{"values":["[2]","9"]},"Bin 1":{"values":["[0]","5"]}},"Module Info":{"Temperature [C]":"79 [-10..80]"}}}}"#;
        let report = parse(text).unwrap();
        let lows: Vec<u32> = report.histogram.iter().map(|b| b.low).collect();
        assert_eq!(lows, [0, 2, 12]);
        let corrected = report
            .readings()
            .into_iter()
            .find(|r| r.signal == Signal::FecCorrected);
        assert_eq!(corrected.unwrap().value, 13);
        assert_eq!(report.findings("mlx5_0").len(), 2);
    }

    #[test]
    fn a_failed_query_says_what_mlxlink_said() {
        let error = parse(r#"{"status":{"code":1,"message":"no such device"}}"#).unwrap_err();
        assert!(error.to_string().contains("no such device"), "{error}");
    }
}
