//! `ArrowSchema`: a type, with its name, flags and metadata.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, IntervalUnit, Schema, TimeUnit, UnionFields, UnionMode};
use arrow::error::ArrowError;

use super::broken;

const DICTIONARY_ORDERED: i64 = 1;
const NULLABLE: i64 = 2;
const MAP_KEYS_SORTED: i64 = 4;
/// Types nest as deep as people write them; a cycle or an attack nests deeper.
const MAX_DEPTH: usize = 64;

/// The structure of the C data interface.
#[repr(C)]
pub(super) struct CSchema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *mut *mut CSchema,
    dictionary: *mut CSchema,
    release: Option<unsafe extern "C" fn(*mut CSchema)>,
    private: *mut c_void,
}

// SAFETY: what it points to is owned by it alone, and its release callback may be called from any thread.
unsafe impl Send for CSchema {}

/// What an exported schema owns.
struct Owned {
    _format: CString,
    _name: CString,
    _metadata: Option<Vec<u8>>,
    children: Vec<*mut CSchema>,
    dictionary: *mut CSchema,
}

unsafe extern "C" fn release(schema: *mut CSchema) {
    // SAFETY: the consumer hands back what `CSchema::export` made, once; the pointers inside came from `Box::into_raw`.
    unsafe {
        let Some(schema) = schema.as_mut() else { return };
        let owned = Box::from_raw(schema.private.cast::<Owned>());
        for child in owned.children.iter().chain([&owned.dictionary]).filter(|child| !child.is_null()) {
            drop(Box::from_raw(*child));
        }
        schema.release = None;
    }
}

impl Drop for CSchema {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: a structure that still has its release callback is alive, and the callback is called once.
            unsafe { release(self) }
        }
    }
}

impl CSchema {
    /// A structure for a producer to fill.
    pub(super) fn empty() -> CSchema {
        CSchema {
            format: std::ptr::null(),
            name: std::ptr::null(),
            metadata: std::ptr::null(),
            flags: 0,
            n_children: 0,
            children: std::ptr::null_mut(),
            dictionary: std::ptr::null_mut(),
            release: None,
            private: std::ptr::null_mut(),
        }
    }

    /// Whether it holds nothing (any more).
    pub(super) fn is_released(&self) -> bool {
        self.release.is_none()
    }

    /// A schema as a struct.
    pub(super) fn from_schema(schema: &Schema) -> Result<CSchema, ArrowError> {
        export("", &DataType::Struct(schema.fields().clone()), 0, schema.metadata())
    }

    /// The fields of a struct.
    pub(super) fn to_schema(&self) -> Result<Schema, ArrowError> {
        match self.data_type(0)? {
            DataType::Struct(fields) => Ok(Schema::new(fields).with_metadata(self.metadata()?)),
            other => Err(broken(format!("a table or a record batch is needed; this is an array of {other}"))),
        }
    }

    /// The type, whatever it is.
    pub(super) fn to_data_type(&self) -> Result<DataType, ArrowError> {
        self.data_type(0)
    }

    fn field(&self, depth: usize) -> Result<Field, ArrowError> {
        let field = Field::new(text(self.name)?, self.data_type(depth)?, self.flags & NULLABLE != 0);
        Ok(field.with_dict_is_ordered(self.flags & DICTIONARY_ORDERED != 0).with_metadata(self.metadata()?))
    }

    fn child(&self, at: usize) -> Result<&CSchema, ArrowError> {
        if self.children.is_null() || at >= usize::try_from(self.n_children).unwrap_or(0) {
            return Err(broken(format!("type `{}` has no child {at}", text(self.format)?)));
        }
        // SAFETY: the producer promises `n_children` valid pointers for as long as the structure lives.
        unsafe { self.children.add(at).read().as_ref() }.ok_or_else(|| broken("a child of a type is null"))
    }

    fn children(&self, depth: usize) -> Result<Vec<Field>, ArrowError> {
        (0..usize::try_from(self.n_children).unwrap_or(0)).map(|at| self.child(at)?.field(depth + 1)).collect()
    }

