"""Times the CPU path of top-k beside faiss-cpu: the same data, the same machine, alternating in one run.

usage: compare_faiss.py PATH-TO-top_k_cpu-BENCH [--rows 500000] [--rounds 5] [--metric ip|l2] [--items f32|f16|bf16]
needs: pip install faiss-cpu==1.15.1 numpy

Both use the same number of threads. For each number of queries the two take turns, so that whatever else runs on the
machine slows both; the table gives each one's best and median time, the median of the ratios of neighbouring turns, and
the processor time of both, which a busy machine disturbs least. The results are compared too: the rows found must be the
same up to ties within rounding.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

DIMS = 384
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", help="the compiled bench `top_k_cpu`")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=faiss.omp_get_max_threads())
    parser.add_argument("--metric", choices=["ip", "l2"], default="ip")
    parser.add_argument("--items", choices=["f32", "f16", "bf16"], default="f32", help="the type of the corpus's items")
    arguments = parser.parse_args()

    faiss.omp_set_num_threads(arguments.threads)
    random = np.random.default_rng(7)
    corpus = random.standard_normal((arguments.rows, DIMS), dtype=np.float32)
    queries = random.standard_normal((512, DIMS), dtype=np.float32)
    if arguments.items == "f32":
        index = faiss.IndexFlatIP(DIMS) if arguments.metric == "ip" else faiss.IndexFlatL2(DIMS)
    else:
        kind = faiss.ScalarQuantizer.QT_fp16 if arguments.items == "f16" else faiss.ScalarQuantizer.QT_bf16
        metric = faiss.METRIC_INNER_PRODUCT if arguments.metric == "ip" else faiss.METRIC_L2
        index = faiss.IndexScalarQuantizer(DIMS, kind, metric)
        index.train(corpus[:1000])
    index.add(corpus)

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "corpus.f32", Path(folder) / "queries.f32"]
        corpus.tofile(paths[0])
        queries.tofile(paths[1])
        ours = subprocess.Popen(
            [arguments.bench, *map(str, paths), arguments.metric, arguments.items, "stdin"],
            env={**os.environ, "RAYON_NUM_THREADS": str(arguments.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        print(f"{arguments.rows} x {DIMS} {arguments.items}, k = {K}, {arguments.metric}, {arguments.threads} threads")
        print("queries | faiss ms: best, median | ours ms: best, median | ratio of pairs | cpu ms: faiss, ours, ratio | same rows")
        for count in (1, 8, 64, 512):
            faiss_ms, ours_ms, faiss_cpu, ours_cpu = [], [], [], []
            same = 1.0
            for _ in range(arguments.rounds):
                asked = queries[:count]
                index.search(asked, K)
                start, cpu = time.perf_counter(), time.process_time()
                _, expected = index.search(asked, K)
                faiss_ms.append((time.perf_counter() - start) * 1000)
                faiss_cpu.append((time.process_time() - cpu) * 1000)
                ours.stdin.write(f"{count}\n")
                ours.stdin.flush()
                answer = json.loads(ours.stdout.readline())
                ours_ms.append(answer["ms"])
                ours_cpu.append(answer["cpu_ms"])
                found = np.array(answer["rows"])
                overlap = [len(set(a) & set(b)) / K for a, b in zip(expected.tolist(), found.tolist())]
                same = min(same, float(np.mean(overlap)))
            ratio = statistics.median(o / f for o, f in zip(ours_ms, faiss_ms))
            cpu = statistics.median(ours_cpu), statistics.median(faiss_cpu)
            print(
                f"{count:7} | {min(faiss_ms):8.1f} {statistics.median(faiss_ms):8.1f} "
                f"| {min(ours_ms):8.1f} {statistics.median(ours_ms):8.1f} | {ratio:6.2f} "
                f"| {cpu[1]:7.0f} {cpu[0]:7.0f} {cpu[0] / max(cpu[1], 1):6.2f} | {same:.4f}",
                flush=True,
            )
        ours.stdin.close()
        ours.wait()


if __name__ == "__main__":
    main()
