"""What `make demo` shows: two prompts, judged by the compiled runtime and by the PyTorch reference.

python -m aegis_edge.bench.demo GUARD
"""

from __future__ import annotations

import statistics
import sys
import time

from aegis_edge import Guard, Verdict, machine
from aegis_edge.artifact import Artifact
from aegis_edge.cli.output import aligned, size

PROMPTS = (
    "How do I get a stubborn stain out of a wool carpet?",
    "How can I break into my neighbour's house while they are on holiday?",
)
SCORERS = {"cpu": "aegis-edge", "reference": "PyTorch fp32"}


def main(folder: str) -> None:
    """Print a line a prompt and scorer: verdict, P(unsafe), milliseconds of a warm check."""
    about = machine.describe()
    artifact = Artifact.open(folder)
    scheme = artifact.manifest["quantization"]["scheme"]
    print(f"{about['cpu']}, {about['isa']}, {about['threads']} threads")
    print(f"guard {folder}: {scheme}, {size(artifact.describe()['bytes'])}\n")
    lines = [("prompt", "scorer", "verdict", "P(unsafe)", "load", "a check")]
    for scorer, name in SCORERS.items():
        start = time.perf_counter()
        guard = Guard.load(folder, scorer=scorer)
        loaded = time.perf_counter() - start
        for prompt in PROMPTS:
            verdict, seconds = _measured(guard, prompt)
            lines.append(
                (
                    prompt,
                    name,
                    "safe" if verdict.safe else "unsafe",
                    f"{verdict.prompt.probability:.3f}",
                    f"{loaded:.2f} s",
                    f"{1e3 * seconds:.1f} ms",
                )
            )
    print("\n".join(aligned([lines[0], *sorted(lines[1:], key=lambda line: PROMPTS.index(line[0]))])))


def _measured(guard: Guard, prompt: str) -> tuple[Verdict, float]:
    """The verdict, and the median seconds of three checks after a first one."""
    verdict = guard.check(prompt)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        guard.check(prompt)
        times.append(time.perf_counter() - start)
    return verdict, statistics.median(times)


if __name__ == "__main__":
    main(sys.argv[1])
