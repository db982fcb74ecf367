"""The command line: `aegis-edge COMMAND`. Data on standard output, everything else on standard error.

Exit codes: 0 safe or done, 1 unsafe, 2 usage, 3 failure. Commands are imported when they are called, so that
`check` waits for nothing that only `export` needs.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from aegis_edge.cli.output import FAILURE, INTERRUPTED, USAGE, report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; ends by raising SystemExit with the exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; that of a failure is neither "safe" nor "unsafe"."""
    from aegis_edge.cli.app import app
    from aegis_edge.errors import AegisError

    _never_fail_to_print()
    try:
        code = app(list(arguments), prog_name="aegis-edge", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return FAILURE
    except AegisError as error:
        report(error)
        return FAILURE
    except Exception as error:
        # typer's usage errors share no public base class across its versions (newer ones vendor click).
        if hasattr(error, "format_message"):
            return _usage(error)
        import traceback

        traceback.print_exc()
        report(error, hint="this is a defect of aegis-edge; please report it with the lines above")
        return FAILURE


def _usage(error: Exception) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        return USAGE
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "aegis-edge"
    report(error.format_message(), hint=f"{command} --help")  # type: ignore[attr-defined]
    return USAGE


def _never_fail_to_print() -> None:
    """A category's name that the output's encoding lacks becomes an escape: it must not hide a verdict."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Whoever read standard output has gone: what is still buffered must not raise when Python exits."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
