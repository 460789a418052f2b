//! One device with everything an operator needs of it: its stream, its memory, its compiler. One lane: operators of
//! one device run one after another on one stream, so kernels and frees are ordered without events.
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, result, sys};

use crate::blas::Blas;
use crate::compile::{Compiler, Floats};
use crate::error::{DataFault, Error, Result};
use crate::memory::{DeviceBuffer, DevicePool, PinnedBuffer, PinnedPool};
use crate::probe::{self, DeviceInfo};

/// Copies of at least this size go through page-locked memory.
const STAGED_FROM_BYTES: usize = 256 * 1024;
/// One piece of such a copy; two are in flight.
const STAGE_BYTES: usize = 8 * 1024 * 1024;

/// How a device is opened.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// The driver's number of the device.
    pub ordinal: usize,
    /// What this process may use of its memory; by default 85% of what is free when it is opened.
    pub budget_bytes: Option<usize>,
    /// Where compiled kernels are kept between processes; by default nowhere.
    pub kernel_cache: Option<PathBuf>,
}

/// An open device.
pub struct Device {
    // Dropped first: it works on the stream.
    blas: OnceLock<Option<Blas>>,
    info: DeviceInfo,
    stream: Arc<CudaStream>,
    memory: Arc<DevicePool>,
    pinned: Arc<PinnedPool>,
    compiler: Compiler,
}

/// The size of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launch {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

/// The arguments of a kernel, in its order; each is copied by the driver during the launch.
#[derive(Default)]
pub(crate) struct Arguments(Vec<Vec<u64>>);

impl Arguments {
    pub(crate) fn pointer(mut self, buffer: &DeviceBuffer) -> Self {
        self.0.push(vec![buffer.pointer()]);
        self
    }

    /// A pointer, or null.
    pub(crate) fn maybe(mut self, buffer: Option<&DeviceBuffer>) -> Self {
        self.0.push(vec![buffer.map_or(0, DeviceBuffer::pointer)]);
        self
    }

    /// Any integer argument of up to 64 bits: the machine is little-endian on both sides.
    pub(crate) fn number(mut self, value: u64) -> Self {
        self.0.push(vec![value]);
        self
    }

