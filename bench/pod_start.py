"""A container created to its first token: the CPU predictor in its own image, as its rendered pod has it, by phase.

`sudo .venv/bin/python -m bench.pod_start --image IMAGE --runs 3 --forget`; the image is podman's, in the storage of the
container tests (`make test-containers` builds `localhost/torpor-test/predictor-cpu:1`). Each start has the pod's
environment, user, read-only root and limits, an empty cache, and the weights as a claim has them: a read-only mount.
`--forget` drops image and weights out of the page cache before each start, as on a node that was just added; only
their own files, so that others on the machine do not notice. What KEDA, the scheduler and the kubelet add is not in
here (docs/autoscaling.md).
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil  # type: ignore[import-untyped]

from bench.report import machine, publish
from predictor.model_files.weights import DEFAULT_MODEL, ensure_model
from tests.containers.image import Image, predictor_image, readable, said, with_weights
from tests.containers.node import Container, Node, podman, store_image
from tests.manifests.conftest import MANIFESTS, ROOT, kustomize

URL: Final = "http://127.0.0.1:8080"
THINKER: Final = ("InferenceService", "thinker")
LIMIT_S: Final = 300.0
PHASES: Final = ("import", "weights", "compile", "warm_up")


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds since the container was asked for, and what its processes had used at their first token."""

    exec_s: float  #: until its process was there: podman and runc, in a cluster containerd
    ready_s: float
    first_token_s: float
    phases: dict[str, float]
    cpu_s: float
    read_mb: int  #: from disks; 0 where all was in the page cache
    rss_mb: int
    load_1m: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="localhost/torpor-test/predictor-cpu:1")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--forget", action="store_true", help="with an empty page cache")
    parser.add_argument("--model-dir", type=Path, default=ROOT / ".torpor" / "models")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE; may be repeated")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = ensure_model(DEFAULT_MODEL, args.model_dir.resolve(), print)
    with tempfile.TemporaryDirectory() as folder:
        claim = readable(Path(model), Path(folder))
        image = with_weights(predictor_image(args.image), claim)
        image.flags.extend(word for each in args.env for word in ("--env", each))
        starts = []
        for _ in range(args.runs):
            if args.forget:
                forget_image(args.image)
                forget([claim])
            starts.append(one_start(image))
            print(json.dumps(asdict(starts[-1])), file=sys.stderr, flush=True)
    publish(
        {"machine": machine(), "image": args.image, "forget": args.forget, **middle(starts)},
        args.json,
    )


def one_start(image: Image) -> Start:
    """A pod's first start: nothing in `/tmp`, nothing in its cache."""
    with node() as made:
        began, began_up = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        box = made.run(*THINKER, "kserve-container", image)
        process = psutil.Process(int(said(*podman(), "inspect", "-f", "{{.State.Pid}}", box.name)))
        made.call(lambda: until_ready(box, process.pid))
        ready = time.time()
        made.call(first_token)
        first = time.time()
        family = [process, *process.children(recursive=True)]
        return Start(
            exec_s=round(started_up(process.pid) - began_up, 2),
            ready_s=round(ready - began, 2),
            first_token_s=round(first - began, 2),
            phases=made.call(phases),
            cpu_s=round(sum(sum(each.cpu_times()[:4]) for each in family), 2),
            read_mb=sum(each.io_counters().read_bytes for each in family) >> 20,
            rss_mb=sum(each.memory_info().rss for each in family) >> 20,
            load_1m=machine()["load_1m"],
        )


def started_up(pid: int) -> float:
    """Seconds of uptime at which a process began; the wall clock may have been set since the machine started."""
    told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(told[19]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def node() -> Iterator[Node]:
    """A node with a store and nothing else on it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    made = Node(kustomize(MANIFESTS / "overlays" / "queue-cpu"), folder / "node")
    try:
        with closing(made):
            made.run("StatefulSet", "torpor-redis", "redis", store_image()).until_ready()
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def until_ready(box: Container, pid: int) -> None:
    """What the kubelet asks each second is asked every 20 ms."""
    deadline = time.monotonic() + LIMIT_S
    with httpx.Client(timeout=LIMIT_S) as client:
        while True:
            try:
                if client.get(f"{URL}/v2/models/thinker/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline or not Path(f"/proc/{pid}").exists():
                raise SystemExit(f"it did not start: {box.log()}")
            time.sleep(0.02)


def first_token() -> None:
    body = {"model": "thinker", "prompt": "The capital of France is", "max_tokens": 1}
    said = httpx.post(f"{URL}/openai/v1/completions", json=body, timeout=LIMIT_S)
    said.raise_for_status()


def phases() -> dict[str, float]:
    told = httpx.get(f"{URL}/metrics", timeout=LIMIT_S).text
    found = re.findall(r'^torpor_cold_start_seconds\{phase="(\w+)"\} (\S+)', told, re.M)
    return {name: round(float(value), 2) for name, value in found}


def forget_image(name: str) -> None:
    root = said(*podman(), "image", "mount", name)
    try:
        forget([Path(root)])
    finally:
        said(*podman(), "image", "unmount", name)


def forget(folders: Sequence[Path]) -> None:
    """Ask the kernel to drop the files' pages."""
    os.sync()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def middle(starts: Sequence[Start]) -> dict[str, Any]:
    """The median of each figure, with all starts."""
    names = ("exec_s", "ready_s", "first_token_s", "cpu_s", "read_mb", "rss_mb", "load_1m")
    figures = {n: round(statistics.median(getattr(s, n) for s in starts), 2) for n in names}
    by_phase = {
        name: round(statistics.median(start.phases.get(name, 0.0) for start in starts), 2)
        for name in PHASES
    }
    return {"median": {**figures, "phases": by_phase}, "starts": [asdict(s) for s in starts]}


if __name__ == "__main__":
    main()
