"""The table of commands: names, options and help. What a command does is in the file of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from aegis_edge.cli import bench_app
from aegis_edge.cli.data_app import app as data_app
from aegis_edge.cli.label_app import app as label_app
from aegis_edge.cli.options import GuardFolder, Json, Threads

app = typer.Typer(
    name="aegis-edge",
    help="A guard for language models that runs inside your process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from aegis_edge import __version__

        print(f"aegis-edge {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A guard for language models that runs inside your process.

    Exit codes: 0 safe or done, 1 unsafe, 2 usage, 3 failure.
    """


@app.command()
def check(
    text: Annotated[
        str | None, typer.Argument(help="The prompt. '-' or nothing: standard input, as one text.")
    ] = None,
    guard: GuardFolder = None,
    response: Annotated[
        str | None, typer.Option("--response", metavar="TEXT", help="The model's response, judged as well.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="F.jsonl",
            help='JSON lines to check ("-": standard input): a prompt as a string, or {"prompt", '
            '"response"?, "id"?} or {"messages": [{"role", "content"}, ...], "id"?}. One JSON line out for '
            "each, in order.",
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="P.toml", help="Another policy than the guard's own.")
    ] = None,
    json: Json = False,
    threads: Threads = None,
    scorer: Annotated[
        Literal["cpu", "reference", "cuda"],
        typer.Option("--scorer", help="The compiled runtime, PyTorch in fp32, or Triton on an NVIDIA GPU."),
    ] = "cpu",
    label_mass: Annotated[
        bool,
        typer.Option("--label-mass", help="Tell the share of the vocabulary's probability on the labels."),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option("--window", min=16, help="Tokens judged at once (else as many as the context holds)."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Refuse a text of more tokens (else of more than 65536)."),
    ] = None,
    refuse_long: Annotated[
        bool, typer.Option("--refuse-long", help="Refuse what does not fit one window.")
    ] = False,
) -> int:
    """Judge a prompt (and the response to it) safe or unsafe.

    Longer text than one window holds is judged in overlapping windows; the highest risk wins.

    Exit code 0 where everything is safe, 1 where anything is unsafe, 3 where anything could not be checked.
    """
    from aegis_edge.cli import check as command

    if file is not None and (text is not None or response is not None):
        raise typer.BadParameter("--file can not be combined with TEXT or --response")
    options = command.Options(guard, policy, threads, scorer, label_mass, window, max_tokens, refuse_long)
    if file is not None:
        return command.check_file(file, options)
    return command.check_text(text, response, options, as_json=json)


@app.command()
def export(
    base: Annotated[
        str,
        typer.Option(
            "--base", help="smollm2-135m-instruct, a Hugging Face folder, a .gguf file or a hub id."
        ),
    ] = "smollm2-135m-instruct",
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help='A PEFT adapter ("none": no adapter) instead of the packaged one.',
        ),
    ] = None,
    family: Annotated[
        str,
        typer.Option(
            "--family", metavar="NAME|F.toml", help="How the guard is asked: a family, or your own."
        ),
    ] = "aegis-edge",
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="P.toml", help="What is unsafe (else Aegis 2.0).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The guard's folder (else the default guard's)."),
    ] = None,
    quantize: Annotated[
        Literal["w8a8", "w4a8", "bf16", "f16", "q8_0", "fp8"] | None,
        typer.Option("--quantize", help="Weights and activations (else the target's first: w8a8 for aegis)."),
    ] = None,
    rounding: Annotated[
        Literal["gptq", "nearest"],
        typer.Option("--rounding", help="Of w8a8: against calibration text, or to nearest, which is quick."),
    ] = "gptq",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            help="Engine to write for: aegis, hf, compressed-tensors, gguf, tensorrt-llm, tensorrt-edge.",
        ),
    ] = "aegis",
    legacy: Annotated[
        bool,
        typer.Option("--legacy", help="Of tensorrt-llm: the form that 1.2 and before build engines from."),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", metavar="F.jsonl", help="Text to quantise by (else the project's own)."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the guard that is there.")] = False,
) -> None:
    """Merge an adapter into a base model, quantise it, compile its policy: a guard.

    Prints how far the guard moved from its parent. An existing guard stays until the new one is whole.
    """
    from aegis_edge.cli import export as command

    command.export(base, adapter, family, policy, out, quantize, rounding, target, calibration, force, legacy)


@app.command("compile")
def compile_kernels(
    arch: Annotated[
        list[str], typer.Option("--arch", metavar="sm_NN", help='A GPU architecture; repeatable; "all".')
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Gets a folder an architecture.")],
    guard: Annotated[
        Path | None,
        typer.Option(
            "--guard", metavar="DIR", help="A guard whose sizes to compile for (else the default's)."
        ),
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16"], typer.Option("--dtype", help="Of activations, keys and values.")
    ] = "bf16",
    force: Annotated[bool, typer.Option("--force", help="Replace the kernels that are there.")] = False,
    json: Json = False,
) -> int:
    """Compile the GPU kernels ahead of time, without a GPU: cubins, and how to launch them.

    Exit code 3 where a kernel breaks a stated limit: spilled registers, too much shared memory.
    """
    from aegis_edge.cli import compile as command

    return command.compile_kernels(arch, out, guard, dtype, force=force, as_json=json)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported guard.")], json: Json = False
) -> None:
    """Verify an exported guard (hashes, shapes, every value) and describe it."""
    from aegis_edge.cli import inspect as command

    command.inspect(folder, as_json=json)


@app.command()
def doctor(
    json: Json = False,
    threads: Threads = None,
) -> None:
    """Tell what this machine can run: instruction sets, threads, measured peaks, versions, default guard."""
    from aegis_edge.cli import doctor as command

    command.doctor(threads, as_json=json)


@app.command()
def evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help="Labelled records: published Aegis 2.0 files, or the project's own schema. And published "
            "dialogues of CantTalkAboutThis: whether the guard keeps to their topics.",
        ),
    ],
    guard: GuardFolder = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="DIR", help="A second guard: flips, and the F1 difference."),
    ] = None,
    scorer: Annotated[
        Literal["cpu", "reference", "cuda"],
        typer.Option("--scorer", help="The compiled runtime, PyTorch in fp32, or Triton on an NVIDIA GPU."),
    ] = "cpu",
    compare_scorer: Annotated[
        Literal["cpu", "reference", "cuda"] | None,
        typer.Option("--compare-scorer", help="The second guard's scorer (else the same)."),
    ] = None,
    json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="F.html", help="Write a page with tables and plots.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Judge N records, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw and the bootstrap.")] = 0,
    long: Annotated[
        Literal["skip", "cut", "windows"],
        typer.Option(
            "--long", help="Texts longer than the context: left out, judged by a beginning, or in windows."
        ),
    ] = "skip",
    window: Annotated[
        int | None, typer.Option("--window", min=16, metavar="N", help="Tokens judged at once, as in check.")
    ] = None,
    policy_following: Annotated[
        bool,
        typer.Option(
            "--policy-following", help="Judge what is flagged again, under policies that do not forbid it."
        ),
    ] = False,
    topic_following: Annotated[
        bool,
        typer.Option(
            "--topic-following", help="Judge the project's own prompts under policies about topics."
        ),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count rows that can not be read.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the page that is there.")] = False,
    threads: Threads = None,
) -> None:
    """Measure a guard on labelled records, or compare two guards on them.

    Precision, recall, F1, AUROC, AUPRC, calibration and more, of prompts and responses, by source and
    category. No text of a record is shown.
    """
    from aegis_edge.cli import evaluate as command

    if compare is None and compare_scorer is not None:
        raise typer.BadParameter("--compare-scorer needs --compare")
    options = command.Options(
        guard=guard,
        compare=compare,
        scorer=scorer,
        compare_scorer=compare_scorer,
        threads=threads,
        limit=limit,
        seed=seed,
        long=long,
        window=window,
        policy_following=policy_following,
        topic_following=topic_following,
        skip_bad=skip_bad,
    )
    command.evaluate(files, options, html=html, force=force, as_json=json)


app.command()(bench_app.bench)


# The training's own parser reads the rest: its options stand in one place.
@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def train(context: typer.Context) -> None:
    """Train an adapter on labelled conversations: `aegis-edge train --help`."""
    from aegis_edge.cli import train as command

    command.train(context.args)


app.add_typer(data_app)
app.add_typer(label_app)
