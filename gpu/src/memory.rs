//! Memory of the device and the page-locked memory of the host that is copied to and from it.
//!
//! Every allocation on the device is reserved against a budget before the driver is asked, so that two operators
//! never find out half-way that they do not fit together. Freed memory goes back to the driver's stream-ordered pool,
//! whose release threshold is raised: without that each synchronization would hand it to the system again.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, PinnedHostSlice, result, sys};
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// The part of the device's free memory that this process takes as its budget.
const BUDGET_SHARE: f64 = 0.85;

/// The smallest piece of page-locked memory.
const SMALLEST_PINNED_BYTES: usize = 64 * 1024;

/// The budget of one device.
#[derive(Debug)]
pub struct DevicePool {
    stream: Arc<CudaStream>,
    budget_bytes: usize,
    reserved_bytes: AtomicUsize,
}

/// Bytes taken from a [`DevicePool`]'s budget, given back on drop.
#[derive(Debug)]
pub struct Reservation {
    pool: Arc<DevicePool>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.pool.reserved_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Bytes on the device. Freed in the order of the stream, so a kernel that still reads them finishes first.
#[derive(Debug)]
pub struct DeviceBuffer {
    // Dropped in this order: the memory, then its reservation.
    slice: CudaSlice<u8>,
    pointer: u64,
    _reservation: Reservation,
}

impl DeviceBuffer {
    /// The address on the device.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The size.
    pub fn bytes(&self) -> usize {
        self.slice.len()
    }
}

impl DevicePool {
    /// A pool over `stream`'s device. `budget_bytes` is 85% of what is free unless it is given.
    pub fn try_new(stream: Arc<CudaStream>, budget_bytes: Option<usize>) -> Result<Arc<Self>> {
        let context = stream.context();
        let budget_bytes = match budget_bytes {
            Some(bytes) => bytes,
            None => {
                let (free, _) = context.mem_get_info().map_err(Error::driver("asking for free memory"))?;
                (free as f64 * BUDGET_SHARE) as usize
            }
        };
        if context.has_async_alloc() {
            keep_freed_memory(context, budget_bytes)?;
        }
        Ok(Arc::new(Self { stream, budget_bytes, reserved_bytes: AtomicUsize::new(0) }))
    }

    /// What this process may use.
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// What is taken now.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved_bytes.load(Ordering::Acquire)
    }

    /// Takes `bytes` of the budget without allocating.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation> {
        self.reserved_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |reserved| {
                reserved.checked_add(bytes).filter(|&sum| sum <= self.budget_bytes)
            })
            .map_err(|_| self.out_of_memory(bytes))?;
        Ok(Reservation { pool: Arc::clone(self), bytes })
    }

    /// Allocates `bytes`, not zeroed. On exhaustion the driver's pool is trimmed and the allocation tried once more.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<DeviceBuffer> {
        // Zero bytes would be a null pointer, which the kernels read as "no bitmap".
        let bytes = bytes.max(1);
        let reservation = self.reserve(bytes)?;
        // SAFETY: the bytes are not read before they are written: uploads, memsets and kernels fill them.
        let allocate = || unsafe { self.stream.alloc::<u8>(bytes) };
        let slice = match allocate() {
            Err(error) if error.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                self.trim()?;
                allocate().map_err(|_| self.out_of_memory(bytes))?
            }
            other => other.map_err(Error::driver("allocating"))?,
        };
        let pointer = {
            use cudarc::driver::DevicePtr;
            slice.device_ptr(&self.stream).0
        };
        Ok(DeviceBuffer { slice, pointer, _reservation: reservation })
    }

    /// Allocates `bytes` and fills them with `byte`.
    pub fn allocate_filled(self: &Arc<Self>, bytes: usize, byte: u8) -> Result<DeviceBuffer> {
        let buffer = self.allocate(bytes)?;
        self.fill(&buffer, byte)?;
        Ok(buffer)
    }

    /// Fills a buffer with `byte`, in the order of the stream.
    pub fn fill(&self, buffer: &DeviceBuffer, byte: u8) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(Error::driver("filling memory"))?;
        // SAFETY: the range is the buffer's own.
        unsafe { result::memset_d8_async(buffer.pointer, byte, buffer.bytes(), self.stream.cu_stream()) }
            .map_err(Error::driver("filling memory"))
    }

    /// Gives memory that is free back to the system.
    pub fn trim(&self) -> Result<()> {
        self.stream.synchronize().map_err(Error::driver("waiting before trimming"))?;
        if self.stream.context().has_async_alloc() {
            let pool = default_pool(self.stream.context())?;
            // SAFETY: `pool` is the device's own pool.
            unsafe { sys::cuMemPoolTrimTo(pool, 0) }.result().map_err(Error::driver("trimming the memory pool"))?;
        }
        Ok(())
    }

    fn out_of_memory(&self, requested_bytes: usize) -> Error {
        Error::OutOfMemory { requested_bytes, reserved_bytes: self.reserved_bytes(), budget_bytes: self.budget_bytes }
    }
}

