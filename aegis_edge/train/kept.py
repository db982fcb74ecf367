"""What the base writes for a run takes ten minutes: chunks are kept as they are done, then the whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock

from rich.progress import Progress

Pair = tuple[str, str | None]  # a text and its answer, if any
Job = tuple[Sequence[str], int, int]  # a chunk's texts, most tokens that follow each, seed
Tell = Callable[[int], None]  # called with the number of texts that are done


class Journal:
    """Chunks that are done, a line each in a file that grows: a run that was killed goes on behind them."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        path.touch()
        lines = path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        os.truncate(path, sum(map(len, whole)))  # the last may be torn
        self._done: dict[str, list[str]] = {row["chunk"]: row["texts"] for row in map(json.loads, whole)}

    def get(self, job: Job, make: Callable[[], list[str]]) -> list[str]:
        """The job's texts; what `make` gives where they are not in the journal yet."""
        key = hashlib.sha256(json.dumps(job).encode()).hexdigest()
        if key not in self._done:
            found = make()
            with self._lock, self._path.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"chunk": key, "texts": found}) + "\n")
            self._done[key] = found
        return self._done[key]


def kept(place: Path, what: str, total: int, make: Callable[[Journal, Tell], list[Pair]]) -> list[Pair]:
    """Texts and answers in the file at `place`; where it is not there they are made now, and kept.

    `make` is given a journal of what an earlier run had done of them. `total`: about how many texts are told
    of, `what` stands beside the bar.
    """
    if not place.exists():
        part = place.with_suffix(".part")
        with Progress() as progress:
            pairs = make(Journal(part), partial(progress.advance, progress.add_task(what, total=total)))
        work = place.with_suffix(".new")
        lines = [json.dumps({"prompt": prompt, "response": answer}) for prompt, answer in pairs]
        work.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        work.replace(place)
        part.unlink()
    rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["response"]) for row in rows]