    fn data_type(&self, depth: usize) -> Result<DataType, ArrowError> {
        if depth > MAX_DEPTH {
            return Err(broken(format!("a type is nested more than {MAX_DEPTH} deep")));
        }
        let format = text(self.format)?;
        let child = |at: usize| Ok::<FieldRef, ArrowError>(Arc::new(self.child(at)?.field(depth + 1)?));
        let unit = |letter: &str| match letter {
            "s" => Some(TimeUnit::Second),
            "m" => Some(TimeUnit::Millisecond),
            "u" => Some(TimeUnit::Microsecond),
            "n" => Some(TimeUnit::Nanosecond),
            _ => None,
        };
        let kind = match format {
            "n" => DataType::Null,
            "b" => DataType::Boolean,
            "c" => DataType::Int8,
            "C" => DataType::UInt8,
            "s" => DataType::Int16,
            "S" => DataType::UInt16,
            "i" => DataType::Int32,
            "I" => DataType::UInt32,
            "l" => DataType::Int64,
            "L" => DataType::UInt64,
            "e" => DataType::Float16,
            "f" => DataType::Float32,
            "g" => DataType::Float64,
            "z" => DataType::Binary,
            "Z" => DataType::LargeBinary,
            "vz" => DataType::BinaryView,
            "u" => DataType::Utf8,
            "U" => DataType::LargeUtf8,
            "vu" => DataType::Utf8View,
            "tdD" => DataType::Date32,
            "tdm" => DataType::Date64,
            "tts" => DataType::Time32(TimeUnit::Second),
            "ttm" => DataType::Time32(TimeUnit::Millisecond),
            "ttu" => DataType::Time64(TimeUnit::Microsecond),
            "ttn" => DataType::Time64(TimeUnit::Nanosecond),
            "tiM" => DataType::Interval(IntervalUnit::YearMonth),
            "tiD" => DataType::Interval(IntervalUnit::DayTime),
            "tin" => DataType::Interval(IntervalUnit::MonthDayNano),
            "+l" => DataType::List(child(0)?),
            "+L" => DataType::LargeList(child(0)?),
            "+vl" => DataType::ListView(child(0)?),
            "+vL" => DataType::LargeListView(child(0)?),
            "+s" => DataType::Struct(Fields::from(self.children(depth)?)),
            "+m" => DataType::Map(child(0)?, self.flags & MAP_KEYS_SORTED != 0),
            "+r" => DataType::RunEndEncoded(child(0)?, child(1)?),
            other => {
                let unknown = || broken(format!("type `{other}` is not known here"));
                let (word, rest) = other.split_once(':').unwrap_or((other, ""));
                let number = || rest.parse::<i32>().ok().filter(|number| *number >= 0).ok_or_else(unknown);
                match word {
                    "w" => DataType::FixedSizeBinary(number()?),
                    "+w" => DataType::FixedSizeList(child(0)?, number()?),
                    "d" => decimal(rest).ok_or_else(unknown)?,
                    "+ud" | "+us" => {
                        let ids: Option<Vec<i8>> = rest.split(',').map(|id| id.parse().ok()).collect();
                        let mode = if word == "+ud" { UnionMode::Dense } else { UnionMode::Sparse };
                        DataType::Union(UnionFields::try_new(ids.ok_or_else(unknown)?, self.children(depth)?)?, mode)
                    }
                    word => match (word.strip_prefix("ts"), word.strip_prefix("tD")) {
                        (Some(letter), _) => {
                            let zone = (!rest.is_empty()).then(|| Arc::from(rest));
                            DataType::Timestamp(unit(letter).ok_or_else(unknown)?, zone)
                        }
                        (_, Some(letter)) => DataType::Duration(unit(letter).ok_or_else(unknown)?),
                        _ => return Err(unknown()),
                    },
                }
            }
        };
        // SAFETY: the producer promises a valid structure, or null where the type is not a dictionary.
        match unsafe { self.dictionary.as_ref() } {
            Some(values) => Ok(DataType::Dictionary(Box::new(kind), Box::new(values.data_type(depth + 1)?))),
            None => Ok(kind),
        }
    }

