"""What counts as unsafe, and from which probability on.

A policy lists categories (the Aegis taxonomy's, or custom ones with a description) and thresholds. In TOML:

    categories = ["S1", "hate", { name = "Malware", threshold = 0.7 }]      # left out: all 23 of the taxonomy

    [[categories]]                                                          # the same list, the long way
    name = "Competitor talk"
    description = "Recommends another vendor's product."

    [[categories]]                                                          # a topic to keep to: what is
    name = "Cooking"                                                        # about none of these is off topic
    description = "Recipes, ingredients and kitchen technique."
    allowed = true

    [thresholds]                                                            # unsafe from this probability on
    prompt = 0.5
    response = 0.5
    category = 0.5

    decided_by = "auto"                                                     # or "verdict", "categories"

The order of categories is kept: the guard reads them in that order. `decided_by` says what makes a turn
unsafe: "verdict", that the guard finds it unsafe; "categories", that one of these categories claims it.
"auto" is "verdict" for the taxonomy's 23 and "categories" for every other policy, which is how the default
guard lets through what its policy does not name, and finds what it has never been trained on.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aegis_edge import taxonomy
from aegis_edge.errors import PolicyError

DECIDED_BY = ("auto", "verdict", "categories")
MAX_CATEGORIES = 256
MAX_NAME = 100  # characters
MAX_DESCRIPTION = 1000


@dataclass(frozen=True)
class Category:
    """One thing that is unsafe, or, where `allowed`, one of the topics that a conversation may be about.

    `code` is the taxonomy's for its own categories; custom ones need none. A custom category needs a
    description: it is all the guard knows of it. `threshold` replaces the policy's: the probability from
    which on the category claims a turn.
    """

    name: str
    code: str | None = None
    description: str | None = None
    threshold: float | None = None
    allowed: bool = False

    def __post_init__(self) -> None:
        _check_text(self.name, "name", MAX_NAME)
        if self.code is not None:
            _check_text(self.code, "code", MAX_NAME)
        if self.description is not None:
            _check_text(self.description, "description", MAX_DESCRIPTION)
        if self.threshold is not None:
            _check_threshold(self.threshold, "threshold")
        if not isinstance(self.allowed, bool):
            raise _Located(f"expected true or false, found {_kind(self.allowed)}", "allowed")
        hazard = taxonomy.find(self.name)
        if hazard is not None and self.allowed:
            raise _Located(f"{hazard.name!r} is a hazard", "allowed", "to allow a hazard, leave it out")
        if hazard is not None and (self.name, self.code) != (hazard.name, hazard.code):
            raise _Located(
                f"{self.name!r} is {hazard.name!r} ({hazard.code}) of the taxonomy",
                "name",
                "write the taxonomy's own name and code",
            )
        taken = taxonomy.find(self.code or "")
        if hazard is None and taken is not None:
            raise _Located(f"code {self.code!r} belongs to {taken.name!r} of the taxonomy", "code")
        if hazard is None and self.description is None:
            near = taxonomy.suggest(self.name)
            raise _Located(
                f"{self.name!r} is not in the taxonomy and has no description",
                "name",
                f"did you mean {near!r}?" if near else "describe it, or name a category of the taxonomy",
            )

    @classmethod
    def of(
        cls,
        name: str,
        *,
        description: str | None = None,
        threshold: float | None = None,
        allowed: bool = False,
    ) -> Category:
        """The category that a taxonomy name, alias or code means; any other name makes a custom category."""
        hazard = taxonomy.find(name) if isinstance(name, str) else None
        if hazard is None:
            return cls(name, None, description, threshold, allowed)
        return cls(hazard.name, hazard.code, description, threshold, allowed)

    @property
    def is_custom(self) -> bool:
        """Whether it is none of the taxonomy's."""
        return taxonomy.find(self.name) is None

    @property
    def text(self) -> str:
        """How the guard reads it: the name, followed by ": description" where there is one."""
        return self.name if self.description is None else f"{self.name}: {self.description}"


@dataclass(frozen=True)
class Thresholds:
    """Probabilities in (0, 1) from which on a prompt, a response or a category counts as unsafe."""

    prompt: float = 0.5
    response: float = 0.5
    category: float = 0.5

    def __post_init__(self) -> None:
        for key in ("prompt", "response", "category"):
            _check_threshold(getattr(self, key), key)