    /// A struct of 64-bit words.
    pub(crate) fn words(mut self, words: Vec<u64>) -> Self {
        self.0.push(words);
        self
    }
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoDevice`] where there is none; never panics.
    pub fn open(options: &DeviceOptions) -> Result<Arc<Self>> {
        let info = probe::probe(options.ordinal)?;
        let context = CudaContext::new(options.ordinal).map_err(Error::driver("opening the device"))?;
        // SAFETY: all work of this crate is on one stream, and the copies that leave the host's memory in use are
        // synchronized below; per-buffer events would only cost time.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(Error::driver("making a stream"))?;
        let memory = DevicePool::try_new(Arc::clone(&stream), options.budget_bytes)?;
        let pinned = PinnedPool::new(Arc::clone(&context), 8 * STAGE_BYTES);
        let compiler =
            Compiler::new(context, info.compute_capability, info.nvrtc_version, options.kernel_cache.clone());
        Ok(Arc::new(Self { blas: OnceLock::new(), info, stream, memory, pinned, compiler }))
    }

    /// What the device says about itself.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The device's memory.
    pub fn memory(&self) -> &Arc<DevicePool> {
        &self.memory
    }

    /// The device's compiler.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// cuBLAS on this device's stream, if it is here; it is opened when it is first asked for.
    pub(crate) fn blas(&self) -> Option<&Blas> {
        self.blas.get_or_init(|| self.bind().ok().and_then(|()| Blas::open(&self.stream))).as_ref()
    }

    /// Products of matrices that cuBLAS has done; `None` where it is not used.
    pub fn products(&self) -> Option<u64> {
        self.blas().filter(|blas| blas.is_usable()).map(Blas::products)
    }

    /// Waits for everything that was started. This is where a kernel's failure shows.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(Error::driver("waiting for the device"))
    }

    /// Copies bytes to the device.
    pub fn upload(&self, bytes: &[u8]) -> Result<DeviceBuffer> {
        let buffer = self.memory.allocate(bytes.len())?;
        self.upload_into(bytes, &buffer, 0)?;
        Ok(buffer)
    }

    /// Copies bytes to `offset` of a buffer.
    ///
    /// # Errors
    /// [`Error::Invalid`] when they reach past its end.
    pub fn upload_into(&self, bytes: &[u8], buffer: &DeviceBuffer, offset: usize) -> Result<()> {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > buffer.bytes()) {
            return Err(Error::Invalid("a copy reaches past the end of a device buffer".into()));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let target = buffer.pointer() + offset as u64;
        if bytes.len() < STAGED_FROM_BYTES {
            return self.copy_now(bytes, target);
        }
        // While the device fetches one piece, the CPU fills the other.
        let (first, second) = (self.pinned.take(STAGE_BYTES)?, self.pinned.take(STAGE_BYTES)?);
        let (Some(first), Some(second)) = (first, second) else { return self.copy_now(bytes, target) };
        let mut stages = [first, second];
        let events = [self.event()?, self.event()?];
        for (index, piece) in bytes.chunks(STAGE_BYTES).enumerate() {
            let (stage, event) = (&mut stages[index % 2], &events[index % 2]);
            if index >= 2 {
                event.synchronize().map_err(Error::driver("copying to the device"))?;
            }
            let Some(slice) = stage.slice_mut() else { continue };
            let host = slice.as_mut_slice().map_err(Error::driver("copying to the device"))?;
            host[..piece.len()].copy_from_slice(piece);
            // SAFETY: the piece lies in the buffer (checked above); the host side stays as it is until its event.
            unsafe {
                result::memcpy_htod_async(
                    target + (index * STAGE_BYTES) as u64,
                    &host[..piece.len()],
                    self.stream.cu_stream(),
                )
            }
            .map_err(Error::driver("copying to the device"))?;
            event.record(&self.stream).map_err(Error::driver("copying to the device"))?;
        }
        // The stages go back to the pool when this returns.
        self.synchronize()
    }

    fn copy_now(&self, bytes: &[u8], target: u64) -> Result<()> {
        // SAFETY: the target has room (checked by the caller); waiting keeps `bytes` alive until they are copied.
        unsafe { result::memcpy_htod_async(target, bytes, self.stream.cu_stream()) }
            .map_err(Error::driver("copying to the device"))?;
        self.synchronize()
    }

    /// Copies `bytes` bytes from the start of a buffer to the host.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the buffer is smaller.
    pub fn download(&self, buffer: &DeviceBuffer, bytes: usize) -> Result<Vec<u8>> {
        if bytes > buffer.bytes() {
            return Err(Error::Invalid("a copy reaches past the end of a device buffer".into()));
        }
        let mut host = vec![0_u8; bytes];
        if bytes > 0 {
            self.bind()?;
            // SAFETY: the buffer holds that many bytes; waiting below keeps `host` alive until they are there.
            unsafe { result::memcpy_dtoh_async(&mut host, buffer.pointer(), self.stream.cu_stream()) }
                .map_err(Error::driver("copying from the device"))?;
        }
        self.synchronize()?;
        Ok(host)
    }

    /// Copies the first `count` 64-bit words of a buffer to the host.
    pub(crate) fn download_words(&self, buffer: &DeviceBuffer, count: usize) -> Result<Vec<u64>> {
        let bytes = self.download(buffer, count * 8)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Copies the first `count` 32-bit words of a buffer to the host.
    pub(crate) fn download_u32(&self, buffer: &DeviceBuffer, count: usize) -> Result<Vec<u32>> {
        let bytes = self.download(buffer, count * 4)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// Copies between two buffers of the device.
    pub fn copy_on_device(&self, from: &DeviceBuffer, to: &DeviceBuffer, bytes: usize) -> Result<()> {
        if bytes > from.bytes() || bytes > to.bytes() {
            return Err(Error::Invalid("a copy reaches past the end of a device buffer".into()));
        }
        self.bind()?;
        // SAFETY: both hold that many bytes and live until the stream frees them.
        unsafe { result::memcpy_dtod_async(to.pointer(), from.pointer(), bytes, self.stream.cu_stream()) }
            .map_err(Error::driver("copying on the device"))
    }

    /// The bits of a fault word as an error.
    pub(crate) fn check_faults(&self, faults: &DeviceBuffer) -> Result<u32> {
        let bits = self.download_u32(faults, 1)?.first().copied().unwrap_or(0);
        match DataFault::from_bits(bits) {
            Some(fault) => Err(fault.into()),
            None => Ok(bits),
        }
    }

    /// A kernel of `source`.
    pub(crate) fn function(&self, source: &str, name: &str, floats: Floats) -> Result<CudaFunction> {
        self.compiler.function(source, name, floats)
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// The arguments have the kernel's types and order, and its accesses stay within the buffers they point to.
    pub(crate) unsafe fn launch(&self, function: &CudaFunction, size: Launch, mut arguments: Arguments) -> Result<()> {
        self.bind()?;
        if size.shared_bytes > 48 * 1024 {
            function
                .set_attribute(
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    i32::try_from(size.shared_bytes).unwrap_or(i32::MAX),
                )
                .map_err(Error::driver("asking for shared memory"))?;
        }
        let mut pointers: Vec<_> = arguments.0.iter_mut().map(|words| words.as_mut_ptr().cast()).collect();
        // SAFETY: the caller's promise; `pointers` lives until the driver has copied the arguments.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                (size.blocks, 1, 1),
                (size.threads, 1, 1),
                size.shared_bytes,
                self.stream.cu_stream(),
                &mut pointers,
            )
        }
        .map_err(Error::driver("starting a kernel"))
    }

    /// Blocks of 256 threads for `rows` rows: enough to fill the device, few enough that the partial results of the
    /// blocks are small. The same for the same rows, so that float sums are repeatable.
    pub(crate) fn grid(&self, rows: usize) -> u32 {
        let wanted = rows.div_ceil(256).max(1);
        u32::try_from(wanted.min(self.info.multiprocessors as usize * 8)).unwrap_or(1)
    }

    /// Milliseconds that `work` takes on the device: by events on its stream, or by the clock around it where the
    /// driver is older than 12.8 (asking such a driver for the timing call would panic).
    pub fn time_ms(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        if self.info.driver_version < 12080 {
            self.synchronize()?;
            let start = std::time::Instant::now();
            work()?;
            self.synchronize()?;
            return Ok(start.elapsed().as_secs_f32() * 1000.0);
        }
        let (start, end) = (self.timing_event()?, self.timing_event()?);
        start.record(&self.stream).map_err(Error::driver("timing"))?;
        work()?;
        end.record(&self.stream).map_err(Error::driver("timing"))?;
        start.elapsed_ms(&end).map_err(Error::driver("timing"))
    }

    /// Copies one piece of page-locked memory to a buffer (`to_device`) or from it and waits. This is what the link can
    /// do; [`Device::upload`] adds the copy into page-locked memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the piece cannot be locked.
    pub fn copy_pinned(&self, buffer: &DeviceBuffer, staging: &mut PinnedBuffer, to_device: bool) -> Result<()> {
        let missing = || Error::Invalid("the page-locked buffer is gone".into());
        let host = staging.slice_mut().ok_or_else(missing)?.as_mut_slice().map_err(Error::driver("copying"))?;
        let bytes = host.len().min(buffer.bytes());
        self.bind()?;
        // SAFETY: both sides hold `bytes` bytes, and waiting keeps the host's side alive.
        unsafe {
            if to_device {
                result::memcpy_htod_async(buffer.pointer(), &host[..bytes], self.stream.cu_stream())
            } else {
                result::memcpy_dtoh_async(&mut host[..bytes], buffer.pointer(), self.stream.cu_stream())
            }
        }
        .map_err(Error::driver("copying"))?;
        self.synchronize()
    }

    /// Page-locked memory of this device's context.
    pub fn pinned(&self) -> &Arc<PinnedPool> {
        &self.pinned
    }

    fn event(&self) -> Result<cudarc::driver::CudaEvent> {
        self.stream.context().new_event(None).map_err(Error::driver("making an event"))
    }

    fn timing_event(&self) -> Result<cudarc::driver::CudaEvent> {
        self.stream
            .context()
            .new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
            .map_err(Error::driver("making an event"))
    }

    fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(Error::driver("choosing the device"))
    }
}
