from __future__ import annotations

import pytest

from aegis_edge.artifact import Artifact
from aegis_edge.bench import streaming
from aegis_edge.bench.guards import NEVER, Text
from aegis_edge.guard import open_scorer


def test_a_conversation_grows_by_chunks_of_whole_words(artefacts):
    artifact = Artifact.open(artefacts["w8a8"])
    text = Text(artifact)
    found = streaming.measure(text.guard(open_scorer(artifact, "cpu", 1), NEVER), text, 100, 3)
    assert found.check > 0 and found.ratio == pytest.approx(found.chunk / found.check)
    assert 100 + 4 * 16 <= found.tokens < 100 + 5 * 16 + 20  # whole words: a little more than 16 each


@pytest.mark.parametrize(("chunk", "code"), [(0.015, 0), (0.0151, 1)])
def test_the_command_fails_past_the_limit(artefacts, monkeypatch, capsys, chunk, code):
    monkeypatch.setattr(streaming, "measure", lambda *_: streaming.Growth(0.01, chunk, 1660))
    assert streaming.main(str(artefacts["w8a8"])) == code
    assert "ratio 1.5" in capsys.readouterr().out
