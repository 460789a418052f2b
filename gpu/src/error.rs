//! What can go wrong on a device, sorted by what the caller does next: finish on the CPU, try again elsewhere, or
//! report the user's data. Turning an error into a message for the user is left to the step that ran the operator.
use arrow::error::ArrowError;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the user's data, found by a kernel in one of its rows. Texts are Arrow's, so that an offloaded query
/// fails with the words its CPU twin fails with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DataFault {
    /// An integer or decimal was divided by zero.
    #[error("Divide by zero error")]
    DivideByZero,
    /// A decimal left 128 bits, or the smallest integer was divided by -1.
    #[error("Arithmetic overflow")]
    Overflow,
    /// A value does not fit the type it is cast to.
    #[error("Cast error: a value does not fit the target type")]
    Cast,
    /// A NaN or -0.0 where the smallest or largest float of each group was asked for: DataFusion's answer hangs on the
    /// order of the rows, so the rows are not a mistake but the CPU's to do.
    #[error("NaN or -0.0 in min or max by group, whose result hangs on the order of the rows")]
    Unordered,
}

impl DataFault {
    /// Reads the bits a kernel left in its fault word; the order is that of `kernels/common.cuh`.
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            bits if bits & 1 != 0 => Some(Self::DivideByZero),
            bits if bits & 2 != 0 => Some(Self::Overflow),
            bits if bits & 4 != 0 => Some(Self::Cast),
            bits if bits & 16 != 0 => Some(Self::Unordered),
            _ => None,
        }
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine has no usable NVIDIA driver, device or NVRTC library.
    #[error("no GPU is usable here: {0}")]
    NoDevice(String),
    /// The budget or the device itself has no room, after the pool was trimmed.
    #[error("the GPU has no room for {requested_bytes} bytes ({reserved_bytes} of {budget_bytes} are taken)")]
    OutOfMemory {
        /// What was asked for.
        requested_bytes: usize,
        /// What was reserved at that time.
        reserved_bytes: usize,
        /// What this process may use of the device.
        budget_bytes: usize,
    },
    /// NVRTC refused a kernel. It is not tried again in this process.
    #[error("NVRTC could not compile a kernel for {arch}: {log}")]
    Compile {
        /// The architecture asked for, such as `sm_90`.
        arch: String,
        /// NVRTC's log.
        log: String,
    },
    /// The driver failed in another way.
    #[error("the GPU driver failed while {doing}: {source}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's own error.
        source: cudarc::driver::DriverError,
    },
    /// A kernel failed earlier and took the device's context with it.
    #[error("the GPU's context was lost to an earlier kernel failure; restart the process to use it again")]
    Poisoned,
    /// A row holds a value that the expression rejects.
    #[error(transparent)]
    Data(#[from] DataFault),
    /// The operator, type or expression has no kernel; it runs on the CPU.
    #[error("not offloaded: {0}")]
    Unsupported(String),
    /// The caller's arguments contradict each other.
    #[error("{0}")]
    Invalid(String),
    /// An Arrow kernel of the CPU path failed.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}

impl Error {
    /// Whether the same work should be finished on the CPU: there is nothing wrong with the data or the plan.
    pub fn falls_back_to_cpu(&self) -> bool {
        matches!(
            self,
            Self::NoDevice(_) | Self::OutOfMemory { .. } | Self::Compile { .. } | Self::Unsupported(_) | Self::Poisoned
        )
    }

    /// Whether the device's context is lost, so that the device is unhealthy until the process restarts.
    pub fn is_poisoned(&self) -> bool {
        matches!(self, Self::Poisoned)
    }

    /// A driver's error as ours. An illegal access takes the context with it: from then on every call fails alike.
    pub(crate) fn driver(doing: &'static str) -> impl Fn(cudarc::driver::DriverError) -> Self {
        use cudarc::driver::sys::cudaError_enum as code;
        move |source| match source.0 {
            code::CUDA_ERROR_ILLEGAL_ADDRESS
            | code::CUDA_ERROR_LAUNCH_FAILED
            | code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | code::CUDA_ERROR_MISALIGNED_ADDRESS
            | code::CUDA_ERROR_ASSERT => Self::Poisoned,
            _ => Self::Driver { doing, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_names_the_fault() {
        assert_eq!(DataFault::from_bits(0), None);
        assert_eq!(DataFault::from_bits(1 | 2), Some(DataFault::DivideByZero));
        assert_eq!(DataFault::from_bits(2 | 4), Some(DataFault::Overflow));
        assert_eq!(DataFault::from_bits(4 | 16), Some(DataFault::Cast));
        assert_eq!(DataFault::from_bits(8), None);
        assert_eq!(DataFault::from_bits(8 | 16), Some(DataFault::Unordered));
    }

    #[test]
    fn only_the_environment_falls_back() {
        assert!(Error::NoDevice("x".into()).falls_back_to_cpu());
        assert!(Error::Unsupported("x".into()).falls_back_to_cpu());
        assert!(!Error::Data(DataFault::Overflow).falls_back_to_cpu());
        assert!(!Error::Invalid("x".into()).falls_back_to_cpu());
    }
}
