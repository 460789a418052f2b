//! `ArrowArray`: the buffers of a column.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow::array::{ArrayData, BufferSpec, layout};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::datatypes::{DataType, UnionMode};
use arrow::error::ArrowError;

use super::broken;

/// The structure of the C data interface.
#[repr(C)]
pub(super) struct CArray {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut CArray,
    dictionary: *mut CArray,
    release: Option<unsafe extern "C" fn(*mut CArray)>,
    private: *mut c_void,
}

// SAFETY: the buffers are never written once they are handed over, and the release callback may be called from any
// thread: both are what the interface demands of a producer.
unsafe impl Send for CArray {}
// SAFETY: as above.
unsafe impl Sync for CArray {}

/// What an exported array owns.
struct Owned {
    _buffers: Vec<Option<Buffer>>,
    pointers: Vec<*const c_void>,
    children: Vec<*mut CArray>,
    dictionary: *mut CArray,
}

unsafe extern "C" fn release(array: *mut CArray) {
    // SAFETY: the consumer hands back what `CArray::export` made, once; the pointers inside came from `Box::into_raw`.
    unsafe {
        let Some(array) = array.as_mut() else { return };
        let owned = Box::from_raw(array.private.cast::<Owned>());
        for child in owned.children.iter().chain([&owned.dictionary]).filter(|child| !child.is_null()) {
            drop(Box::from_raw(*child));
        }
        array.release = None;
    }
}

impl Drop for CArray {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: a structure that still has its release callback is alive, and the callback is called once.
            unsafe { release(self) }
        }
    }
}

