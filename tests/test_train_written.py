"""Texts that the base writes, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from aegis_edge.train.workers import Workers  # noqa: E402
from aegis_edge.train.written import (  # noqa: E402
    ANSWER_TOKENS,
    ASK_TOKENS,
    PIECE_TOKENS,
    REFUSALS,
    Writer,
    harmless,
    refused,
    write,
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


def test_half_are_questions_every_second_answered_and_half_are_pieces() -> None:
    echo, told = Echo(), []
    pairs = write(echo, 400, 7, Workers(2), told.append)
    records = harmless(pairs)
    assert len(records) == 400 and sum(told) == 500  # 100 answers
    assert sum(r.response is not None for r in records) == 100
    assert sum(r.prompt.startswith("answer to Write ") for r in records) == 200
    assert {t for t, _ in echo.calls} == {ASK_TOKENS, ANSWER_TOKENS, PIECE_TOKENS}
    assert len({seed for _, seed in echo.calls}) == len(echo.calls)  # no two chunks draw alike
    assert all(r.unsafe is False and r.response_unsafe is not True for r in records)
    assert all((r.response is None) is (r.response_unsafe is None) for r in records)
    assert write(Echo(), 400, 7, Workers(1)) == pairs != write(Echo(), 400, 8, Workers(1))


def test_what_was_made_once_is_read_back_and_what_was_half_made_goes_on(tmp_path: Path) -> None:
    place, echoes = tmp_path / "written.jsonl", [Echo() for _ in range(3)]

    def make(echo: Echo, most: int) -> Callable[[Journal, Tell], list[Pair]]:
        def killed(count: int) -> None:
            if len(echo.calls) > most:
                raise KeyboardInterrupt

        def made(journal: Journal, tell: Tell) -> list[Pair]:
            echo.journal = journal
            return write(echo, 400, 7, Workers(1), killed)

        return made

    with pytest.raises(KeyboardInterrupt):
        kept(place, "writing", 500, make(echoes[0], 4))
    with place.with_suffix(".part").open("a") as torn:
        torn.write('{"chunk": "ab')
    found = kept(place, "writing", 500, make(echoes[1], 1000))
    assert found == write(Echo(), 400, 7, Workers(1))
    done, left = (set(echo.calls) for echo in echoes[:2])
    assert len(done) >= 5 and left and not done & left  # none was written twice
    assert kept(place, "writing", 500, make(echoes[2], 1000)) == found and not echoes[2].calls
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
