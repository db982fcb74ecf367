"""`aegis-edge compile`: every architecture's cubins, their manifest, and the limits they are held to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_artifact import write_tiny
from triton_kernels import compiled

from aegis_edge.cli import run
from aegis_edge.triton.aot import ARCHS, SHARED_LIMIT

COMMAND = "from aegis_edge.cli import main; main()"
KERNELS = {
    "verdict_head",
    "vocabulary",
    "tree_attention",
    "tree_attention_merge",
    "rope",
    "rms_norm",
    "rms_norm_add",
    "int8_norm",
    "int8_norm_add",
    "int8_rows",
    "int8_hadamard",
    "int8_gemm",
    "int8_gemm_qkv",
    "int8_gemm_silu",
    "int8_gemm_low",
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """(the command's JSON, its folder): all architectures, the sizes of the default guard."""
    out = tmp_path_factory.mktemp("kernels") / "out"
    made = compiled(COMMAND, "compile", "--arch", "all", "--out", str(out), "--json")
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout), out


def test_every_kernel_compiles_for_every_architecture_without_spilling(everything):
    report, _ = everything
    assert {(k["arch"], k["name"]) for k in report["kernels"]} == {(a, k) for a in ARCHS for k in KERNELS}
    for kernel in report["kernels"]:
        assert kernel["stack"] == 0 and 16 <= kernel["registers"] <= 255
        assert kernel["shared"] <= SHARED_LIMIT[kernel["arch"]]
        assert 0 <= kernel["scratch_pointers"] <= 2  # as many nulls as launch.c passes
    assert report["broken"] == []


def test_a_folder_has_what_its_manifest_names(everything):
    report, out = everything
    for arch in ARCHS:
        manifest = json.loads((out / arch / "manifest.json").read_text())
        assert manifest["arch"] == arch and manifest["shape"] == report["shape"]
        assert {file.name for file in (out / arch).iterdir()} == {
            "manifest.json",
            "kernels.txt",
            *(kernel["file"] for kernel in manifest["kernels"]),
        }
        for kernel in manifest["kernels"]:
            cubin = (out / arch / kernel["file"]).read_bytes()
            assert cubin.startswith(b"\x7fELF") and kernel["entry"].encode() in cubin
            assert all(argument["type"] in ("i32", "fp32") or argument["type"][0] == "*" for argument in
                       kernel["arguments"])  # fmt: skip


# Above are the default guard's sizes. These are larger models', for the kernels that must not spill.
OTHERS = """
import sys
from aegis_edge.triton import aot, int8_gemm, int8_rows, tree_attention, verdict_head
from aegis_edge.triton.spec import Shape
for heads, kv_heads, head_dim, rows in ((32, 4, 128, 23), (8, 8, 256, 6)):
    shape = Shape(2048, heads, kv_heads, head_dim, 8192, 512, True, rows, "fp16")
    named = [tree_attention.specs(shape)[0], verdict_head.specs(shape)[0]]
    named += [int8_gemm.specs(shape)[1], int8_rows.specs(shape)[3]] if rows == 6 else []
    for spec in named:
        for arch in ("sm_87", "sm_90"):
            print(aot.compile_spec(spec, arch).stack)
"""


def test_other_sizes_do_not_spill_either():
    assert compiled(OTHERS).stdout.split() == ["0"] * 12


def test_inverse_a_kernel_that_spills_fails_the_command(tmp_path):
    squeeze = "from aegis_edge.triton import aot; aot.OPTIONS = {**aot.OPTIONS, 'maxnreg': 40}; "
    made = compiled(squeeze + COMMAND, "compile", "--arch", "sm_87", "--out", str(tmp_path))
    assert made.returncode == 3
    assert "error: tree_attention for sm_87 spills registers: " in made.stderr
    assert "bytes a thread" in made.stderr and "tree_attention sm_87" in made.stdout