fn default_pool(context: &CudaContext) -> Result<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes one handle.
    unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()) }
        .result()
        .map_err(Error::driver("finding the memory pool"))?;
    Ok(pool)
}

fn keep_freed_memory(context: &CudaContext, bytes: usize) -> Result<()> {
    let pool = default_pool(context)?;
    let mut threshold = bytes as u64;
    // SAFETY: the attribute's value is a 64-bit number, read during the call.
    unsafe {
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    }
    .result()
    .map_err(Error::driver("setting up the memory pool"))
}

/// Page-locked host memory, kept in powers of two and used again: locking pages costs about as much as copying them.
///
/// Not write-combined: the same pieces are read by the CPU after copies from the device, and reading write-combined
/// memory is about ten times slower.
pub struct PinnedPool {
    context: Arc<CudaContext>,
    limit_bytes: usize,
    state: Mutex<PinnedState>,
}

#[derive(Default)]
struct PinnedState {
    held_bytes: usize,
    free: Vec<PinnedHostSlice<u8>>,
}

/// A piece of a [`PinnedPool`], returned to it on drop.
pub struct PinnedBuffer {
    pool: Arc<PinnedPool>,
    slice: Option<PinnedHostSlice<u8>>,
}

impl PinnedPool {
    /// A pool that holds at most `limit_bytes`.
    pub fn new(context: Arc<CudaContext>, limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self { context, limit_bytes, state: Mutex::default() })
    }

    /// A piece of at least `bytes`, its content undefined; `None` when the limit is reached, so that the caller
    /// copies from pageable memory instead.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Option<PinnedBuffer>> {
        let size = bytes.max(SMALLEST_PINNED_BYTES).next_power_of_two();
        let mut state = self.state.lock();
        if let Some(at) = state.free.iter().position(|slice| slice.len() == size) {
            let slice = state.free.swap_remove(at);
            return Ok(Some(PinnedBuffer { pool: Arc::clone(self), slice: Some(slice) }));
        }
        // Pieces of other sizes make room first.
        while state.held_bytes + size > self.limit_bytes {
            let Some(slice) = state.free.pop() else { return Ok(None) };
            state.held_bytes -= slice.len();
        }
        // SAFETY: bytes have no invalid values, and the content is documented as undefined.
        let slice = unsafe { self.context.alloc_pinned_with_flags::<u8>(size, 0) }
            .map_err(Error::driver("locking host memory"))?;
        state.held_bytes += size;
        Ok(Some(PinnedBuffer { pool: Arc::clone(self), slice: Some(slice) }))
    }

    /// What the pool holds, in use or not.
    pub fn held_bytes(&self) -> usize {
        self.state.lock().held_bytes
    }
}

impl PinnedBuffer {
    /// The piece. `None` never happens before drop.
    pub(crate) fn slice_mut(&mut self) -> Option<&mut PinnedHostSlice<u8>> {
        self.slice.as_mut()
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.pool.state.lock().free.push(slice);
        }
    }
}
