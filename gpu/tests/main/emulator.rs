//! Builds the emulator (`gpu/emulator`) with g++ and puts it in the place of libcuda, libnvrtc and libcublas.
//!
//! It is loaded before cudarc asks for a library of the same name, so that the loader answers with it. Compiled pieces
//! are kept in the target directory under a hash of their source.
use std::ffi::{CString, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{env, fs};

use rowmill_gpu::device::{Device, DeviceOptions};

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
}

/// One test at a time has the device: the emulator's settings are the process's environment.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// An open emulated device, held alone until dropped.
pub(crate) struct Emulated {
    pub(crate) device: Arc<Device>,
    _alone: MutexGuard<'static, ()>,
}

/// Where compiled kernels of the emulator lie.
pub(crate) fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gpu-emulator")
}

/// Whether the tests run under AddressSanitizer (see `sanitizer.rs`).
pub(crate) fn sanitized() -> bool {
    env::var("GPU_EMU_CXXFLAGS").is_ok_and(|flags| flags.contains("-fsanitize=address"))
}

/// How many cases proptest tries: fewer under AddressSanitizer; `PROPTEST_CASES` asks for more or fewer.
pub(crate) fn cases(usual: u32) -> u32 {
    let asked = env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    asked.unwrap_or(if sanitized() { usual.div_ceil(4) } else { usual })
}

fn source_folder() -> PathBuf {
    // The tests of the crates above this one use this file too.
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("emulator"));
    crates.into_iter().find(|folder| folder.join("driver.cpp").exists()).expect("the emulator's sources")
}

/// Sources and the names of the libraries whose place they take.
pub(crate) const LIBRARIES: [(&str, &str); 3] =
    [("driver.cpp", "libcuda.so"), ("nvrtc.cpp", "libnvrtc.so"), ("cublas.cpp", "libcublas.so")];

/// Compiles one of the libraries unless it is there.
pub(crate) fn library(source: &str, name: &str) -> PathBuf {
    let text = fs::read_to_string(source_folder().join(source)).unwrap();
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let folder = cache().join(format!("{:016x}", hasher.finish()));
    let path = folder.join(name);
    if !path.exists() {
        fs::create_dir_all(&folder).unwrap();
        let mine = folder.join(format!("{name}.{}", std::process::id()));
        let status = Command::new("g++")
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"])
            .arg(&mine)
            .arg(source_folder().join(source))
            .arg("-ldl")
            .status()
            .expect("the emulator's tests need g++");
        assert!(status.success());
        fs::rename(mine, &path).unwrap();
    }
    path
}

/// Puts the emulator in the place of the real libraries, once per process.
pub(crate) fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // SAFETY: no other thread of the test reads the environment yet: every test begins here.
        unsafe {
            env::set_var("GPU_EMU_INCLUDE", source_folder());
            env::set_var("GPU_EMU_CACHE", cache().join("kernels"));
        }
        for (source, name) in LIBRARIES {
            let path = CString::new(library(source, name).to_str().unwrap()).unwrap();
            // SAFETY: the library was made above; 0x102 is RTLD_NOW | RTLD_GLOBAL.
            assert!(!unsafe { dlopen(path.as_ptr(), 0x102) }.is_null(), "{} could not be loaded", name);
        }
    });
}

/// The emulated device with some options.
pub(crate) fn open(options: &DeviceOptions) -> Emulated {
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    install();
    Emulated { device: Device::open(options).unwrap(), _alone: alone }
}

/// The emulated device.
pub(crate) fn device() -> Emulated {
    open(&DeviceOptions::default())
}

/// Holds the emulator without opening a device, for tests of what goes wrong while opening it.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    install();
    guard
}

/// Sets a variable for as long as the value lives. Only while the emulator is held.
pub(crate) struct Setting(&'static str);

impl Setting {
    pub(crate) fn new(name: &'static str, value: &str) -> Self {
        // SAFETY: the emulator is held by this test, and nothing else reads these variables.
        unsafe { env::set_var(name, value) };
        Self(name)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { env::remove_var(self.0) };
    }
}
