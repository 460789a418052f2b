//! Products of matrices by cuBLAS, which uses the tensor cores. The library is loaded when the first product is asked for;
//! without it the crate's own kernel does the same, slower.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::cublas::{result, sys};
use cudarc::driver::CudaStream;
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// The type of both factors; products are summed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    F32,
    F16,
    Bf16,
}

/// `scores[query * rows + row] = sum over dim of corpus[row * dims + dim] * queries[query * dims + dim]`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) item: Item,
    pub(crate) corpus: u64,
    pub(crate) rows: usize,
    pub(crate) queries: u64,
    pub(crate) asked: usize,
    pub(crate) dims: usize,
    pub(crate) scores: u64,
    /// Whether the product is added to the scores that are there.
    pub(crate) add: bool,
}

/// cuBLAS on one stream.
pub(crate) struct Blas {
    // One caller at a time: a handle has one workspace.
    handle: Mutex<Handle>,
    products: AtomicU64,
    broken: AtomicBool,
}

struct Handle(sys::cublasHandle_t);

// SAFETY: a handle may be used from any thread, by one at a time, which the mutex sees to.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by create_handle and destroyed once. A failure to free has no one to tell.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

impl Blas {
    /// cuBLAS on `stream`, whose context is bound to this thread; `None`, with the reason said, where it cannot be used.
    pub(crate) fn open(stream: &Arc<CudaStream>) -> Option<Self> {
        // SAFETY: only tries to open shared libraries by name. Everything below would panic without the library.
        if !unsafe { sys::is_culib_present() } {
            tracing::info!("cuBLAS (libcublas.so) was not found; searches with many queries go without tensor cores");
            return None;
        }
        let opened = result::create_handle().map(Handle).and_then(|handle| {
            // SAFETY: the handle was just made; the stream outlives it, since the device holds both.
            unsafe { result::set_stream(handle.0, stream.cu_stream().cast()) }.map(|()| handle)
        });
        match opened {
            Ok(handle) => {
                Some(Self { handle: Mutex::new(handle), products: AtomicU64::new(0), broken: AtomicBool::new(false) })
            }
            Err(error) => {
                tracing::warn!(%error, "cuBLAS cannot be used; searches with many queries go without tensor cores");
                None
            }
        }
    }

    /// Whether it works as far as is known.
    pub(crate) fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::Acquire)
    }

    /// Products so far.
    pub(crate) fn products(&self) -> u64 {
        self.products.load(Ordering::Acquire)
    }

    /// Starts a product on the stream.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when cuBLAS refuses; it is not asked again.
    ///
    /// # Safety
    /// The three pointers are of this device and hold what `product` says.
    pub(crate) unsafe fn start(&self, product: &Product) -> Result<()> {
        let size = |size: usize| {
            i32::try_from(size).map_err(|_| Error::Unsupported(format!("a product of matrices of {size} rows")))
        };
        let (rows, asked, dims) = (size(product.rows)?, size(product.asked)?, size(product.dims)?);
        let data_type = match product.item {
            Item::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Item::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Item::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let (one, before) = (1.0_f32, if product.add { 1.0_f32 } else { 0.0 });
        let handle = self.handle.lock();
        // cuBLAS counts by columns: our rows of the corpus are the columns of a matrix that is to be transposed, and the
        // scores of one query are one column.
        // SAFETY: the caller's promise; the two factors are read during the call, as a handle does by default.
        let status = unsafe {
            sys::cublasGemmEx(
                handle.0,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                rows,
                asked,
                dims,
                (&raw const one).cast(),
                product.corpus as *const _,
                data_type,
                dims,
                product.queries as *const _,
                data_type,
                dims,
                (&raw const before).cast(),
                product.scores as *mut _,
                sys::cudaDataType_t::CUDA_R_32F,
                rows,
                // Sums in f32, and for f32 products in f32 too: no TF32.
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        match status.result() {
            Ok(()) => {
                self.products.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            Err(error) => {
                self.broken.store(true, Ordering::Release);
                tracing::warn!(%error, "cuBLAS refused a product; searches go on without it");
                Err(Error::Unsupported(format!("a product by cuBLAS: {error}")))
            }
        }
    }
}
