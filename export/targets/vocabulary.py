"""The label rows as tokens: how another engine reads a verdict.

Serving engines return logits of tokens, hardly ever hidden states. So each label row becomes one more token
of the vocabulary, named after it ("<|prompt_unsafe|>"), its row of the LM head being the label's. A label
logit is then the token's logit where the closing marker is read, plus the row's bias, which an LM head has no
place for and aegis_head.json keeps. New tokens, and not reserved ones of the base: no base needs to have six
to spare, nothing that it knew changes, and an engine that picks among them prints the verdict by name. Where
embeddings and LM head are one matrix they stay one: nothing feeds label tokens in, because content is encoded
without control tokens. Engines that do give hidden states find the rows in fp32 in aegis_head.safetensors. A
guard whose labels are words of the LM head has its tokens already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from aegis_edge.export.targets import Build


@dataclass(frozen=True)
class Vocabulary:
    """tokenizer: the text of tokenizer.json; tokens: of each label row; embed fp32 [V, H]; lm_head fp32 [V,
    H], or None where it is the embeddings'.
    """

    tokenizer: str
    tokens: tuple[int, ...]
    embed: Tensor
    lm_head: Tensor | None

    @property
    def output(self) -> Tensor:
        """The LM head's matrix, fp32 [V, H]."""
        return self.embed if self.lm_head is None else self.lm_head


def with_labels(build: Build) -> Vocabulary:
    """The vocabulary of a built guard, with a token for each label row."""
    trunk, head = build.trunk, build.parent.head
    embed, lm_head = trunk.embed, trunk.lm_head
    if trunk.unembed is not None and trunk.final_norm is None:
        # Folded norms and rotation part them: logits = h . unembed . embed^T.
        lm_head = embed @ trunk.unembed.T
    if head.token_ids is not None:
        return Vocabulary(build.parent.tokenizer, head.token_ids, embed, lm_head)
    tokenizer = Tokenizer.from_str(build.parent.tokenizer)
    names = [f"<|{row}|>" for row in head.rows]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    entries = tokenizer.get_vocab(with_added_tokens=True)
    tokens = tuple(entries[name] for name in names)
    # Rows beyond the tokenizer's tokens, which some bases have as padding, are used first.
    more = max(0, max(tokens) + 1 - len(embed))
    embed = torch.cat((embed, embed.new_zeros(more, embed.shape[1])))
    if lm_head is not None:
        lm_head = torch.cat((lm_head, lm_head.new_zeros(more, lm_head.shape[1])))
    (embed if lm_head is None else lm_head)[list(tokens)] = trunk.head_weight
    return Vocabulary(tokenizer.to_str(), tokens, embed, lm_head)