    fn metadata(&self) -> Result<HashMap<String, String>, ArrowError> {
        let mut found = HashMap::new();
        if self.metadata.is_null() {
            return Ok(found);
        }
        let mut at = self.metadata.cast::<u8>();
        let mut take = |count: usize| {
            // SAFETY: the format is counted: a number of pairs, and each text after its length. The producer promises
            // that the bytes are there.
            let bytes = unsafe { std::slice::from_raw_parts(at, count) };
            at = at.wrapping_add(count);
            bytes
        };
        let count = |take: &mut dyn FnMut(usize) -> &'static [u8]| {
            let bytes: [u8; 4] = take(4).try_into().unwrap_or_default();
            usize::try_from(i32::from_ne_bytes(bytes)).map_err(|_| broken("metadata of negative length"))
        };
        let pairs = count(&mut take)?;
        for _ in 0..pairs {
            let length = count(&mut take)?;
            let key = String::from_utf8_lossy(take(length)).into_owned();
            let length = count(&mut take)?;
            found.insert(key, String::from_utf8_lossy(take(length)).into_owned());
        }
        Ok(found)
    }
}

/// `precision,scale` or `precision,scale,bits`
fn decimal(text: &str) -> Option<DataType> {
    let mut parts = text.split(',');
    let (precision, scale) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    match parts.next() {
        None | Some("128") => Some(DataType::Decimal128(precision, scale)),
        Some("32") => Some(DataType::Decimal32(precision, scale)),
        Some("64") => Some(DataType::Decimal64(precision, scale)),
        Some("256") => Some(DataType::Decimal256(precision, scale)),
        Some(_) => None,
    }
}

/// A text of the producer; nothing where there is none.
fn text<'a>(text: *const c_char) -> Result<&'a str, ArrowError> {
    if text.is_null() {
        return Ok("");
    }
    // SAFETY: the producer promises a text that ends in zero and lives as long as the structure it hangs on, which
    // every caller here holds while it looks at the text.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| broken("a name or a type is not UTF-8"))
}

fn export(name: &str, kind: &DataType, flags: i64, metadata: &HashMap<String, String>) -> Result<CSchema, ArrowError> {
    let field = |field: &FieldRef| {
        let nullable = if field.is_nullable() { NULLABLE } else { 0 };
        let ordered = if field.dict_is_ordered() == Some(true) { DICTIONARY_ORDERED } else { 0 };
        export(field.name(), field.data_type(), nullable | ordered, field.metadata())
    };
    let (children, dictionary, own) = match kind {
        DataType::List(child)
        | DataType::LargeList(child)
        | DataType::ListView(child)
        | DataType::LargeListView(child)
        | DataType::FixedSizeList(child, _) => (vec![field(child)?], None, 0),
        DataType::Map(child, sorted) => (vec![field(child)?], None, if *sorted { MAP_KEYS_SORTED } else { 0 }),
        DataType::Struct(fields) => (fields.iter().map(field).collect::<Result<_, _>>()?, None, 0),
        DataType::Union(fields, _) => (fields.iter().map(|(_, of)| field(of)).collect::<Result<_, _>>()?, None, 0),
        DataType::RunEndEncoded(ends, values) => (vec![field(ends)?, field(values)?], None, 0),
        DataType::Dictionary(_, values) => (vec![], Some(export("", values, NULLABLE, &HashMap::new())?), 0),
        _ => (vec![], None, 0),
    };
    let text = |text: &str| CString::new(text).map_err(|_| broken(format!("the name {text:?} holds a zero byte")));
    let (format, name, metadata) = (text(&format(kind)?)?, text(name)?, encode(metadata)?);
    let mut owned = Box::new(Owned {
        children: children.into_iter().map(|child| Box::into_raw(Box::new(child))).collect(),
        dictionary: dictionary.map_or(std::ptr::null_mut(), |values| Box::into_raw(Box::new(values))),
        _format: format,
        _name: name,
        _metadata: metadata,
    });
    Ok(CSchema {
        format: owned._format.as_ptr(),
        name: owned._name.as_ptr(),
        metadata: owned._metadata.as_ref().map_or(std::ptr::null(), |bytes| bytes.as_ptr().cast()),
        flags: flags | own,
        n_children: owned.children.len() as i64,
        children: owned.children.as_mut_ptr(),
        dictionary: owned.dictionary,
        release: Some(release),
        private: Box::into_raw(owned).cast(),
    })
}

