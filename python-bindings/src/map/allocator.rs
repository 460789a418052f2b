//! The system's allocator under functions that make a column in each call.

/// Has the system's allocator keep what functions free. Each call makes a column of some hundred kilobytes; where those
/// go back to the system at once, the next call pays for new pages, which costs ten times the work of adding a number.
/// Whoever set the allocator up by its environment variables is left alone.
pub(super) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        const TRIM_THRESHOLD: std::ffi::c_int = -1;
        const MMAP_THRESHOLD: std::ffi::c_int = -3;
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            let set = |name: &str| std::env::var_os(name).is_some();
            if set("MALLOC_TRIM_THRESHOLD_") || set("MALLOC_MMAP_THRESHOLD_") || set("GLIBC_TUNABLES") {
                return;
            }
            // SAFETY: glibc documents both calls for use at any time; what it refuses stays as it is.
            unsafe {
                mallopt(TRIM_THRESHOLD, 128 << 20);
                mallopt(MMAP_THRESHOLD, 32 << 20);
            }
        });
    }
}
