//! Compiles CUDA C with NVRTC to a CUBIN and keeps the result: in memory as a loaded module, on disk as bytes, keyed by
//! source, architecture, NVRTC's version and options. A source that failed once is not tried again in this process.
use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::{Ptx, result, sys};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::probe;

/// Equal results on every device: no fused multiply-add, no flushing of denormals, IEEE division and square root.
const EQUALITY_OPTIONS: [&str; 6] =
    ["--std=c++17", "--device-int128", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

/// Similarity kernels sum rounded products anyway: fused multiply-add is faster and no less exact.
const FMA_OPTIONS: [&str; 3] = ["--std=c++17", "--device-int128", "--fmad=true"];

const MAGIC: &[u8; 8] = b"rmcubin1";

/// How a kernel's floating point is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Floats {
    /// As the CPU computes: see `EQUALITY_OPTIONS`.
    AsOnCpu,
    /// Products and sums may be fused.
    Fused,
}

/// What NVRTC made of one source.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The machine code.
    pub cubin: Vec<u8>,
    /// NVRTC's log; with `report` the registers and spills of each kernel.
    pub log: String,
}

/// Compiles `source` for `arch` (such as `sm_90`) without a device or a cache. `report` asks ptxas for registers and
/// spills.
pub fn compile_to_cubin(source: &str, arch: &str, floats: Floats, report: bool) -> Result<Compiled> {
    probe::nvrtc_version()?;
    let failed = |log: String| Error::Compile { arch: arch.to_owned(), log };
    let text = CString::new(source).map_err(|_| failed("the source holds a zero byte".into()))?;
    let program = Program(result::create_program(&text, Some(c"kernel.cu")).map_err(|e| failed(e.to_string()))?);
    let mut options = options_of(floats).to_vec();
    let arch_option = format!("--gpu-architecture={arch}");
    options.push(&arch_option);
    if report {
        options.push("--ptxas-options=-v");
    }
    // SAFETY: the program is alive until the end of this function.
    let outcome = unsafe { result::compile_program(program.0, &options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) }.map(|log| text_of(&log)).unwrap_or_default();
    outcome.map_err(|error| failed(format!("{error}: {log}")))?;
    let mut bytes = 0;
    // SAFETY: writes one size.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) }.result().map_err(|e| failed(e.to_string()))?;
    let mut cubin = vec![0_u8; bytes];
    // SAFETY: `cubin` has the size NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }.result().map_err(|e| failed(e.to_string()))?;
    Ok(Compiled { cubin, log })
}

