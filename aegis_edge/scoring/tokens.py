"""Any engine that gives the next token's logits, as a scorer: vLLM, llama.cpp, TensorRT-LLM.

An exported checkpoint has the label rows in its LM head, as tokens of their own, so a label logit is the
logit of a token at the position that a slot reads. Every slot becomes the sequence of ids that leads to it;
an engine that caches prefixes computes the policy once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_edge.errors import ScorerError
from aegis_edge.scoring import IdArray, LogitArray, Segment, TreeShape

# (sequences of ids, label tokens) -> for each sequence the logits of those tokens at the position after it.
# Log- probabilities serve as well: what is added to all logits of a sequence cancels.
Ask = Callable[[list[list[int]], list[int]], Sequence[Sequence[float]]]


class TokenScorer:
    """See scoring.Scorer; as safe to use from several threads as `ask` is."""

    name = "tokens"

    def __init__(
        self, ask: Ask, tokens: Sequence[int], bias: Sequence[float], root: IdArray, context: int, vocab: int
    ) -> None:
        """tokens: the token of each label row; bias: what is added to its logit; root int32 [P]; context:
        most tokens of a sequence."""
        self._ask, self._tokens, self._bias = ask, list(tokens), np.array(bias, np.float32)
        self._root, self.context, self.vocab = root, context, vocab
        self.rows = len(self._tokens)

    def tree(self, root: IdArray | None = None) -> TokenTree:
        """A tree over the exported policy, or over int32 ids [n]."""
        return TokenTree(self, self._root if root is None else root)

    def logits(self, paths: list[list[int]]) -> LogitArray:
        """Label logits float32 [paths, rows]. Raises ScorerError where the engine's answer has another
        shape.
        """
        found = np.array(self._ask(paths, self._tokens), np.float32)
        if found.shape != (len(paths), self.rows):
            raise ScorerError(
                f"the engine gave {list(found.shape)} logits, expected {[len(paths), self.rows]}"
            )
        answer: LogitArray = found + self._bias
        return answer


class TokenTree:
    """See scoring.Tree. Only ids are kept from one call to the next."""

    can_grow = False
    log_sum_exp: LogitArray | None = None  # only the labels' logits are asked for

    def __init__(self, scorer: TokenScorer, root: IdArray) -> None:
        self._scorer = scorer
        self._shape = TreeShape(root, scorer.context, scorer.vocab)
        self.root: list[int] = root.tolist()
        self._paths = [self.root]  # of each node, from the root's first token on

    def extend(self, segments: Sequence[Segment]) -> LogitArray:
        """See scoring.Tree."""
        self._shape.add(segments)
        asked: list[list[int]] = []
        for segment in segments:
            before, ids = self._paths[segment.parent], segment.ids.tolist()
            self._paths.append(before + ids)
            asked += [before + ids[: slot + 1] for slot in segment.slots]
        return self._scorer.logits(asked) if asked else np.empty((0, self._scorer.rows), np.float32)

    def truncate(self, nodes: int) -> None:
        """See scoring.Tree."""
        self._shape.truncate(nodes)
        del self._paths[nodes:]
