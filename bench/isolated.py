"""One scorer in a process of its own: load time, first check, peak memory.

python -m aegis_edge.bench.isolated NAME GUARD PARENT WORK THREADS     -> one JSON object on standard output
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aegis_edge.bench.contender import Contender, Source
from aegis_edge.errors import ScorerError

PROMPT = "How do I get rid of ants in my kitchen without chemicals?"


def measure(contender: Contender, source: Source, threads: int) -> dict[str, Any]:
    """load_seconds (imports, weights, policy), first_check_seconds, peak_bytes. Raises ScorerError where it
    dies."""
    folders = [str(folder) for folder in (source.guard, source.parent, source.work)]
    command = [sys.executable, "-m", __name__, contender.name, *folders, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ScorerError(f"{contender.name} failed in a process of its own: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(name: str, guard: str, parent: str, work: str, threads: str) -> None:
    """The process's side of `measure`."""
    start = time.perf_counter()
    from aegis_edge.artifact import Artifact
    from aegis_edge.bench.guards import Text
    from aegis_edge.bench.scorers import find

    source = Source(Path(guard), Path(parent), Path(work))
    scorer = find([name])[0].load(source, int(threads))
    checker = Text(Artifact.open(guard, verify=False)).guard(scorer)
    loaded = time.perf_counter()
    checker.check(PROMPT)
    checked = time.perf_counter()
    row = {
        "load_seconds": loaded - start,
        "first_check_seconds": checked - loaded,
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(row))


def peak_bytes() -> int:
    """The most memory this process has held at once. On Linux from /proc: getrusage would tell the parent
    process's peak where that was higher, since the figure outlives exec."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(*sys.argv[1:])
