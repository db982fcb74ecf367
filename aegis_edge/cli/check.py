"""`aegis-edge check`: one text, or a stream of JSON lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from aegis_edge.cli.lines import Line, batches
from aegis_edge.cli.output import FAILURE, SAFE, UNSAFE, note, paint, progress, report
from aegis_edge.decision import Rating, Verdict
from aegis_edge.errors import AegisError, InputError
from aegis_edge.guard import Guard
from aegis_edge.policy import Policy
from aegis_edge.windows import MAX_TOKENS

# Far more text than the budget of tokens: what is longer is refused without being held in memory.
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Options:
    """What guard to check with."""

    guard: Path | None
    policy: Path | None
    threads: int | None
    scorer: str
    label_mass: bool
    window: int | None = None
    max_tokens: int | None = None
    refuse_long: bool = False

    def load(self) -> Guard:
        policy = None if self.policy is None else Policy.from_file(self.policy)
        return Guard.load(
            self.guard,
            self.threads,
            self.scorer,
            policy,
            self.label_mass,
            window=self.window,
            max_tokens=MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            refuse_long=self.refuse_long,
        )


def check_text(text: str | None, response: str | None, options: Options, *, as_json: bool) -> int:
    """Check one prompt and print its verdict; returns the exit code."""
    prompt: str | bytes = _read_stdin() if text is None or text == "-" else text
    verdict = options.load().check(prompt, response)
    print(json.dumps(to_json(verdict)) if as_json else _describe(verdict))
    return SAFE if verdict.safe else UNSAFE


def check_file(path: Path, options: Options) -> int:
    """Check JSON lines, printing a JSON line for each in their order; returns the exit code."""
    counts = {"safe": 0, "unsafe": 0, "failed": 0}
    file = _open(path)
    guard = options.load()
    start = time.perf_counter()
    with progress("bytes") as bar:
        task = bar.add_task("checking", total=os.fstat(file.fileno()).st_size or None)
        for batch in batches(file, MAX_BYTES):
            for line, verdict in zip(batch, _check(guard, batch), strict=True):
                counts[_emit(line, verdict)] += 1
            sys.stdout.flush()
            bar.update(task, completed=batch[-1].end)
    seconds = time.perf_counter() - start
    total = sum(counts.values())
    if total == 0:
        raise InputError(f"{path}: there is nothing to check in it")
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    note(f"{total} checked in {seconds:.2f} s: {listed}")
    return FAILURE if counts["failed"] else UNSAFE if counts["unsafe"] else SAFE


def to_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a JSON object, its keys the Python names."""
    counts = {"tokens_seen": verdict.tokens_seen, "tokens_total": verdict.tokens_total}
    return asdict(verdict) | counts


def _check(guard: Guard, batch: Sequence[Line]) -> Iterable[Verdict | AegisError]:
    """A verdict or an error a line. Lines are scored together; where one fails, each by itself."""
    good = [line.conversation for line in batch if line.conversation is not None]
    verdicts: Iterator[Verdict | AegisError]
    try:
        verdicts = iter(guard.check_many(good))
    except AegisError:
        verdicts = (_check_one(guard, conversation) for conversation in good)
    for line in batch:
        yield line.error if line.error is not None else next(verdicts)


def _check_one(guard: Guard, conversation: Any) -> Verdict | AegisError:
    try:
        return guard.check_many([conversation])[0]
    except AegisError as error:
        return error


def _emit(line: Line, verdict: Verdict | AegisError) -> str:
    """Print a line's result; returns what it counts as."""
    row: dict[str, Any] = {"line": line.number, **line.label}
    if isinstance(verdict, AegisError):
        row["error"] = {"type": type(verdict).__name__, "message": str(verdict), "hint": verdict.hint}
        report(f"line {line.number}: {verdict}", hint=verdict.hint)
    else:
        row |= to_json(verdict)
    print(json.dumps(row))
    return "failed" if isinstance(verdict, AegisError) else "safe" if verdict.safe else "unsafe"


def _describe(verdict: Verdict) -> str:
    lines = [_word(verdict.safe).rstrip(), f"  prompt      {_rating(verdict.prompt)}"]
    if verdict.response is not None:
        lines.append(f"  response    {_rating(verdict.response)}")
    if verdict.refusal is not None:
        lines.append(f"  refusal     {verdict.refusal:.3f}")
    if verdict.anomaly is not None:
        lines.append(f"  anomaly     {verdict.anomaly}")
    if verdict.turn is not None:
        lines.append(f"  turn        {verdict.turn}")
    if verdict.window is not None:
        window = verdict.window
        lines.append(f"  window      tokens {window.start} to {window.end} of the {window.of}")
    if verdict.label_mass is not None:
        lines.append(f"  label mass  {verdict.label_mass:.3g}")
    if verdict.categories:
        named = (
            f"{c.name}{f' ({c.code})' if c.code else ''} {c.probability:.3f}" for c in verdict.categories
        )
        lines.append(f"  categories  {', '.join(named)}")
    return "\n".join(lines)


def _rating(rating: Rating) -> str:
    return f"{_word(rating.safe)}  P(unsafe) {rating.probability:.3f}"


def _word(safe: bool) -> str:
    return paint("safe  ", "green", sys.stdout) if safe else paint("unsafe", "red", sys.stdout)


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        note("reading the prompt from standard input; end it with Ctrl-D")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"standard input holds more than {MAX_BYTES >> 20} MiB")
    if not data:
        # `missing-command | aegis-edge check` must not come out safe.
        raise InputError(
            "standard input is empty", hint='to check the empty prompt, pass it: aegis-edge check ""'
        )
    # The line end that `echo` adds is no part of the prompt.
    return data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data


def _open(path: Path) -> IO[bytes]:
    """The file, never closed: closing would wait for the read that the reading thread may be blocked in."""
    try:
        number = sys.stdin.fileno() if str(path) == "-" else os.open(path, os.O_RDONLY)
        return open(number, "rb", closefd=False)
    except OSError as error:
        raise InputError(f"{path}: can not be read: {error.strerror}") from error
