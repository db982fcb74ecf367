"""Texts that the base writes, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

NEEDS = "training needs the extra `train`"
pytest.importorskip("torch", reason=NEEDS)
pytest.importorskip("transformers", reason=NEEDS)

from aegis_edge.data.mapping import Categories  # noqa: E402
from aegis_edge.data.records import Record  # noqa: E402
from aegis_edge.errors import AegisError  # noqa: E402
from aegis_edge.train.kept import Journal, Pair, Tell, kept  # noqa: E402
from aegis_edge.train.sampling import SHARES, bucket_of  # noqa: E402
from aegis_edge.train.settings import Settings  # noqa: E402
from aegis_edge.train.workers import Workers  # noqa: E402
from aegis_edge.train.written import (  # noqa: E402
    ANSWER_TOKENS,
    ASK_TOKENS,
    PIECE_TOKENS,
    REFUSALS,
    Writer,
    refused,
    write,
    written,
)


class Echo(Writer):
    """Writes what it was asked, and no model is loaded for that."""

    opening = "user: "

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def asked(self, prompt: str) -> str:
        return f"answer to {prompt}"

    def continued(self, texts: Sequence[str], tokens: int, seed: int) -> list[str]:
        self.calls.append((tokens, seed))
        return [f"{text} {seed} {n} and some more words" for n, text in enumerate(texts)]


def test_half_are_questions_every_second_answered_and_half_are_pieces(tmp_path: Path) -> None:
    echo, told = Echo(), []
    pairs = write(echo, 400, 7, Workers(2), Journal(tmp_path / "a"), told.append)
    assert len(pairs) == 400 and sum(told) == 500  # 100 answers
    assert sum(answer is not None for _, answer in pairs) == 100
    assert sum(prompt.startswith("answer to Write ") for prompt, _ in pairs) == 200
    assert {t for t, _ in echo.calls} == {ASK_TOKENS, ANSWER_TOKENS, PIECE_TOKENS}
    assert len({seed for _, seed in echo.calls}) == len(echo.calls)  # no two chunks draw alike
    assert write(Echo(), 400, 7, Workers(1), Journal(tmp_path / "b")) == pairs
    assert write(Echo(), 400, 8, Workers(1), Journal(tmp_path / "b")) != pairs


def test_what_the_base_wrote_is_harmless(tmp_path: Path) -> None:
    rows = [{"prompt": "a question", "response": None}, {"prompt": "another", "response": "its answer"}]
    (tmp_path / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(data=(), base=tmp_path, base_name="tiny", out=tmp_path)
    alone, pair = written(settings, None, Workers(1))
    assert (alone.unsafe, alone.response, alone.response_unsafe) == (False, None, None)
    assert (pair.unsafe, pair.response, pair.response_unsafe) == (False, "its answer", False)
    assert written(replace(settings, written=0), None, Workers(1)) == []


def test_what_was_made_once_is_read_back_and_what_was_half_made_goes_on(tmp_path: Path) -> None:
    place, echoes = tmp_path / "written.jsonl", [Echo() for _ in range(4)]

    def make(echo: Echo, most: int) -> Callable[[Journal, Tell], list[Pair]]:
        def killed(count: int) -> None:
            if len(echo.calls) > most:
                raise KeyboardInterrupt

        def made(journal: Journal, tell: Tell) -> list[Pair]:
            return write(echo, 400, 7, Workers(1), journal, killed)

        return made

    for echo in echoes[:2]:  # killed twice, the first time in the middle of a line
        with pytest.raises(KeyboardInterrupt):
            kept(place, "writing", 500, make(echo, 2))
        with place.with_suffix(".part").open("a") as torn:
            torn.write('{"chunk": "ab')
    found = kept(place, "writing", 500, make(echoes[2], 1000))
    assert found == write(Echo(), 400, 7, Workers(1), Journal(tmp_path / "other"))
    (tmp_path / "other").unlink()
    calls = [call for echo in echoes for call in echo.calls]
    assert all(echo.calls for echo in echoes[:3]) and len(set(calls)) == len(calls)  # none was written twice
    assert kept(place, "writing", 500, make(echoes[3], 1000)) == found and not echoes[3].calls
    assert [file.name for file in tmp_path.iterdir()] == [place.name]


def test_a_refusal_is_safe_whatever_was_asked() -> None:
    rows = [Record(f"p{n}", None, bool(n % 2), None, Categories(), None, "own") for n in range(40)]
    rows.append(Record("answered", "yes", True, True, Categories(), None, "own"))
    found = refused(rows, 30, 0)
    assert len(found) == 30 and {bucket_of(r) for r in found} == {"safe", "unsafe"}
    assert all(r.response in REFUSALS and r.response_unsafe is False and r.source == "refused" for r in found)
    assert "answered" not in {r.prompt for r in found} and refused(rows, 30, 0) == found
    assert "refused" in SHARES["safe"] and "refused" in SHARES["unsafe"] and "written" in SHARES["safe"]


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    fast.save_pretrained(tmp_path)
    with pytest.raises(AegisError, match="has no chat template") as caught:
        Writer(tmp_path, _Model())
    assert caught.value.hint == "--written 0"


class _Model:
    def eval(self) -> _Model:
        return self
