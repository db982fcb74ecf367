"""The schema of nvidia/Aegis-AI-Content-Safety-Dataset-2.0, read and written as it is published.

id                            text
reconstruction_id_if_redacted null, a number or text; set where the prompt is left out for its licence
prompt                        text, "REDACTED" where it is left out
response                      text, or null where there is none
prompt_label                  "safe" or "unsafe"
response_label                "safe", "unsafe", or null: not labelled
violated_categories           names with commas between, of the whole dialogue, most frequent first
prompt_label_source           who labelled the prompt: "human"
response_label_source         "human", "llm_jury", "refusal_data_augmentation", or null
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from aegis_edge.conversation import Conversation
from aegis_edge.errors import AegisError, InputError
from aegis_edge.label.errors import RowError
from aegis_edge.label.files import read_json_lines

Label = Literal["safe", "unsafe"]
LABELS: tuple[Label, Label] = ("safe", "unsafe")
HUMAN, JURY = "human", "llm_jury"
REDACTED = "REDACTED"


@dataclass(frozen=True)
class Row:
    """One dialogue. The fields are the published ones, in the published order."""

    id: str
    reconstruction_id_if_redacted: int | float | str | None
    prompt: str
    response: str | None
    prompt_label: Label
    response_label: Label | None
    violated_categories: str
    prompt_label_source: str
    response_label_source: str | None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what a judge is shown: prompt, its label, response. With `id` it identifies a row."""
        shown = json.dumps([self.prompt, self.prompt_label, self.response], ensure_ascii=True)
        return hashlib.sha256(shown.encode()).hexdigest()

    @property
    def key(self) -> tuple[str, str]:
        """Rows with one key are one question: the same id and the same text."""
        return self.id, self.digest

    @property
    def redacted(self) -> bool:
        """Whether the prompt's text is missing, so that nobody can judge the response to it."""
        return self.prompt == REDACTED or self.reconstruction_id_if_redacted is not None

    def with_label(self, label: Label, source: str, violated_categories: str) -> Row:
        """This row with its response labelled."""
        return replace(
            self,
            response_label=label,
            response_label_source=source,
            violated_categories=violated_categories,
        )

    def without_label(self) -> Row:
        """This row with its response not labelled."""
        return replace(self, response_label=None, response_label_source=None)

    def to_json(self) -> dict[str, Any]:
        """The published object."""
        return asdict(self)


FIELDS = tuple(field.name for field in fields(Row))
# A file that was never labelled may leave these out.
_DEFAULTS: dict[str, Any] = {
    "reconstruction_id_if_redacted": None,
    "response_label": None,
    "violated_categories": "",
    "response_label_source": None,
}


@dataclass(frozen=True)
class Rows:
    """A file's rows in order, and what could not be read of it: (line number, what is wrong)."""

    good: tuple[Row, ...]
    bad: tuple[tuple[int, str], ...]


def read_rows(path: Path, *, skip_bad: bool = False) -> Rows:
    """Read a file. Raises RowError naming the first bad line, or with `skip_bad` lists them all in `bad`."""
    good, bad = [], []
    for number, value in read_json_lines(path):
        try:
            if isinstance(value, AegisError):
                raise value
            good.append(to_row(value))
        except (InputError, RowError) as error:
            bad.append((number, str(error)))
    if bad and not skip_bad:
        number, what = bad[0]
        more = f" (and {len(bad) - 1} more such lines)" if len(bad) > 1 else ""
        raise RowError(f"{path.name}:{number}: {what}{more}", hint="--skip-bad leaves such rows out")
    return Rows(tuple(good), tuple(bad))


def to_row(value: Any) -> Row:
    """A row from a JSON value. Raises RowError, InputError for text that is no Unicode."""
    if not isinstance(value, dict):
        raise RowError("a row is a JSON object")
    value = {**_DEFAULTS, **value}
    missing, unknown = [f for f in FIELDS if f not in value], [f for f in value if f not in FIELDS]
    if missing:
        raise RowError(f"the field {missing[0]!r} is missing")
    if unknown:  # it could not be written back
        raise RowError(f"{unknown[0]!r} is no field of the published schema")
    if not isinstance(value["id"], str) or not value["id"]:
        raise RowError("`id` is text, and not empty")
    Conversation(value["prompt"], value["response"])  # refuses what is not text
    if not value["prompt"].strip():
        raise RowError("`prompt` is empty")
    if value["prompt_label"] not in LABELS:
        raise RowError(
            f"`prompt_label` is safe or unsafe, given by a person; found {value['prompt_label']!r}"
        )
    if value["response_label"] not in (*LABELS, None):
        raise RowError(f"`response_label` is safe, unsafe or null; found {value['response_label']!r}")
    if value["violated_categories"] is None:
        value["violated_categories"] = ""
    for name in ("violated_categories", "prompt_label_source"):
        if not isinstance(value[name], str):
            raise RowError(f"`{name}` is text")
    if not isinstance(value["response_label_source"], (str, type(None))):
        raise RowError("`response_label_source` is text or null")
    number = value["reconstruction_id_if_redacted"]
    if isinstance(number, bool) or not isinstance(number, (int, float, str, type(None))):
        raise RowError("`reconstruction_id_if_redacted` is a number, text or null")
    return Row(**value)


def add_categories(given: str, found: Iterable[str]) -> str:
    """`given` as it is, and after it those of `found` that it does not name yet in any spelling."""
    from aegis_edge.taxonomy import find, fold

    def identity(name: str) -> str:
        hazard = find(name)
        return hazard.code if hazard else fold(name)

    named = {identity(name) for name in given.split(",") if name.strip()}
    added = [name for name in dict.fromkeys(found) if identity(name) not in named]
    return ", ".join([*([given] if given.strip() else []), *added]) if added else given