fn options_of(floats: Floats) -> &'static [&'static str] {
    match floats {
        Floats::AsOnCpu => &EQUALITY_OPTIONS,
        Floats::Fused => &FMA_OPTIONS,
    }
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by create_program and destroyed once. A failure to free has no one to tell.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn text_of(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How often each way of getting a module was taken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CompileCounts {
    /// Found loaded.
    pub from_memory: u64,
    /// Read from the disk and loaded.
    pub from_disk: u64,
    /// Made by NVRTC.
    pub compiled: u64,
    /// Refused because the same source failed before.
    pub refused: u64,
}

/// The compiler of one device.
pub struct Compiler {
    context: Arc<CudaContext>,
    arch: String,
    nvrtc_version: (i32, i32),
    folder: Option<PathBuf>,
    state: Mutex<State>,
    /// Held while NVRTC runs.
    compiling: Mutex<()>,
}

#[derive(Default)]
struct State {
    modules: HashMap<u128, Arc<CudaModule>>,
    failures: HashMap<u128, String>,
    counts: CompileCounts,
}

impl Compiler {
    /// A compiler for `compute_capability`; with `folder` compiled kernels outlive the process.
    pub fn new(
        context: Arc<CudaContext>,
        compute_capability: (i32, i32),
        nvrtc_version: (i32, i32),
        folder: Option<PathBuf>,
    ) -> Self {
        let arch = format!("sm_{}{}", compute_capability.0, compute_capability.1);
        Self { context, arch, nvrtc_version, folder, state: Mutex::default(), compiling: Mutex::default() }
    }

    /// The function `name` of `source`, compiled if it has to be.
    pub fn function(&self, source: &str, name: &str, floats: Floats) -> Result<CudaFunction> {
        let module = self.module(source, floats)?;
        module.load_function(name).map_err(Error::driver("finding a kernel"))
    }

    /// Compiles and loads `source` unless that was done before.
    ///
    /// # Errors
    /// As [`Compiler::function`].
    pub fn prepare(&self, source: &str, floats: Floats) -> Result<()> {
        self.module(source, floats).map(drop)
    }

    /// Whether [`Compiler::function`] would return without running NVRTC: loaded, kept on the disk, or known to fail.
    /// Never waits for one that is being compiled.
    pub fn is_ready(&self, source: &str, floats: Floats) -> bool {
        let key = self.key(source, floats);
        let state = self.state.lock();
        let is_known = state.modules.contains_key(&key) || state.failures.contains_key(&key);
        is_known || self.path(key).is_some_and(|path| path.exists())
    }

    fn path(&self, key: u128) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{key:032x}.cubin")))
    }

    /// How modules were found since the start.
    pub fn counts(&self) -> CompileCounts {
        self.state.lock().counts
    }

    fn module(&self, source: &str, floats: Floats) -> Result<Arc<CudaModule>> {
        let key = self.key(source, floats);
        if let Some(known) = self.known(key) {
            return known;
        }
        // One kernel is made at a time, so that two tasks that want the same one do not both make it. Whoever wants one
        // that is there does not wait.
        let _one = self.compiling.lock();
        if let Some(known) = self.known(key) {
            return known;
        }
        let path = self.path(key);
        if let Some(module) = path.as_deref().and_then(read_entry).and_then(|cubin| self.load(cubin).ok()) {
            let mut state = self.state.lock();
            state.counts.from_disk += 1;
            state.modules.insert(key, Arc::clone(&module));
            return Ok(module);
        }
        let compiled = match compile_to_cubin(source, &self.arch, floats, false) {
            Ok(compiled) => compiled,
            Err(error) => {
                if let Error::Compile { log, .. } = &error {
                    tracing::warn!(arch = %self.arch, %log, "a GPU kernel did not compile; its work stays on the CPU");
                    self.state.lock().failures.insert(key, log.clone());
                }
                return Err(error);
            }
        };
        let module = self.load(compiled.cubin.clone()).map_err(Error::driver("loading a kernel"))?;
        if let Some(path) = path {
            // A cache that cannot be written costs time, not correctness.
            if let Err(error) = write_entry(&path, &compiled.cubin) {
                tracing::debug!(%error, path = %path.display(), "a compiled kernel was not kept");
            }
        }
        let mut state = self.state.lock();
        state.counts.compiled += 1;
        state.modules.insert(key, Arc::clone(&module));
        Ok(module)
    }

    /// A module that is loaded, or the error of a source that failed before.
    fn known(&self, key: u128) -> Option<Result<Arc<CudaModule>>> {
        let mut state = self.state.lock();
        if let Some(module) = state.modules.get(&key).cloned() {
            state.counts.from_memory += 1;
            return Some(Ok(module));
        }
        let log = state.failures.get(&key).cloned()?;
        state.counts.refused += 1;
        Some(Err(Error::Compile { arch: self.arch.clone(), log }))
    }

    fn load(&self, cubin: Vec<u8>) -> std::result::Result<Arc<CudaModule>, cudarc::driver::DriverError> {
        self.context.load_module(Ptx::from_binary(cubin))
    }

    fn key(&self, source: &str, floats: Floats) -> u128 {
        let (major, minor) = self.nvrtc_version;
        hash(format!("{}\0{major}.{minor}\0{}\0{source}", self.arch, options_of(floats).join(" ")).as_bytes())
    }
}

/// FNV-1a over 128 bits (Fowler, Noll, Vo): stable across processes, which std's hasher is not.
fn hash(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, &byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// An entry is magic, hash of the content, content; anything else is a miss.
fn read_entry(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let content = bytes.strip_prefix(MAGIC)?;
    let (sum, content) = content.split_at_checked(16)?;
    (hash(content).to_le_bytes() == sum).then(|| content.to_vec())
}

fn write_entry(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&hash(cubin).to_le_bytes());
    bytes.extend_from_slice(cubin);
    // Several processes may write the same entry: each writes its own file, and the last rename wins.
    let mine = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&mine, bytes)?;
    fs::rename(&mine, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_is_a_miss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.cubin");
        assert_eq!(read_entry(&path), None);
        write_entry(&path, b"machine code").unwrap();
        assert_eq!(read_entry(&path).unwrap(), b"machine code");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read_entry(&path), None);
        fs::write(&path, &bytes[..10]).unwrap();
        assert_eq!(read_entry(&path), None);
    }
}
