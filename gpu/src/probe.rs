//! Finds out whether a device, its driver and NVRTC are here, without ever panicking or loading what is missing.
use std::ffi::CStr;

use cudarc::driver::{CudaContext, result, sys};

use crate::error::{Error, Result};

/// What a device says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The driver's number of the device.
    pub ordinal: usize,
    /// The device's name.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The device's memory.
    pub total_memory_bytes: usize,
    /// What was free when it was asked.
    pub free_memory_bytes: usize,
    /// The CUDA version the driver speaks, as 1000 * major + 10 * minor.
    pub driver_version: i32,
    /// NVRTC's version.
    pub nvrtc_version: (i32, i32),
}

/// The version of the NVRTC library, or why there is none.
pub fn nvrtc_version() -> Result<(i32, i32)> {
    // SAFETY: only tries to open shared libraries by name.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(Error::NoDevice("the NVRTC library (libnvrtc.so) was not found; `pip install nvidia-cuda-nvrtc-cu12` brings it, and LD_LIBRARY_PATH says where it is".into()));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is present and writes two integers.
    unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(|error| Error::NoDevice(format!("NVRTC did not tell its version: {error}")))?;
    Ok((major, minor))
}

/// Whether cuBLAS is here, which searches with many queries use.
pub fn has_cublas() -> bool {
    // SAFETY: only tries to open shared libraries by name.
    unsafe { cudarc::cublas::sys::is_culib_present() }
}

/// Looks at device `ordinal`.
///
/// # Errors
/// [`Error::NoDevice`] with the reason; never panics, whatever is missing.
pub fn probe(ordinal: usize) -> Result<DeviceInfo> {
    // SAFETY: only tries to open shared libraries by name. Everything below would panic without the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDevice("the NVIDIA driver library (libcuda.so) was not found".into()));
    }
    let nvrtc_version = nvrtc_version()?;
    let missing = |error: result::DriverError| Error::NoDevice(format!("the driver offers no device: {}", code(error)));
    result::init().map_err(missing)?;
    let count = CudaContext::device_count().map_err(missing)?;
    if usize::try_from(count).unwrap_or(0) <= ordinal {
        return Err(Error::NoDevice(format!("device {ordinal} was asked for, the driver has {count}")));
    }
    let context = CudaContext::new(ordinal).map_err(missing)?;
    let (free_memory_bytes, total_memory_bytes) = context.mem_get_info().map_err(missing)?;
    let multiprocessors =
        context.attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(missing)?;
    let mut driver_version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut driver_version) }.result().map_err(missing)?;
    Ok(DeviceInfo {
        ordinal,
        name: context.name().map_err(missing)?,
        compute_capability: context.compute_capability().map_err(missing)?,
        multiprocessors: u32::try_from(multiprocessors).unwrap_or(1).max(1),
        total_memory_bytes,
        free_memory_bytes,
        driver_version,
        nvrtc_version,
    })
}

/// The driver's name of an error code. `Display` of cudarc's error asks the driver too, but a library whose `cuInit`
/// failed may not know the name; the number is always there.
fn code(error: result::DriverError) -> String {
    let mut name = std::ptr::null();
    // SAFETY: the library is present; on success `name` is a static C string.
    let known = unsafe { sys::cuGetErrorName(error.0, &mut name) } == sys::cudaError_enum::CUDA_SUCCESS;
    if known && !name.is_null() {
        // SAFETY: see above.
        return unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    }
    format!("error {}", error.0 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine without a GPU this is the whole point; on one with a GPU it must find it.
    #[test]
    fn probing_never_panics() {
        match probe(0) {
            Ok(info) => assert!(info.total_memory_bytes > 0),
            Err(error) => assert!(matches!(error, Error::NoDevice(_)), "{error}"),
        }
        assert!(matches!(probe(4096), Err(Error::NoDevice(_))));
    }
}
