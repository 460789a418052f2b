//! Whether an operator is faster on the device: by a table that `rowmill gpu bench` measured on this machine. What was not
//! measured is left to the CPU: it is then as fast as without a GPU, for certain.
use std::path::Path;

use serde::{Deserialize, Serialize};

/// An operator that can be offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// Filter and aggregates in one pass, without groups.
    FilterAggregate,
    /// Aggregates by group.
    GroupBy,
    /// A sort of whole rows.
    Sort,
    /// A hash join.
    Join,
    /// A similarity search; its corpus is put on the device once.
    TopK,
}

impl Operator {
    /// All of them.
    pub const ALL: [Operator; 5] =
        [Operator::FilterAggregate, Operator::GroupBy, Operator::Sort, Operator::Join, Operator::TopK];

    /// As it is written in tables and explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Operator::FilterAggregate => "filter_aggregate",
            Operator::GroupBy => "group_by",
            Operator::Sort => "sort",
            Operator::Join => "join",
            Operator::TopK => "top_k",
        }
    }
}

/// Times of one operator over one input, in milliseconds of wall time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The operator.
    pub operator: Operator,
    /// Rows of the input.
    pub rows: u64,
    /// Bytes of the columns that the operator reads.
    pub bytes: u64,
    /// On the CPU, with all threads.
    pub cpu_ms: f64,
    /// On the device, the input in the host's memory.
    pub host_ms: f64,
    /// On the device, the input there already; `None` where that was not measured.
    pub resident_ms: Option<f64>,
}

/// What was measured on one device.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffloadTable {
    /// The device's name; a table of another device is not used.
    pub device: String,
    /// The measurements, in any order.
    pub measured: Vec<Measurement>,
}

/// A decision and its reason, for `explain`.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Whether the device is faster.
    pub offload: bool,
    /// Why, in words.
    pub why: String,
    /// What the CPU would take, by the table: a device that turns out to be slower than this is not asked again.
    pub cpu_ms: Option<f64>,
}

impl Decision {
    /// A decision that no measurement stands behind.
    pub fn plain(offload: bool, why: impl Into<String>) -> Self {
        Self { offload, why: why.into(), cpu_ms: None }
    }
}

impl OffloadTable {
    /// Reads a table.
    ///
    /// # Errors
    /// Why it cannot be read, in words that name the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let table: Self =
            serde_json::from_str(&text).map_err(|error| format!("{} is no offload table: {error}", path.display()))?;
        let sound = |ms: f64| ms.is_finite() && ms > 0.0;
        let wrong = table.measured.iter().find(|m| {
            m.rows == 0 || !sound(m.cpu_ms) || !sound(m.host_ms) || m.resident_ms.is_some_and(|ms| !sound(ms))
        });
        match wrong {
            Some(wrong) => Err(format!("{}: rows and times are above zero, not {wrong:?}", path.display())),
            None => Ok(table),
        }
    }

    /// Writes the table, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mine = path.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&mine, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&mine, path)
    }

    /// Whether to offload `operator` over `rows` rows of `bytes` bytes in all; `None` rows are unknown, and taken for
    /// many: the decision is made again when the rows are there.
    pub fn decide(&self, operator: Operator, rows: Option<u64>, bytes: u64, resident: bool) -> Decision {
        let mut points: Vec<&Measurement> = self.measured.iter().filter(|m| m.operator == operator).collect();
        points.sort_by_key(|m| m.rows);
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return Decision::plain(
                false,
                format!(
                    "{} was not measured on this GPU; `rowmill gpu bench --save` measures it, `gpu.use: always` goes \
                     without",
                    operator.as_str()
                ),
            );
        };
        let known = rows.is_some();
        let rows = rows.unwrap_or(last.rows).max(1);
        let bytes = if known { bytes } else { last.bytes };
        let at = |time: &dyn Fn(&Measurement) -> f64| interpolate(&points, rows, time);
        let cpu = match rows < first.rows {
            // A fixed cost hides in the smallest measurement; the CPU has almost none.
            true => first.cpu_ms * rows as f64 / first.rows as f64,
            false => at(&|m| m.cpu_ms),
        };
        let device = at(&|m| {
            let there = m.resident_ms.unwrap_or(m.host_ms);
            if resident {
                return there;
            }
            // What the link takes grows with the width of the rows.
            let width = (bytes as f64 / rows as f64) / (m.bytes.max(1) as f64 / m.rows as f64);
            there + (m.host_ms - there).max(0.0) * if m.resident_ms.is_some() { width } else { 1.0 }
        });
        let about = if known { "" } else { "at most about " };
        Decision {
            offload: device <= cpu,
            why: format!(
                "{about}{device:.2} ms on the device and {cpu:.2} ms on the CPU for {rows} rows, by the measured table"
            ),
            cpu_ms: known.then_some(cpu),
        }
    }

    /// What it takes to put the corpus of a search on the device, by the table.
    pub fn corpus_upload_ms(&self, rows: u64, bytes: u64) -> Option<f64> {
        let mut points: Vec<&Measurement> = self.measured.iter().filter(|m| m.operator == Operator::TopK).collect();
        points.sort_by_key(|m| m.rows);
        let last = points.last()?;
        let width = (bytes as f64 / rows.max(1) as f64) / (last.bytes.max(1) as f64 / last.rows as f64);
        let upload = |m: &Measurement| (m.host_ms - m.resident_ms.unwrap_or(0.0)).max(0.0);
        Some(interpolate(&points, rows.max(1), &upload) * width)
    }
}