@dataclass(frozen=True)
class Policy:
    """Categories in the order the guard reads them, and thresholds. Immutable.

    `source`: file name ("" where there is none) and text that it was read from, so that an error can name
    the line; no part of what it is.
    """

    categories: tuple[Category, ...] = field(
        default_factory=lambda: tuple(Category(h.name, h.code) for h in taxonomy.HAZARDS)
    )
    thresholds: Thresholds = field(default_factory=Thresholds)
    decided_by: str = "auto"
    source: tuple[str, str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.categories) <= MAX_CATEGORIES:
            count = len(self.categories)
            raise _Located(f"a policy has 1 to {MAX_CATEGORIES} categories, not {count}", "categories")
        if self.decided_by not in DECIDED_BY:
            raise _Located(f"{self.decided_by!r} is not one of {', '.join(DECIDED_BY)}", "decided_by")
        seen: dict[str, int] = {}
        for index, category in enumerate(self.categories):
            for name in (category.name, category.code or category.name):
                first = seen.setdefault(taxonomy.fold(name) or name, index)
                if first != index:
                    raise _Located(
                        f"{name!r} repeats categories[{first}]", f"categories[{index}]", "list it once"
                    )

        if self.decided_by == "verdict" and any(c.allowed for c in self.categories):
            raise _Located("allowed topics are found by the categories", "decided_by", "leave it out")

    @property
    def by_categories(self) -> bool:
        """Whether a turn is unsafe where a category claims it, and not by the verdict alone."""
        if self.decided_by != "auto":
            return self.decided_by == "categories"
        return not self.is_complete or any(c.is_custom for c in self.categories)

    @property
    def is_complete(self) -> bool:
        """Whether all of the taxonomy is unsafe: then whatever is found unsafe is."""
        return {hazard.code for hazard in taxonomy.HAZARDS} <= {c.code for c in self.categories}

    @classmethod
    def default(cls) -> Policy:
        """The 23 categories of the taxonomy in S-code order, thresholds 0.5."""
        return cls()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Read what `to_dict` or a TOML file holds. Raises PolicyError naming the key."""
        _check_keys(data, {"categories", "thresholds", "decided_by"}, "")
        categories = cls().categories
        if "categories" in data:
            entries = data["categories"]
            if not isinstance(entries, (list, tuple)):
                raise _Located(f"expected a list, found {_kind(entries)}", "categories")
            categories = tuple(_read_category(entry, f"categories[{i}]") for i, entry in enumerate(entries))
        section = data.get("thresholds", {})
        if not isinstance(section, Mapping):
            raise _Located(f"expected a table, found {_kind(section)}", "thresholds")
        _check_keys(section, {"prompt", "response", "category"}, "thresholds.")
        try:
            return cls(categories, Thresholds(**section), data.get("decided_by", "auto"))
        except _Located as error:
            raise (error.under("thresholds.") if error.key in section else error) from None

    @classmethod
    def from_toml(cls, text: str) -> Policy:
        """Read TOML text. Raises PolicyError naming line and key."""
        import tomllib

        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PolicyError(f"not valid TOML: {error}") from error  # it ends with "(at line L, column C)"
        except RecursionError as error:
            raise PolicyError("not valid TOML: nested too deeply") from error
        try:
            return replace(cls.from_dict(data), source=("", text))
        except _Located as error:
            raise _with_line(error, text, data) from error

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a TOML file. Raises PolicyError naming file, line and key."""
        try:
            text = Path(path).read_text("utf-8")
            return replace(cls.from_toml(text), source=(str(path), text))
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(f"{path}: can not be read: {error}") from error
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}", hint=error.hint) from error

    def refusal(self, key: str, what: str, hint: str | None = None) -> PolicyError:
        """The error that a guard can not take this policy's `key`, led by file and line where it is known."""
        error = _Located(what, key, hint)
        if self.source is None:
            return error
        import tomllib

        file, text = self.source
        located = _with_line(error, text, tomllib.loads(text))
        return PolicyError(f"{file}: {located}" if file else str(located), hint=hint)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` gives an equal policy back."""
        categories = []
        for category in self.categories:
            entry = {
                "name": category.name,
                "code": category.code,
                "description": category.description,
                "threshold": category.threshold,
                "allowed": category.allowed or None,
            }
            categories.append({key: value for key, value in entry.items() if value is not None})
        limits = self.thresholds
        thresholds = {"prompt": limits.prompt, "response": limits.response, "category": limits.category}
        found: dict[str, Any] = {"categories": categories, "thresholds": thresholds}
        return found if self.decided_by == "auto" else found | {"decided_by": self.decided_by}

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the canonical JSON (sorted keys, no spaces, UTF-8) of `to_dict`."""
        import hashlib  # here, and tomllib where it is used: `import aegis_edge` stays quick

        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def threshold_of(self, category: Category) -> float:
        """The probability from which on `category` counts as violated."""
        return self.thresholds.category if category.threshold is None else category.threshold


class _Located(PolicyError):
    """A PolicyError that knows its key, so that the reader of a file can name the line."""

    def __init__(self, what: str, key: str, hint: str | None = None) -> None:
        super().__init__(f"{key}: {what}", hint=hint)
        self.what, self.key = what, key

    def __reduce__(self) -> tuple[object, ...]:
        return _Located, (self.what, self.key, self.hint)

    def under(self, prefix: str) -> _Located:
        return _Located(self.what, prefix + self.key, self.hint)


def _with_line(error: _Located, text: str, data: Mapping[str, Any]) -> PolicyError:
    """The error, led by the line of its key in the TOML text."""
    line = _line_of(text, error.key, data.get("categories"))
    return PolicyError(f"line {line}: {error}" if line else str(error), hint=error.hint)


def _read_category(entry: Any, key: str) -> Category:
    if isinstance(entry, str):
        entry = {"name": entry}
    elif not isinstance(entry, Mapping):
        raise _Located(f"expected a name or a table, found {_kind(entry)}", key)
    _check_keys(entry, {"name", "code", "description", "threshold", "allowed"}, f"{key}.")
    if "name" not in entry:
        raise _Located("a category needs a name", key)
    try:
        hazard = taxonomy.find(entry["name"]) if isinstance(entry["name"], str) else None
        if hazard is None:
            return Category(**entry)
        return Category(**{"code": hazard.code, **entry, "name": hazard.name})
    except _Located as error:
        raise error.under(f"{key}.") from error


def _check_keys(table: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    if not isinstance(table, Mapping):
        raise PolicyError(f"a policy is a table, found {_kind(table)}")
    for key in table:
        if key not in known:
            raise _Located("unknown key", f"{prefix}{key}", f"known here: {', '.join(sorted(known))}")


def _check_text(value: Any, key: str, longest: int) -> None:
    """A name or description is a line of the guard's prompt: with a line break it would pass for two."""
    if not isinstance(value, str):
        raise _Located(f"expected text, found {_kind(value)}", key)
    if not value or value != value.strip():
        raise _Located("is empty, or begins or ends with white space", key)
    if len(value) > longest:
        raise _Located(f"has {len(value)} characters; at most {longest}", key)
    for char in value:
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise _Located(f"holds the control character U+{ord(char):04X}", key, "write one line of text")


def _check_threshold(value: Any, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Located(f"expected a probability, found {_kind(value)}", key)
    if not 0 < value < 1:
        raise _Located(f"{value} is no probability between 0 and 1", key, "such as 0.5")


def _kind(value: Any) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", str: "text", dict: "a table"}
    return names.get(type(value), f"a {type(value).__name__}")


def _line_of(text: str, key: str, categories: Any) -> int | None:
    """The 1-based line of `key` ("thresholds.prompt", "categories[2].name") in valid TOML, or of its parent.

    None where the text is laid out so that only a full parser could tell.
    """
    lines = text.splitlines()
    entry = re.match(r"categories\[(\d+)\]", key)
    leaf = key.rsplit(".", 1)[-1]
    first, last = 0, len(lines)
    if entry:
        index = int(entry[1])
        headers = [i for i, line in enumerate(lines) if re.match(r"\s*\[\[\s*categories\s*\]\]", line)]
        if headers:
            first = headers[index]
            last = next((i for i in range(first + 1, last) if lines[i].lstrip().startswith("[")), last)
        else:
            # An inline list: the line with the entry's name, counting the entries of that name before it.
            names = [item.get("name") if isinstance(item, dict) else item for item in categories]
            quoted = re.compile(rf"""(["']){re.escape(str(names[index]))}\1""")
            hits = [i for i, line in enumerate(lines) for _ in quoted.findall(line)]
            before = names[:index].count(names[index])
            leaf, first = "categories", hits[before] if before < len(hits) else 0
    elif "." in key:
        first = next((i for i, line in enumerate(lines) if re.match(r"\s*\[\s*thresholds\s*\]", line)), 0)
    assigned = re.compile(rf"""\s*["']?{re.escape(leaf)}["']?\s*=""")
    found = next((i for i in range(first, last) if assigned.match(lines[i])), first if entry else None)
    return None if found is None else found + 1
