//! What the device and its link can do: the yardsticks that operators are measured against, in the same run.
use std::time::Instant;

use crate::blas::{Item, Product};
use crate::device::Device;
use crate::error::{Error, Result};

/// How often each measurement is repeated; the best counts.
const REPEATS: usize = 5;

/// Gigabytes (10^9) per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidths {
    /// A copy within the device's memory, read and written bytes together.
    pub copy: f64,
    /// From page-locked host memory to the device.
    pub to_device: f64,
    /// From the device to page-locked host memory.
    pub to_host: f64,
}

/// The best of several runs, in milliseconds of wall time; each run waits for the device.
///
/// # Errors
/// The first error of `work`.
pub fn best_ms(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(best)
}

/// Measures with buffers of `bytes`.
///
/// # Errors
/// [`Error::OutOfMemory`] when two such buffers do not fit.
pub fn bandwidths(device: &Device, bytes: usize) -> Result<Bandwidths> {
    let (from, to) = (device.memory().allocate_filled(bytes, 1)?, device.memory().allocate(bytes)?);
    let mut copy_ms = f64::INFINITY;
    for _ in 0..REPEATS {
        copy_ms = copy_ms.min(f64::from(device.time_ms(|| device.copy_on_device(&from, &to, bytes))?));
    }
    let staged = bytes.min(32 * 1024 * 1024);
    let mut staging =
        device.pinned().take(staged)?.ok_or_else(|| Error::Invalid("no page-locked memory is left".into()))?;
    let up = best_ms(|| device.copy_pinned(&to, &mut staging, true))?;
    let down = best_ms(|| device.copy_pinned(&to, &mut staging, false))?;
    let staged = staged.next_power_of_two().min(to.bytes()) as f64;
    let rate = |bytes: f64, ms: f64| bytes / ms.max(1e-6) / 1e6;
    Ok(Bandwidths { copy: rate(2.0 * bytes as f64, copy_ms), to_device: rate(staged, up), to_host: rate(staged, down) })
}

/// Rows, columns and depth of the product that is measured.
const PRODUCT_SIZE: usize = 4096;

/// What cuBLAS does of bfloat16 with sums in f32, in 10^9 multiplications and additions per second; `None` without cuBLAS.
///
/// # Errors
/// [`Error::OutOfMemory`] when the matrices do not fit.
pub fn product_gflops(device: &Device) -> Result<Option<f64>> {
    let size = if device.info().name == "CPU emulator" { 32 } else { PRODUCT_SIZE };
    let Some(blas) = device.blas().filter(|blas| blas.is_usable()) else { return Ok(None) };
    // Bytes of 0x3c are bf16 of about 0.01: no denormals, no overflow.
    let factors = [
        device.memory().allocate_filled(size * size * 2, 0x3c)?,
        device.memory().allocate_filled(size * size * 2, 0x3c)?,
    ];
    let scores = device.memory().allocate(size * size * 4)?;
    let product = Product {
        item: Item::Bf16,
        corpus: factors[0].pointer(),
        rows: size,
        queries: factors[1].pointer(),
        asked: size,
        dims: size,
        scores: scores.pointer(),
        add: false,
    };
    let mut best = f32::INFINITY;
    for _ in 0..REPEATS {
        // SAFETY: the three buffers hold matrices of this size.
        best = best.min(device.time_ms(|| unsafe { blas.start(&product) })?);
    }
    Ok(Some(2.0 * (size as f64).powi(3) / f64::from(best.max(1e-6)) / 1e6))
}
