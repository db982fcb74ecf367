"""The default family's prompt as ids, for training: the same segments that the runtime walks (see families/).

root      <|im_start|>system\\n{policy}<|im_end|>\\n<|im_start|>user\\n
trunk     prompt text, <|im_end|> (prompt slot) [, \\n<|im_start|>assistant\\n + response, <|im_end|>
(response slot)] leaves    <|im_start|>category<|im_end|> (category slot), siblings after the last slot
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

POLICY_HEAD = "Rate the conversation safe or unsafe under this policy. Unsafe is:\n"
ROWS: tuple[str, ...] = (
    "prompt_safe",
    "prompt_unsafe",
    "response_safe",
    "response_unsafe",
    "category_no",
    "category_yes",
)


class PromptEncoder:
    """Text to ids; content can never become a control id because the tokenizer for content has none."""

    def __init__(self, base: str | Path) -> None:
        spec = json.loads((Path(base) / "tokenizer.json").read_text(encoding="utf-8"))
        added = {t["content"]: int(t["id"]) for t in spec["added_tokens"]}
        self.start, self.end = added["<|im_start|>"], added["<|im_end|>"]
        spec["added_tokens"], spec["truncation"], spec["padding"] = [], None, None
        self._tokenizer = Tokenizer.from_str(json.dumps(spec))
        self._before_response = [*self.text("\n"), self.start, *self.text("assistant\n")]

    def text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def root(self, categories: Sequence[str]) -> list[int]:
        policy = POLICY_HEAD + "\n".join(categories)
        system = [self.start, *self.text("system\n" + policy), self.end, *self.text("\n")]
        return [*system, self.start, *self.text("user\n")]

    def clipped(self, text: str, limit: int) -> list[int]:
        """At most `limit` ids: three quarters from the start, one from the end, as either may hold the
        harm.
        """
        ids = self.text(text) or self.text(" ")
        if len(ids) <= limit:
            return ids
        head = limit * 3 // 4
        return ids[:head] + ids[-(limit - head) :]

    def response(self, ids: list[int]) -> list[int]:
        return self._before_response + ids

    def leaf(self, category: str) -> list[int]:
        return [self.start, *self.text(category), self.end]
