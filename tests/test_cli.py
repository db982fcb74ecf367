"""The commands around `check`: what they print, where, and how they start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_edge.cli import run
from aegis_edge.cli.output import aligned, extra, paint, printable, size
from aegis_edge.errors import AegisError


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("check", "export", "inspect", "doctor", "bench", "train"):
        assert command in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("aegis-edge 0.")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["--nonsense"]])
def test_usage(arguments: list[str]) -> None:
    assert run(arguments) == 2


def test_check_starts_without_heavy_imports() -> None:
    code = (
        "import sys; from aegis_edge.cli import run\n"
        "run(['check', '--guard', '/nonexistent', 'hi'])\n"
        "heavy = {'torch', 'transformers', 'peft', 'matplotlib', 'jinja2', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AEGIS_EDGE_ISA", raising=False)
    assert run(["doctor", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["isa"] == found["available_isas"][0] and found["threads"] == 1
    assert found["int8_peak"] > 1e8 and found["read_bandwidth"] > 1e8
    assert run(["doctor"]) == 0
    assert found["isa"] in capsys.readouterr().out


def test_doctor_fails_loudly_on_an_unknown_instruction_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_EDGE_ISA", "sse9")
    assert run(["doctor"]) == 3
    captured = capsys.readouterr()
    assert captured.out == "" and "sse9" in captured.err and "hint: " in captured.err


def test_inspect_refuses_what_is_no_guard(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path)]) == 3
    assert capsys.readouterr().err.startswith("error: ")


def test_output_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    terminal: object = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("x", "red", terminal) == "\x1b[31mx\x1b[0m"  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red", terminal) == "x"  # type: ignore[arg-type]
    assert aligned([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc   d"]
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\nc"
    assert [size(n) for n in (0, 999, 1234, 12_345_678, 3e9)] == [
        "0 B",
        "999 B",
        "1.2 kB",
        "12.3 MB",
        "3.0 GB",
    ]


def test_export_mirrors_its_function(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option reaches the argument of its name; the default guard's place is the default."""
    import inspect

    from aegis_edge.export import pipeline
    from aegis_edge.guard import default_guard_path

    signature = inspect.signature(pipeline.export_guard)
    calls: list[dict[str, object]] = []

    class Done:
        def summary(self) -> str:
            return "moved by nothing"

    def record(*args: object, **kwargs: object) -> Done:
        calls.append(signature.bind(*args, **kwargs).arguments)
        return Done()

    monkeypatch.setattr(pipeline, "export_guard", record)
    assert run(["export"]) == 0
    assert capsys.readouterr().out == "moved by nothing\n"
    options = ["base", "adapter", "family", "quantize", "rounding", "target", "calibration", "out"]
    values = {name: f"<{name}>" for name in options} | {"quantize": "w4a8", "rounding": "nearest"}
    assert run(["export", "--force", *(f"--{name}={value}" for name, value in values.items())]) == 0
    defaults, given = calls
    assert defaults["out"] == default_guard_path() and not defaults["force"]
    assert defaults["quantize"] is None and defaults["target"] == "aegis"
    assert defaults["rounding"] == "gptq"
    assert {name: str(given[name]) for name in options} == values and given["force"]


def test_export_refuses_a_policy_that_is_none(tmp_path: Path) -> None:
    assert run(["export", "--policy", str(tmp_path / "none.toml")]) == 3


@pytest.mark.parametrize("lengths", ["", "0", "-1", "16,x"])
def test_bench_lengths(lengths: str) -> None:
    assert run(["bench", "--lengths", lengths, "--guard", "nowhere"]) == 2


@pytest.mark.parametrize("beside", [["--guard", "x"], ["--base", "x"], ["--adapter", "x"], ["--gemm"]])
def test_bench_takes_a_size_or_a_guard(beside: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--size", "1b", *beside]) == 2
    assert "can not be combined" in capsys.readouterr().err


def test_train_passes_its_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["train", "--help"])
    assert stopped.value.code == 0 and "--budget-minutes" in capsys.readouterr().out


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(AegisError, match="needs no_such_module") as raised, extra("bench", "the benchmark"):
        __import__("no_such_module")
    assert raised.value.hint == "pip install 'aegis-edge[bench]'"