def test_the_sizes_are_those_of_the_guard(tmp_path, tiny_tokenizer, tiny_plan, tiny_policy):
    write_tiny(tmp_path / "guard", tiny_tokenizer, tiny_plan, tiny_policy)
    arguments = ("--arch", "sm_87", "--out", str(tmp_path / "out"), "--guard", str(tmp_path / "guard"))
    made = compiled(COMMAND, "compile", *arguments, "--dtype", "fp16")
    assert made.returncode == 0, made.stderr
    manifest = json.loads((tmp_path / "out" / "sm_87" / "manifest.json").read_text())
    assert manifest["shape"] == {
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "intermediate": 96,
        "hadamard": 32,
        "bias": False,
        "rows": 6,
        "dtype": "fp16",
    }
    before = (tmp_path / "out" / "sm_87" / "manifest.json").stat().st_mtime_ns
    assert run(["compile", *arguments]) == 3
    assert (tmp_path / "out" / "sm_87" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["--arch", "sm_42"], 3, "error: unknown architecture 'sm_42'", "hint: architectures: sm_80, sm_86"),
        (
            ["--arch", "sm_87"],
            3,
            "error: kernels that are interpreted are not compiled",
            "hint: unset TRITON_INTERPRET",
        ),
        ([], 2, "error: Missing option '--arch'", "hint: aegis-edge compile --help"),
    ],
)
def test_refusals(tmp_path: Path, capsys, arguments, code, error, hint):
    """In this process, where kernels are interpreted."""
    assert run(["compile", *arguments, "--out", str(tmp_path)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(error) and lines[1].startswith(hint) and len(lines) == 2
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert run(["compile", "--arch", "sm_87", "--out", str(tmp_path)]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: compiling kernels needs triton, which is not installed",
        "hint: pip install 'aegis-edge[cuda]'",
    ]


LAUNCHER = Path(__file__).parent.parent / "kernels" / "triton" / "launch.c"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_launcher_builds_without_a_warning_and_says_what_is_missing(everything, tmp_path):
    program = str(tmp_path / "launch")
    flags = ("-std=c11", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *flags, "-o", program, str(LAUNCHER), "-ldl"], check=True)
    for arguments, code, error in (
        ([], 2, "error: expected one folder"),
        ([str(tmp_path)], 3, f"error: {tmp_path}/kernels.txt can not be read"),
    ):
        made = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert made.returncode == code and made.stderr.startswith(error)
    made = subprocess.run([program, str(everything[1] / "sm_87")], capture_output=True, text=True)
    if made.returncode:  # without a driver, or with a GPU of another architecture
        assert made.returncode == 3 and made.stderr.startswith("error: ")


def test_the_launcher_reads_what_the_command_wrote(everything, tmp_path):
    """Its own reader, called from C: a line gives back the manifest's name, entry, sizes and arguments."""
    (tmp_path / "read.c").write_text(
        f'''#define AEGIS_NO_MAIN
#include "{LAUNCHER}"
int main(void) {{
  Kernel k;
  int more;
  while ((more = aegis_next(stdin, &k)) == 1)
    printf("%s %s %u %u %s\\n", k.name, k.entry, k.threads, k.shared, k.arguments);
  return -more;
}}
'''
    )
    program = str(tmp_path / "read")
    subprocess.run(["cc", "-o", program, str(tmp_path / "read.c"), "-ldl"], check=True)
    folder = everything[1] / "sm_90"
    text = (folder / "kernels.txt").read_text()
    made = subprocess.run([program], input=text, capture_output=True, text=True)
    assert made.returncode == 0 and made.stdout == text
    kernels = json.loads((folder / "manifest.json").read_text())["kernels"]
    for line, kernel in zip(text.splitlines(), kernels, strict=True):
        name, entry, threads, shared, letters = line.split()
        assert (name, entry) == (kernel["name"], kernel["entry"])
        assert (int(threads), int(shared)) == (kernel["threads"], kernel["shared"])
        assert letters == "".join({"*": "p"}.get(a["type"][0], a["type"][0]) for a in kernel["arguments"])
    cut = subprocess.run([program], input=text[:40], capture_output=True, text=True)  # inverse
    assert cut.returncode == 1 and cut.stderr == "error: kernels.txt is damaged\n"
