//! The emulator itself: what CUDA says warps, barriers, shared memory and atomics do; and that it notices misuse.
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use rowmill_gpu::compile::{Floats, compile_to_cubin};
use rowmill_gpu::ops::aggregate::Aggregate;
use rowmill_gpu::ops::top_k::Metric;

use crate::emulator::{self, Setting};
use crate::{data, group_by, sort_join, top_k};

/// Runs `name` of `source` over one block of 64 threads and returns 64 numbers, or the driver's error.
fn run(source: &str, name: &str, shared_bytes: u32) -> Result<Vec<u32>, String> {
    let cubin = compile_to_cubin(source, "sm_90", Floats::AsOnCpu, false).map_err(|error| error.to_string())?.cubin;
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_binary(cubin)).unwrap();
    let function = module.load_function(name).unwrap();
    let mut out = stream.alloc_zeros::<u32>(64).unwrap();
    let size = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: shared_bytes };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut out);
    // SAFETY: the kernels below write 64 numbers.
    unsafe { launch.launch(size) }.map_err(|error| error.to_string())?;
    Ok(stream.clone_dtoh(&out).unwrap())
}

fn kernel(body: &str) -> String {
    format!(
        "#ifndef DYNAMIC_SHARED\n#error this is the emulator's\n#endif\n\
         extern \"C\" __global__ void k(unsigned* out) {{ unsigned t = threadIdx.x; {body} }}"
    )
}

#[test]
fn warps_exchange_as_cuda_says() {
    let _alone = emulator::alone();
    type Expected = fn(u32) -> u32;
    let cases: [(&str, Expected); 6] = [
        ("out[t] = __shfl_sync(~0u, t, 5);", |t| t / 32 * 32 + 5),
        ("out[t] = __shfl_xor_sync(~0u, t, 3);", |t| t ^ 3),
        ("out[t] = __shfl_down_sync(~0u, t, 4);", |t| if t % 32 < 28 { t + 4 } else { t }),
        ("out[t] = __shfl_up_sync(~0u, t, 4);", |t| if t % 32 >= 4 { t - 4 } else { t }),
        ("out[t] = __ballot_sync(~0u, t % 3 == 0);", |t| {
            (0..32).map(|lane| u32::from((t / 32 * 32 + lane).is_multiple_of(3)) << lane).sum()
        }),
        ("out[t] = __any_sync(~0u, t == 40);", |t| u32::from(t >= 32)),
    ];
    for order in ["forward", "reverse", "12345"] {
        let _setting = Setting::new("GPU_EMU_ORDER", order);
        for (body, expected) in cases {
            let expected: Vec<u32> = (0..64).map(expected).collect();
            assert_eq!(run(&kernel(body), "k", 0).unwrap(), expected, "{body} {order}");
        }
    }
}

#[test]
fn barriers_and_atomics_order_the_threads_of_a_block() {
    let _alone = emulator::alone();
    for order in ["forward", "reverse", "7"] {
        let _setting = Setting::new("GPU_EMU_ORDER", order);
        let body = "DYNAMIC_SHARED(unsigned, s); s[t] = t; __syncthreads(); out[t] = s[63 - t];";
        assert_eq!(run(&kernel(body), "k", 256).unwrap(), (0..64).rev().collect::<Vec<_>>());
        let body =
            "__shared__ unsigned n; if (t == 0) n = 0; __syncthreads(); atomicAdd(&n, t); __syncthreads(); out[t] = n;";
        assert_eq!(run(&kernel(body), "k", 0).unwrap(), vec![64 * 63 / 2; 64]);
    }
}

/// Without its barrier the same kernel gives another result as soon as the threads run in another order.
#[test]
fn another_order_shows_a_missing_barrier() {
    let _alone = emulator::alone();
    let body = "__shared__ unsigned n; if (t == 0) n = 0; out[t] = atomicAdd(&n, 1);";
    let forward: Vec<u32> = (0..64).collect();
    assert_eq!(run(&kernel(body), "k", 0).unwrap(), forward);
    let _setting = Setting::new("GPU_EMU_ORDER", "reverse");
    assert_ne!(run(&kernel(body), "k", 0).unwrap(), forward);
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_an_error() {
    let _alone = emulator::alone();
    let body = "if (t < 40) { __syncthreads(); } else { __shfl_sync(~0u, t, 0); __shfl_sync(~0u, t, 1); } out[t] = 1;";
    assert!(run(&kernel(body), "k", 0).is_err());
}

/// The operators give the same results in whatever order the threads of a block run.
#[test]
fn operators_do_not_depend_on_the_order_of_threads() {
    let device = emulator::device();
    for order in ["reverse", "1", "2"] {
        let _setting = Setting::new("GPU_EMU_ORDER", order);
        for keys in [&["i64"][..], &["huge", "bool"]] {
            let query = group_by::query(keys, None, &[Aggregate::count_rows("n")]);
            group_by::check(&device, &query, keys.len(), &data::batch(1500, 4), &format!("{keys:?} {order}"));
        }
        let query = sort_join::sort(&[("i8", false, true), ("f64", true, false)], None);
        let batch = data::batch(4500, 5);
        let on_device = rowmill_gpu::batch::DeviceBatch::upload(&device.device, &batch).unwrap();
        let found = query.run(&device.device, &on_device).unwrap().download(&device.device).unwrap();
        data::assert_equal(&query.run_on_cpu(&batch).unwrap(), &found, order);
        for queries in [2, 9] {
            top_k::check_kernels(&device, Metric::Dot, 1025, queries, 7, order);
        }
    }
}
