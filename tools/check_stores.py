"""Runs workflows against object stores on this machine: objects, directories with a manifest, two versions kept.

S3 and GCS are served by moto, which is installed into a virtual environment (GCS's XML calls are those of S3); Azure by
azurite, where `npx` or `--azurite` gives one. Each is started on a free port, written and read by the same workflows.
Prints `N passed, N failed` for each store.
"""

import argparse
import base64
import email.utils
import hashlib
import hmac
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
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
  file: {from: s, path: "STORE/out/f.parquet"}
  dir: {from: s, path: "STORE/out/d/", partition_by: [k]}
"""
READ = """rowmill: 1
name: read
sources:
  f: {path: "STORE/out/f.parquet"}
  d: {path: "STORE/out/d/", partitions: {k: int64}}
  g: {path: "STORE/out/*.parquet"}
steps:
  s: {sql: "SELECT (SELECT sum(v) FROM f) AS f, (SELECT sum(v) FROM d) AS d, (SELECT count(*) FROM d WHERE k = 1) AS one, (SELECT count(*) FROM g) AS g"}
sinks:
  out: {from: s, path: out.csv}
"""


# GCS's XML calls in the words of S3, which moto knows: a bearer token, `x-goog-*` headers.
GCS_AS_S3 = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
moto = DomainDispatcherApplication(create_backend_app)
tags = {}  # of generations
SCOPE = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
def serve(environ, start):
    environ["HTTP_AUTHORIZATION"] = SCOPE
    for name in [name for name in environ if name.startswith("HTTP_X_GOOG_")]:
        environ[name.replace("X_GOOG", "X_AMZ")] = environ.pop(name)
    wanted = environ.pop("HTTP_X_AMZ_IF_GENERATION_MATCH", None)
    if wanted == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    elif wanted:
        environ["HTTP_IF_MATCH"] = tags[wanted]
    def told(status, headers, *more):
        for tag in [value for name, value in headers if name.lower() == "etag"]:
            generation = str(int(tag.strip('"')[:12], 16))
            tags[generation] = tag
            headers = [*headers, ("x-goog-generation", generation)]
        return start(status, headers, *more)
    return moto(environ, told)
run_simple("127.0.0.1", int(sys.argv[1]), serve, threaded=True)
"""
# Everybody knows the key of this account; it is azurite's own.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rowmill", required=True, help="the rowmill binary")
    parser.add_argument("--venv", required=True, help="where to install moto")
    parser.add_argument("--azurite", help="the command azurite-blob; without it Azure is passed over")
    parser.add_argument("--stores", default="s3,gcs,azure", help="which to check")
    arguments = parser.parse_args()
    rowmill, venv = Path(arguments.rowmill).absolute(), Path(arguments.venv).absolute()
    moto = venv / "bin" / "moto_server"
    if not moto.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "-q", "moto[server,s3]==5.*"], check=True)
    failed = 0
    for store in arguments.stores.split(","):
        if store == "azure" and not arguments.azurite:
            print("azure: passed over, no --azurite")
            continue
        with socket.socket() as probe, tempfile.TemporaryDirectory() as data:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            command = [moto, "-p", str(port)]
            if store == "gcs":
                command = [venv / "bin" / "python", "-c", GCS_AS_S3, str(port)]
            if store == "azure":
                command = [arguments.azurite, "--blobPort", str(port), "--location", data, "--silent", "--skipApiVersionCheck"]
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                failed += check(rowmill, store, f"http://127.0.0.1:{port}")
            finally:
                server.terminate()
                server.wait()
    return 1 if failed else 0


def azure(method: str, address: str) -> bytes:
    """A request under the shared key of azurite's account."""
    url = urllib.parse.urlsplit(address)
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    said = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    query = "".join(f"\n{name}:{value}" for name, value in sorted(urllib.parse.parse_qsl(url.query)))
    text = f"{method}{chr(10) * 12}{said}/devstoreaccount1{url.path}{query}"
    signature = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey devstoreaccount1:{base64.b64encode(signature).decode()}"
    headers["Content-Length"] = "0"
    return urllib.request.urlopen(urllib.request.Request(address, method=method, headers=headers)).read()