impl CArray {
    /// A structure for a producer to fill; released ones are the end of a stream.
    pub(super) fn empty() -> CArray {
        CArray {
            length: 0,
            null_count: 0,
            offset: 0,
            n_buffers: 0,
            n_children: 0,
            buffers: std::ptr::null_mut(),
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

    /// The array for others to read; its buffers are shared.
    pub(super) fn export(data: &ArrayData) -> CArray {
        let layout = layout(data.data_type());
        let mut buffers: Vec<Option<Buffer>> = Vec::with_capacity(data.buffers().len() + 2);
        if layout.can_contain_null_mask {
            buffers.push(data.nulls().map(|nulls| aligned(nulls, data.offset())));
        }
        buffers.extend(data.buffers().iter().cloned().map(Some));
        if layout.variadic {
            let lengths: Vec<i64> = data.buffers().iter().skip(1).map(|buffer| buffer.len() as i64).collect();
            buffers.push(Some(Buffer::from_vec(lengths)));
        }
        let pointers =
            buffers.iter().map(|buffer| buffer.as_ref().map_or(std::ptr::null(), |buffer| buffer.as_ptr().cast()));
        let boxed = |data: &ArrayData| Box::into_raw(Box::new(CArray::export(data)));
        let is_dictionary = matches!(data.data_type(), DataType::Dictionary(..));
        let mut owned = Box::new(Owned {
            pointers: pointers.collect(),
            children: if is_dictionary { vec![] } else { data.child_data().iter().map(boxed).collect() },
            dictionary: match data.child_data().first() {
                Some(values) if is_dictionary => boxed(values),
                _ => std::ptr::null_mut(),
            },
            _buffers: buffers,
        });
        let nulls = if matches!(data.data_type(), DataType::Null) { data.len() } else { data.null_count() };
        CArray {
            length: data.len() as i64,
            null_count: nulls as i64,
            offset: data.offset() as i64,
            n_buffers: owned.pointers.len() as i64,
            n_children: owned.children.len() as i64,
            buffers: owned.pointers.as_mut_ptr(),
            children: owned.children.as_mut_ptr(),
            dictionary: owned.dictionary,
            release: Some(release),
            private: Box::into_raw(owned).cast(),
        }
    }

    /// The array, read where it lies; it is released when the last buffer goes.
    ///
    /// # Safety
    /// The structure must be what the interface says for `kind`: lengths and pointers are believed.
    pub(super) unsafe fn import(self, kind: DataType) -> Result<ArrayData, ArrowError> {
        let owner = Arc::new(self);
        // SAFETY: as promised by the caller.
        let mut data = unsafe { import(&owner, &owner, kind)? };
        // Producers need not align as this library wants; a no-op for those that do.
        data.align_buffers();
        Ok(data)
    }
}

/// Validity bits that begin at `offset`, where the array's values do.
fn aligned(nulls: &NullBuffer, offset: usize) -> Buffer {
    if nulls.offset() == offset {
        return nulls.buffer().clone();
    }
    if offset == 0 {
        return nulls.inner().sliced();
    }
    let shifted = BooleanBuffer::collect_bool(offset + nulls.len(), |at| at >= offset && nulls.is_valid(at - offset));
    shifted.into_inner()
}

fn count(number: i64) -> Result<usize, ArrowError> {
    usize::try_from(number).map_err(|_| broken("an array of negative length"))
}

unsafe fn import(owner: &Arc<CArray>, array: &CArray, kind: DataType) -> Result<ArrayData, ArrowError> {
    let (length, offset) = (count(array.length)?, count(array.offset)?);
    let layout = layout(&kind);
    let pointers: &[*const c_void] = match array.buffers.is_null() {
        true => &[],
        // SAFETY: the producer promises `n_buffers` pointers.
        false => unsafe { std::slice::from_raw_parts(array.buffers, count(array.n_buffers)?) },
    };
    let from = |pointer: *const c_void, bytes: usize| {
        if bytes == 0 {
            return Ok::<Buffer, ArrowError>(Buffer::from_vec(Vec::<u8>::new()));
        }
        let pointer = NonNull::new(pointer.cast_mut().cast::<u8>())
            .ok_or_else(|| broken(format!("a buffer of an array of {kind} is null")))?;
        // SAFETY: the buffer is as long as the layout of its type and the array's length say, and the owner keeps it.
        Ok(unsafe { Buffer::from_custom_allocation(pointer, bytes, Arc::clone(owner) as _) })
    };
    let all = length + offset;
    let mut rest = pointers.iter().copied();
    let mut next = || rest.next().ok_or_else(|| broken(format!("an array of {kind} has too few buffers")));
    let mut nulls = None;
    if layout.can_contain_null_mask {
        let pointer = next()?;
        if !pointer.is_null() && array.null_count != 0 {
            nulls = Some(from(pointer, all.div_ceil(8))?);
        }
    }
    let mut buffers = Vec::new();
    for (at, spec) in layout.buffers.iter().enumerate() {
        let pointer = next()?;
        let bytes = match spec {
            BufferSpec::BitMap => all.div_ceil(8),
            BufferSpec::AlwaysNull => 0,
            BufferSpec::FixedWidth { byte_width, .. } => {
                // Offsets have one more than there are values; a producer of nothing may leave even that out.
                let offsets = matches!(
                    kind,
                    DataType::Utf8
                        | DataType::LargeUtf8
                        | DataType::Binary
                        | DataType::LargeBinary
                        | DataType::List(_)
                        | DataType::LargeList(_)
                        | DataType::Map(..)
                ) && at == 0;
                match offsets {
                    true if pointer.is_null() && all == 0 => 0,
                    true => (all + 1) * byte_width,
                    false => all * byte_width,
                }
            }
            BufferSpec::VariableWidth => match buffers.first() {
                Some(offsets) => last_offset(offsets, &kind, all),
                None => 0,
            },
        };
        buffers.push(from(pointer, bytes)?);
    }
    if layout.variadic {
        let views = usize::from(layout.can_contain_null_mask) + layout.buffers.len();
        let data = pointers.len().checked_sub(views + 1);
        let data = data.ok_or_else(|| broken(format!("an array of {kind} has too few buffers")))?;
        if data > 0 {
            let lengths = pointers.get(views + data).copied().unwrap_or(std::ptr::null()).cast::<i64>();
            if lengths.is_null() {
                return Err(broken(format!("an array of {kind} does not say how long its buffers are")));
            }
            for at in 0..data {
                // SAFETY: the last buffer holds one length for each of the variadic ones.
                let bytes = unsafe { lengths.add(at).read_unaligned() };
                buffers.push(from(next()?, count(bytes)?)?);
            }
        }
    }
    let children = match &kind {
        DataType::Dictionary(_, values) => {
            // SAFETY: the producer promises a valid structure for a dictionary, or null.
            let dictionary =
                unsafe { array.dictionary.as_ref() }.ok_or_else(|| broken("a dictionary without values"))?;
            // SAFETY: as promised by the caller.
            vec![unsafe { import(owner, dictionary, values.as_ref().clone())? }]
        }
        other => child_types(other)
            .into_iter()
            .enumerate()
            .map(|(at, kind)| {
                if array.children.is_null() || at >= count(array.n_children)? {
                    return Err(broken(format!("an array of {kind} is missing")));
                }
                // SAFETY: the producer promises `n_children` valid pointers.
                let child = unsafe { array.children.add(at).read().as_ref() };
                // SAFETY: as promised by the caller.
                unsafe { import(owner, child.ok_or_else(|| broken("a child array is null"))?, kind) }
            })
            .collect::<Result<_, _>>()?,
    };
    // SAFETY: lengths follow from the layout above; that values are what their type says is the producer's promise.
    Ok(unsafe { ArrayData::new_unchecked(kind, length, None, nulls, offset, buffers, children) })
}

fn child_types(kind: &DataType) -> Vec<DataType> {
    match kind {
        DataType::List(child)
        | DataType::LargeList(child)
        | DataType::ListView(child)
        | DataType::LargeListView(child)
        | DataType::FixedSizeList(child, _)
        | DataType::Map(child, _) => vec![child.data_type().clone()],
        DataType::Struct(fields) => fields.iter().map(|field| field.data_type().clone()).collect(),
        DataType::Union(fields, UnionMode::Dense | UnionMode::Sparse) => {
            fields.iter().map(|(_, field)| field.data_type().clone()).collect()
        }
        DataType::RunEndEncoded(ends, values) => vec![ends.data_type().clone(), values.data_type().clone()],
        _ => vec![],
    }
}

/// Where the last of `all` values ends.
fn last_offset(offsets: &Buffer, kind: &DataType, all: usize) -> usize {
    let wide = matches!(kind, DataType::LargeUtf8 | DataType::LargeBinary);
    let width = if wide { 8 } else { 4 };
    let Some(bytes) = offsets.as_slice().get(all * width..(all + 1) * width) else { return 0 };
    let last = match wide {
        true => bytes.try_into().map(i64::from_ne_bytes).unwrap_or(0),
        false => bytes.try_into().map(|bytes| i64::from(i32::from_ne_bytes(bytes))).unwrap_or(0),
    };
    usize::try_from(last).unwrap_or(0)
}
