//! One schema from many files: strict, or a union that widens.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use rowmill_spec::SchemaPolicy;

use crate::types::{logical_name, same_logical_type, widen};

/// Two files that cannot be one table.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Disagreement {
    /// A column that only some files have (strict).
    #[error("column `{column}` is in `{present}` but not in `{absent}`")]
    Missing {
        /// The column.
        column: String,
        /// A file that has it.
        present: String,
        /// A file that has not.
        absent: String,
    },
    /// A column of two types.
    #[error("column `{column}` is {left_type} in `{left}` but {right_type} in `{right}`")]
    Types {
        /// The column.
        column: String,
        /// One file.
        left: String,
        /// Its type there.
        left_type: String,
        /// Another file.
        right: String,
        /// Its type there.
        right_type: String,
    },
}

/// The schema of all files together. Columns come in the order of the first file, then in the order they turn up.
///
/// Under `strict` every file has the same columns and logical types, in any order. Under `union` a column that a file
/// lacks is null there, and types widen as [`widen`] says.
pub fn unite(files: &[(String, SchemaRef)], policy: SchemaPolicy) -> Result<SchemaRef, Disagreement> {
    let Some((first_name, first)) = files.first() else { return Ok(Arc::new(Schema::empty())) };
    if files.iter().all(|(_, schema)| Arc::ptr_eq(schema, first) || schema.fields() == first.fields()) {
        return Ok(Arc::clone(first));
    }
    let mut united: Vec<(FieldRef, &str)> =
        first.fields().iter().map(|field| (Arc::clone(field), first_name.as_str())).collect();
    let mut places: HashMap<String, usize> =
        united.iter().enumerate().map(|(at, (field, _))| (field.name().clone(), at)).collect();
    let mut seen_in_all = vec![true; united.len()];
    for (name, schema) in &files[1..] {
        let mut present = vec![false; united.len()];
        for field in schema.fields() {
            let Some(at) = places.get(field.name()).copied() else {
                if policy == SchemaPolicy::Strict {
                    return Err(Disagreement::Missing {
                        column: field.name().clone(),
                        present: name.clone(),
                        absent: first_name.clone(),
                    });
                }
                places.insert(field.name().clone(), united.len());
                united.push((Arc::new(field.as_ref().clone().with_nullable(true)), name));
                present.push(true);
                seen_in_all.push(false);
                continue;
            };
            present[at] = true;
            let (known, owner) = &united[at];
            let kind = match policy {
                SchemaPolicy::Strict => same_logical_type(known.data_type(), field.data_type())
                    .then(|| widen(known.data_type(), field.data_type()))
                    .flatten(),
                SchemaPolicy::Union => widen(known.data_type(), field.data_type()),
            };
            let Some(kind) = kind else {
                return Err(Disagreement::Types {
                    column: field.name().clone(),
                    left: (*owner).to_owned(),
                    left_type: logical_name(known.data_type()),
                    right: name.clone(),
                    right_type: logical_name(field.data_type()),
                });
            };
            let nullable = known.is_nullable() || field.is_nullable();
            if &kind != known.data_type() || nullable != known.is_nullable() {
                let merged = Arc::new(Field::new(field.name(), kind, nullable));
                united[at].0 = merged;
            }
        }
        for (at, present) in present.iter().enumerate() {
            if *present {
                continue;
            }
            if policy == SchemaPolicy::Strict {
                return Err(Disagreement::Missing {
                    column: united[at].0.name().clone(),
                    present: united[at].1.to_owned(),
                    absent: name.clone(),
                });
            }
            seen_in_all[at] = false;
        }
    }
    let fields: Vec<FieldRef> = united
        .into_iter()
        .zip(seen_in_all)
        .map(|((field, _), everywhere)| match everywhere {
            true => field,
            false => Arc::new(field.as_ref().clone().with_nullable(true)),
        })
        .collect();
    Ok(Arc::new(Schema::new(fields)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::DataType;

    fn file(name: &str, columns: &[(&str, DataType)]) -> (String, SchemaRef) {
        let fields: Vec<Field> = columns.iter().map(|(name, kind)| Field::new(*name, kind.clone(), false)).collect();
        (name.to_owned(), Arc::new(Schema::new(fields)))
    }

    #[test]
    fn union_widens_and_makes_missing_columns_nullable() {
        let one = file("one", &[("a", DataType::Int32), ("b", DataType::Utf8)]);
        let two = file("two", &[("b", DataType::Utf8View), ("a", DataType::Int64), ("c", DataType::Float32)]);
        let united = unite(&[one.clone(), two.clone()], SchemaPolicy::Union).unwrap();
        assert_eq!(united.field(0).data_type(), &DataType::Int64);
        assert_eq!(united.field(1).data_type(), &DataType::Utf8View);
        assert!(united.field(2).is_nullable() && !united.field(0).is_nullable());
        let strict = unite(&[one, two], SchemaPolicy::Strict).unwrap_err();
        assert_eq!(strict.to_string(), "column `a` is int32 in `one` but int64 in `two`");
    }

    #[test]
    fn strict_names_the_missing_column() {
        let one = file("one", &[("a", DataType::Int32), ("b", DataType::Utf8)]);
        let two = file("two", &[("a", DataType::Int32)]);
        let error = unite(&[one, two], SchemaPolicy::Strict).unwrap_err();
        assert_eq!(error.to_string(), "column `b` is in `one` but not in `two`");
    }

    #[test]
    fn text_and_number_never_unite() {
        let one = file("one", &[("a", DataType::Int32)]);
        let two = file("two", &[("a", DataType::Utf8)]);
        assert!(unite(&[one, two], SchemaPolicy::Union).is_err());
    }
}
