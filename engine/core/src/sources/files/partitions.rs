//! Values that folders of a path give to its files: `year=2013/month=1/`.

use datafusion::common::ScalarValue;
use rowmill_spec::{Diagnostic, Fault};

use super::Found;
use super::open::Opener;
use crate::sources::list::below;
use crate::types::{arrow_type, logical_name};

/// What Hive writes for a null partition value.
pub const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

impl Opener<'_> {
    /// The partition values of a file, in the order of the source's `partitions`.
    pub(super) fn partition_values(&self, file: &Found) -> Result<Vec<ScalarValue>, Diagnostic> {
        if self.source.partitions.is_empty() {
            return Ok(Vec::new());
        }
        let path = below(&file.location.prefix, &file.meta.location).unwrap_or("");
        let mut values = Vec::new();
        for (name, kind) in &self.source.partitions {
            let text = path
                .split('/')
                .filter_map(|segment| segment.split_once('='))
                .find(|(key, _)| key == name)
                .map(|(_, value)| value)
                .or_else(|| {
                    // The wildcard may begin below the partition folders.
                    file.meta
                        .location
                        .as_ref()
                        .split('/')
                        .filter_map(|segment| segment.split_once('='))
                        .find(|(key, _)| key == name)
                        .map(|(_, value)| value)
                });
            let Some(text) = text else {
                return Err(self
                    .error("RM0508", format!("the path of `{}` has no folder `{name}=...`", file.name()))
                    .fault(Fault::Data)
                    .help("`partitions` names the folders of a path such as year=2013/month=1/"));
            };
            let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
            let kind = arrow_type(kind);
            let value = match text.as_ref() {
                HIVE_NULL => ScalarValue::try_from(&kind),
                text => ScalarValue::try_from_string(text.to_owned(), &kind),
            };
            values.push(value.map_err(|_| {
                self.error(
                    "RM0508",
                    format!("`{name}={text}` in the path of `{}` is not {}", file.name(), logical_name(&kind)),
                )
                .fault(Fault::Data)
            })?);
        }
        Ok(values)
    }
}