fn encode(metadata: &HashMap<String, String>) -> Result<Option<Vec<u8>>, ArrowError> {
    if metadata.is_empty() {
        return Ok(None);
    }
    let length = |count: usize| i32::try_from(count).map(i32::to_ne_bytes).map_err(|_| broken("metadata too long"));
    let mut bytes = length(metadata.len())?.to_vec();
    for (key, value) in metadata {
        for text in [key, value] {
            bytes.extend(length(text.len())?);
            bytes.extend(text.as_bytes());
        }
    }
    Ok(Some(bytes))
}

fn format(kind: &DataType) -> Result<String, ArrowError> {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "m",
        TimeUnit::Microsecond => "u",
        TimeUnit::Nanosecond => "n",
    };
    Ok(match kind {
        DataType::Null => "n".into(),
        DataType::Boolean => "b".into(),
        DataType::Int8 => "c".into(),
        DataType::UInt8 => "C".into(),
        DataType::Int16 => "s".into(),
        DataType::UInt16 => "S".into(),
        DataType::Int32 => "i".into(),
        DataType::UInt32 => "I".into(),
        DataType::Int64 => "l".into(),
        DataType::UInt64 => "L".into(),
        DataType::Float16 => "e".into(),
        DataType::Float32 => "f".into(),
        DataType::Float64 => "g".into(),
        DataType::Binary => "z".into(),
        DataType::LargeBinary => "Z".into(),
        DataType::BinaryView => "vz".into(),
        DataType::Utf8 => "u".into(),
        DataType::LargeUtf8 => "U".into(),
        DataType::Utf8View => "vu".into(),
        DataType::Date32 => "tdD".into(),
        DataType::Date64 => "tdm".into(),
        DataType::Time32(of) | DataType::Time64(of) => format!("tt{}", unit(of)),
        DataType::Duration(of) => format!("tD{}", unit(of)),
        DataType::Timestamp(of, zone) => format!("ts{}:{}", unit(of), zone.as_deref().unwrap_or_default()),
        DataType::Interval(IntervalUnit::YearMonth) => "tiM".into(),
        DataType::Interval(IntervalUnit::DayTime) => "tiD".into(),
        DataType::Interval(IntervalUnit::MonthDayNano) => "tin".into(),
        DataType::FixedSizeBinary(width) => format!("w:{width}"),
        DataType::Decimal32(precision, scale) => format!("d:{precision},{scale},32"),
        DataType::Decimal64(precision, scale) => format!("d:{precision},{scale},64"),
        DataType::Decimal128(precision, scale) => format!("d:{precision},{scale}"),
        DataType::Decimal256(precision, scale) => format!("d:{precision},{scale},256"),
        DataType::List(_) => "+l".into(),
        DataType::LargeList(_) => "+L".into(),
        DataType::ListView(_) => "+vl".into(),
        DataType::LargeListView(_) => "+vL".into(),
        DataType::FixedSizeList(_, length) => format!("+w:{length}"),
        DataType::Struct(_) => "+s".into(),
        DataType::Map(..) => "+m".into(),
        DataType::RunEndEncoded(..) => "+r".into(),
        DataType::Dictionary(keys, _) => format(keys)?,
        DataType::Union(fields, mode) => {
            let ids: Vec<String> = fields.iter().map(|(id, _)| id.to_string()).collect();
            let mode = if *mode == UnionMode::Dense { 'd' } else { 's' };
            format!("+u{mode}:{}", ids.join(","))
        }
    })
}