/// Linear between the neighbours, in proportion beyond the last, constant before the first.
fn interpolate(points: &[&Measurement], rows: u64, time: &dyn Fn(&Measurement) -> f64) -> f64 {
    let after = points.iter().position(|m| m.rows >= rows);
    match after {
        Some(0) => time(points[0]),
        Some(at) => {
            let (low, high) = (points[at - 1], points[at]);
            let share = (rows - low.rows) as f64 / (high.rows - low.rows).max(1) as f64;
            time(low) + (time(high) - time(low)) * share
        }
        None => points.last().map_or(f64::INFINITY, |last| time(last) * rows as f64 / last.rows as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> OffloadTable {
        let m = |rows, cpu_ms, host_ms, resident_ms| Measurement {
            operator: Operator::GroupBy,
            rows,
            bytes: rows * 16,
            cpu_ms,
            host_ms,
            resident_ms,
        };
        let measured = vec![m(1_000_000, 10.0, 8.0, Some(2.0)), m(1_000, 0.1, 1.0, Some(0.9))];
        OffloadTable { device: "d".into(), measured }
    }

    #[test]
    fn the_faster_side_is_taken() {
        let decide = |rows: u64, width: u64, resident| {
            table().decide(Operator::GroupBy, Some(rows), rows * width, resident).offload
        };
        assert!(decide(1_000_000, 16, false));
        assert!(decide(50_000_000, 16, false));
        // Twice as wide rows take twice as long over the link: 2 + 6 * 2 > 10.
        assert!(!decide(1_000_000, 32, false));
        assert!(decide(1_000_000, 32, true));
        for rows in [0, 1, 900, 1_000] {
            assert!(!decide(rows, 16, false), "{rows}");
        }
        assert!(table().decide(Operator::GroupBy, None, 0, false).offload);
    }

    /// What was not measured is not offloaded, whatever its size: only so is it never slower than on the CPU.
    #[test]
    fn without_a_measurement_the_cpu_does_it() {
        for operator in Operator::ALL {
            for (rows, resident) in [(Some(1), false), (Some(1 << 40), false), (Some(1 << 40), true), (None, false)] {
                let decision = OffloadTable::default().decide(operator, rows, 1 << 44, resident);
                assert!(!decision.offload && decision.why.contains("rowmill gpu bench --save"), "{decision:?}");
                assert_eq!(decision.cpu_ms, None);
            }
        }
        assert!(!table().decide(Operator::Sort, Some(1 << 40), 1 << 44, false).offload);
        assert_eq!(table().decide(Operator::GroupBy, Some(1_000_000), 16_000_000, false).cpu_ms, Some(10.0));
    }

    #[test]
    fn uploading_a_corpus_grows_with_its_bytes() {
        let m = Measurement {
            operator: Operator::TopK,
            rows: 1000,
            bytes: 1000 * 1536,
            cpu_ms: 9.0,
            host_ms: 5.0,
            resident_ms: Some(1.0),
        };
        let table = OffloadTable { device: "d".into(), measured: vec![m] };
        assert_eq!(table.corpus_upload_ms(1000, 1000 * 1536), Some(4.0));
        assert_eq!(table.corpus_upload_ms(2000, 2000 * 768), Some(4.0));
        assert_eq!(OffloadTable::default().corpus_upload_ms(10, 10), None);
    }

    #[test]
    fn tables_come_back_and_wrong_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/table.json");
        table().write(&path).unwrap();
        assert_eq!(OffloadTable::read(&path).unwrap(), table());
        for text in [
            "",
            "{}",
            r#"{"device":"d","measured":[{"operator":"group_by","rows":0,"bytes":1,"cpu_ms":1,"host_ms":1,"resident_ms":null}]}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(OffloadTable::read(&path).unwrap_err().contains("table.json"), "{text}");
        }
    }
}