def bucket(store: str, endpoint: str) -> None:
    """Makes the bucket, or container, when the server answers."""
    for attempt in range(150):
        try:
            if store == "azure":
                azure("PUT", f"{endpoint}/devstoreaccount1/bucket?restype=container")
            else:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
            return
        except (OSError, http.client.HTTPException):
            if attempt == 149:
                raise
            time.sleep(0.2)


def objects(store: str, endpoint: str) -> list[str]:
    """The names of all objects."""
    if store == "azure":
        page = azure("GET", f"{endpoint}/devstoreaccount1/bucket?restype=container&comp=list").decode()
        return [part.split("<")[0] for part in page.split("<Name>")[1:]]
    page = urllib.request.urlopen(f"{endpoint}/bucket?list-type=2").read().decode()
    return [part.split("<")[0] for part in page.split("<Key>")[1:]]


def configured(store: str, endpoint: str) -> tuple[str, str]:
    """What a URL of the store begins with, and its configuration."""
    if store == "s3":
        keys = "region: us-east-1, access_key_id: env:KEY, secret_access_key: env:KEY"
        return "s3://bucket", f'{{endpoint: "{endpoint}", allow_http: true, {keys}}}'
    if store == "gcs":
        return "gs://bucket", f'{{endpoint: "{endpoint}", allow_http: true, service_account_key: env:ACCOUNT}}'
    keys = "account: devstoreaccount1, access_key: env:AZURE"
    return "az://bucket", f'{{endpoint: "{endpoint}/devstoreaccount1", allow_http: true, {keys}}}'


def check(rowmill: Path, store: str, endpoint: str) -> int:
    bucket(store, endpoint)
    prefix, configuration = configured(store, endpoint)
    failed, passed = [], 0

    def expect(what: str, seen: object, wanted: object) -> None:
        nonlocal passed
        if seen == wanted:
            passed += 1
        else:
            failed.append(f"{what}: {seen!r} instead of {wanted!r}")

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "rowmill.yaml").write_text(f"object_store:\n  {store}: {configuration}\n")
        (here / "write.yaml").write_text(WRITE.replace("STORE", prefix))
        (here / "read.yaml").write_text(READ.replace("STORE", prefix))
        account = json.dumps({"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""})
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "KEY": "key", "ACCOUNT": account, "AZURE": AZURE_KEY}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([rowmill, *words], cwd=here, env=environment, capture_output=True, text=True, check=False)

        for factor in (1, 2, 3):
            answer = run("run", "write.yaml", "--set", f"factor={factor}", "--output", "json")
            expect(f"write {factor}: {answer.stdout}{answer.stderr}", answer.returncode, 0)
            answer = run("run", "read.yaml")
            expect(f"read {factor}: {answer.stderr}", answer.returncode, 0)
            if failed:
                break
            total = 499_500 * factor
            expect(f"result {factor}", (here / "out.csv").read_text(), f"f,d,one,g\n{total},{total},333,1000\n")
        names = objects(store, endpoint)
        versions = {name.split("/")[2] for name in names if name.startswith("out/d/") and name.endswith(".parquet")}
        expect("versions kept", len(versions), 2)
        expect("nothing staged is left", [name for name in names if "_rowmill/" in name], [])
        expect("marker", "out/d/_SUCCESS" in names, True)
        expect("manifest", "out/d/_rowmill.json" in names, True)
        (here / "read.yaml").write_text(READ.replace("STORE", prefix).replace("out/f.parquet", "out/missing.parquet"))
        answer = run("check", "read.yaml")
        expect("missing object", (answer.returncode, "RM0502" in answer.stderr), (1, True))
    for line in failed:
        print(line, file=sys.stderr)
    print(f"{store}: {passed} passed, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
