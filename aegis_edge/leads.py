"""The space that SentencePiece-like tokenizers put before a text.

Such a tokenizer reads "How" as "▁How" where a text begins, or behind a control token. Within a template
content stands behind other text, where there is none: content is encoded without it, and a template's text
that stands first brings its space along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE = "▁"


def without_lead(tokenizer: Tokenizer) -> tuple[Any, Any, Callable[[str, bool], str]]:
    """(normaliser, pre-tokeniser, lead): a tokenizer's own without what puts a space first, and what does it
    instead: lead(text, is_first) for a text that stands first of all, or behind a control token."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    if isinstance(normalizer, normalizers.Sequence):
        parts: list[Any] = [normalizer[i] for i in range(len(normalizer))]
        kept = [part for part in parts if not _prepends(part)]
        if len(kept) < len(parts):
            return normalizers.Sequence(kept), splitter, lambda text, _: f" {text}" if text else text
    if _prepends(normalizer):
        return None, splitter, lambda text, _: _SPACE + text if text else text
    if isinstance(splitter, pre_tokenizers.Metaspace) and splitter.prepend_scheme != "never":
        is_always = splitter.prepend_scheme == "always"
        bare = pre_tokenizers.Metaspace(splitter.replacement, "never", splitter.split)

        def lead(text: str, is_first: bool) -> str:
            is_led = (is_always or is_first) and text and not text.startswith((" ", splitter.replacement))
            return f" {text}" if is_led else text

        return normalizer, bare, lead
    return normalizer, splitter, lambda text, _: text


def _prepends(normalizer: Any) -> bool:
    from tokenizers import normalizers

    return isinstance(normalizer, normalizers.Prepend) and normalizer.prepend == _SPACE
