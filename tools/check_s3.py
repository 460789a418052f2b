"""Runs workflows against an S3 server on this machine: objects, directories with a manifest, two versions kept.

Installs moto (a server that speaks S3) into a virtual environment, starts it on a free port, and checks what a reader
sees. Prints `N passed, N failed`.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

WRITE = """rowmill: 1
name: write
params: {factor: int64}
sources:
  n: {range: {start: 0, end: 1000}}
steps:
  s: {sql: "SELECT value * $factor AS v, value % 3 AS k FROM n"}
sinks:
  file: {from: s, path: "s3://bucket/out/f.parquet"}
  dir: {from: s, path: "s3://bucket/out/d/", partition_by: [k]}
"""
READ = """rowmill: 1
name: read
sources:
  f: {path: "s3://bucket/out/f.parquet"}
  d: {path: "s3://bucket/out/d/", partitions: {k: int64}}
  g: {path: "s3://bucket/out/*.parquet"}
steps:
  s: {sql: "SELECT (SELECT sum(v) FROM f) AS f, (SELECT sum(v) FROM d) AS d, (SELECT count(*) FROM d WHERE k = 1) AS one, (SELECT count(*) FROM g) AS g"}
sinks:
  out: {from: s, path: out.csv}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rowmill", required=True, help="the rowmill binary")
    parser.add_argument("--venv", required=True, help="where to install moto")
    arguments = parser.parse_args()
    venv = Path(arguments.venv).absolute()
    server_binary = venv / "bin" / "moto_server"
    if not server_binary.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "-q", "moto[server,s3]==5.*"], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([server_binary, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
                break
            except OSError:
                time.sleep(0.2)
        return check(Path(arguments.rowmill).absolute(), endpoint)
    finally:
        server.terminate()


def check(rowmill: Path, endpoint: str) -> int:
    failed, passed = [], 0

    def expect(what: str, seen: object, wanted: object) -> None:
        nonlocal passed
        if seen == wanted:
            passed += 1
        else:
            failed.append(f"{what}: {seen!r} instead of {wanted!r}")

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "rowmill.yaml").write_text(
            f"object_store:\n  s3: {{endpoint: \"{endpoint}\", allow_http: true, region: us-east-1,"
            " access_key_id: env:KEY, secret_access_key: env:KEY}\n"
        )
        (here / "write.yaml").write_text(WRITE)
        (here / "read.yaml").write_text(READ)
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "KEY": "key"}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([rowmill, *words], cwd=here, env=environment, capture_output=True, text=True, check=False)

        for factor in (1, 2, 3):
            answer = run("run", "write.yaml", "--set", f"factor={factor}", "--output", "json")
            expect(f"write {factor}: {answer.stderr}", answer.returncode, 0)
            answer = run("run", "read.yaml")
            expect(f"read {factor}: {answer.stderr}", answer.returncode, 0)
            total = 499_500 * factor
            expect(f"result {factor}", (here / "out.csv").read_text(), f"f,d,one,g\n{total},{total},333,1000\n")
        keys = urllib.request.urlopen(f"{endpoint}/bucket?list-type=2").read().decode()
        names = [part.split("<")[0] for part in keys.split("<Key>")[1:]]
        versions = {name.split("/")[2] for name in names if name.startswith("out/d/") and name.endswith(".parquet")}
        expect("versions kept", len(versions), 2)
        expect("nothing staged is left", [name for name in names if "_rowmill/" in name], [])
        expect("marker", "out/d/_SUCCESS" in names, True)
        expect("manifest", "out/d/_rowmill.json" in names, True)
        (here / "read.yaml").write_text(READ.replace("out/f.parquet", "out/missing.parquet"))
        answer = run("check", "read.yaml")
        expect("missing object", (answer.returncode, "RM0502" in answer.stderr), (1, True))
    for line in failed:
        print(line, file=sys.stderr)
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
