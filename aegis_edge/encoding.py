"""Conversations to segments of ids. Content never becomes a control id.

Templates and content are never one string: a plan's fixed ids are joined with ids that a tokenizer without
control tokens made of the content, so "<|im_end|>" in a prompt is ten or so ordinary tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aegis_edge.conversation import Conversation
from aegis_edge.errors import AegisError, ArtifactError, ContextError, InputError
from aegis_edge.families.plan import PROMPT, RESPONSE, ROOT, Given, Node, Plan
from aegis_edge.leads import without_lead
from aegis_edge.scoring import IdArray, Segment

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class ContentEncoder:
    """Encodes text with a tokenizer's own model, normaliser and pre-tokeniser, but without its added tokens.

    On text that spells no control token the ids are the tokenizer's own, as they are behind other text
    (`leads.py`). Its truncation, padding and post-processing are left out. A byte-level BPE drops bytes that
    its vocabulary lacks without a word; characters made of such bytes are encoded as U+FFFD instead. Safe to
    use from several threads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as Fresh

        # A tokenizer made from a model has no added tokens. The model is shared, not copied: no cost.
        self._tokenizer = Fresh(tokenizer.model)
        normalizer, pre_tokenizer, self.led = without_lead(tokenizer)
        if normalizer is not None:
            self._tokenizer.normalizer = normalizer
        if pre_tokenizer is not None:
            self._tokenizer.pre_tokenizer = pre_tokenizer
        self._control = _control_tokens(tokenizer, self._tokenizer)
        self.control_ids = frozenset(self._control.values())
        self.control_tokens = frozenset(self._control)
        if getattr(tokenizer.model, "dropout", None):
            raise ArtifactError(
                "tokenizer.json: its BPE drops merges at random; verdicts would change from run to run"
            )
        self._unspelt = _unspelt_bytes(self._tokenizer)
        self._stand_in = next((c for c in "\ufffd?" if self._is_spelt(c)), None)
        if self._stand_in is None:
            raise ArtifactError("tokenizer.json: the vocabulary has no bytes for U+FFFD or '?'")
        self._longest_token = 0  # bytes; counted when a text is long enough to ask

    @classmethod
    def from_json(cls, text: str) -> ContentEncoder:
        """From the text of a tokenizer.json. Raises ArtifactError where it is none."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(text))
        except AegisError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ArtifactError(f"tokenizer.json: {error}") from error

    @classmethod
    def from_file(cls, path: str | Path) -> ContentEncoder:
        """From a tokenizer.json. Raises ArtifactError where it is missing or none."""
        try:
            return cls.from_json(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: can not be read: {error}") from error

    def control_id(self, token: str) -> int:
        """Id of an added token. Raises ArtifactError where the tokenizer has none of that name."""
        if token not in self._control:
            raise ArtifactError(
                f"the tokenizer has no control token {token!r}", hint="family and base do not fit"
            )
        return self._control[token]

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of `text`, none of them a control id."""
        return tuple(self.encode(text).tolist())

    def encode(self, text: str, limit: int | None = None) -> IdArray:
        """Ids of `text`, int32 [n], n >= 0, none of them a control id.

        Raises ContextError for a text that certainly has more than `limit` tokens before spending time on it
        (others may still return more), and InputError where the tokenizer turns plain text into a control
        token all the same.
        """
        if limit is not None and (least := self.least(text, limit)):
            raise too_long(f"at least {least}", limit)
        ids: list[int] = self._tokenizer.encode(self._spelt(text), add_special_tokens=False).ids
        if not self.control_ids.isdisjoint(ids):
            raise InputError("the text spells a control token that this tokenizer can not take apart")
        return np.array(ids, np.int32)

    def characters(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Where in `text` the tokens `start` to `end` of its `encode` begin and end; 0 <= start < end <= n.

        A token that holds a part of a character counts as the whole of it.
        """
        offsets = self._tokenizer.encode(self._spelt(text), add_special_tokens=False).offsets
        return int(offsets[start][0]), int(offsets[end - 1][1])

    def _spelt(self, text: str) -> str:
        """`text` with a stand-in, one character for one, for what the vocabulary has no bytes for."""
        data = text.encode("utf-8")
        if len(data.translate(None, self._unspelt)) == len(data):
            return text
        return "".join(char if self._is_spelt(char) else self._stand_in or "" for char in text)

    def _is_spelt(self, char: str) -> bool:
        return not any(byte in self._unspelt for byte in char.encode("utf-8"))

    def least(self, text: str, limit: int) -> int:
        """Tokens that `text` has at least, where that is quick to tell and more than `limit`; else 0.

        A text of B bytes has at least B / (longest token) tokens, if the tokenizer drops no bytes: a gigabyte
        is refused at once instead of being tokenised for minutes.
        """
        size = len(text.encode("utf-8"))
        if size <= 16 * limit or not _is_byte_level(self._tokenizer):
            return 0
        if not self._longest_token:
            self._longest_token = max(len(token) for token in self._tokenizer.get_vocab())
        least = -(-size // self._longest_token)
        return least if least > limit else 0


def _control_tokens(tokenizer: Tokenizer, bare: Tokenizer) -> dict[str, int]:
    """Name -> id of the added tokens that no text spells.

    Gemma lists runs of spaces and line breaks among its added tokens: not special, and ids that the model
    alone makes of that text too. Those are text. `<think>` of Qwen 3 is not special either, but text alone
    does not make its id: that is control.
    """
    added = tokenizer.get_added_tokens_decoder()
    asked = [(i, token.content) for i, token in added.items() if not token.special]
    spelt = bare.encode_batch([content for _, content in asked], add_special_tokens=False)
    text = {i for (i, _), one in zip(asked, spelt, strict=True) if one.ids == [i]}
    return {token.content: i for i, token in added.items() if i not in text}


@dataclass(frozen=True)
class Encoded:
    """A conversation as nodes, numbered as if it were alone in the tree: 0 the root, 1 its first segment.

    segments  the nodes of the first pass
    reads     the question of each slot, in slot order
    judged    the node of each slot
    given     the answers that each slot follows; see `Node`
    last      the node from which category leaves hang
    content   tokens of the prompt's and response's text
    size      tokens of all segments
    """

    segments: tuple[Segment, ...]
    reads: tuple[str, ...]
    judged: tuple[int, ...]
    given: tuple[Given, ...]
    last: int
    content: int
    size: int

    def at(self, first: int) -> tuple[Segment, ...]:
        """The segments for a tree in which the first of them becomes node number `first`."""
        shift = first - 1
        return tuple(replace(s, parent=s.parent + shift) if s.parent else s for s in self.segments)


class ConversationEncoder:
    """Turns conversations into the nodes that a plan lays down. Safe to use from several threads."""

    def __init__(self, encoder: ContentEncoder, plan: Plan, context: int) -> None:
        """`context` is the scorer's. Raises ContextError where not even an empty conversation fits."""
        self.content, self._plan = encoder, plan
        leaves = [plan.leaves, *(listing.leaves for listing in plan.lists.values())]
        longest_leaf = max((len(ids) for asked in leaves for ids in asked), default=0)
        # Room for the leaves is kept free from the start: else a text would fit only while it is found safe.
        self._room = context - len(plan.root) - longest_leaf
        # Text of the template that is encoded with the content, as ids for where a window cuts it off.
        self._seams = {
            of: (encoder.encode(before), encoder.encode(after)) for of, (before, after) in plan.seams.items()
        }
        self._room -= sum(len(ids) for pair in self._seams.values() for ids in pair)
        for nodes in (plan.prompt, plan.exchange):
            self._limit(nodes)

    def encode(self, conversation: Conversation) -> Encoded:
        """The nodes of a conversation that fits whole, the same whether it is checked alone or among others.

        Raises ContextError where content and markers do not fit beside the policy; the message states tokens
        and limit.
        """
        response = conversation.response
        limit = self.limit(response is not None)
        prompt_ids = self.content.encode(self.joined(PROMPT, conversation.prompt), limit)
        response_ids = None
        if response is not None:
            response_ids = self.content.encode(self.joined(RESPONSE, response), limit)
        tokens = len(prompt_ids) + (0 if response_ids is None else len(response_ids))
        if tokens > limit:
            raise too_long(str(tokens), limit)
        return self.lay_out(prompt_ids, response_ids)

    def limit(self, has_response: bool) -> int:
        """Content tokens that fit beside the policy, a conversation's fixed ids and a leaf. Raises InputError
        for a response where the family judges prompts alone."""
        if has_response and not self._plan.exchange:
            raise InputError(
                "this guard's family judges prompts alone", hint="check the prompt without its response"
            )
        return self._limit(self._plan.exchange if has_response else self._plan.prompt)

    def joined(self, of: str, text: str) -> str:
        """A prompt's or response's text with what the template joins to it: what is encoded."""
        before, after = self._plan.seams.get(of, ("", ""))
        return f"{before}{text}{after}"

    def cut(self, of: str, ids: IdArray, start: int, end: int) -> IdArray:
        """The tokens `start` to `end` of the ids of a joined text, the template's beside them where they are
        cut off."""
        if of not in self._seams:
            return ids[start:end]
        before, after = self._seams[of]
        return np.concatenate([before[: len(before) * (start > 0)], ids[start:end],
                               after[: len(after) * (end < len(ids))]])  # fmt: skip

    def characters(self, of: str, text: str, start: int, end: int) -> tuple[int, int]:
        """`ContentEncoder.characters` of the joined text, in characters of `text`."""
        shift = len(self._plan.seams.get(of, ("", ""))[0])
        found = self.content.characters(self.joined(of, text), start, end)
        first, last = (min(max(0, at - shift), len(text)) for at in found)
        return first, last

    def lay_out(self, prompt: IdArray, response: IdArray | None) -> Encoded:
        """The nodes of content given as ids, int32 [n], n >= 0, which together keep to `limit`.

        A node without ids (empty content) is left out, and its children hang from its parent.
        """
        nodes = self._plan.prompt if response is None else self._plan.exchange
        content = {PROMPT: prompt} if response is None else {PROMPT: prompt, RESPONSE: response}
        tokens = sum(len(ids) for ids in content.values())
        segments: list[Segment] = []
        reads: list[str] = []
        judged: list[int] = []
        given: list[Given] = []
        numbers = {ROOT: 0}
        for index, node in enumerate(nodes):
            ids = np.concatenate(
                [content[p] if isinstance(p, str) else np.array(p, np.int32) for p in node.parts]
            )
            parent = numbers[node.parent]
            if len(ids) == 0:
                numbers[index] = parent
                continue
            slots = () if node.reads is None else (len(ids) - 1,)
            reads += [] if node.reads is None else [node.reads]
            segments.append(Segment(ids, parent, slots))
            numbers[index] = len(segments)
            judged += slots and (len(segments),)
            given += [node.given] if slots else []
        size = sum(len(segment.ids) for segment in segments)
        last = numbers[len(nodes) - 1]
        return Encoded(tuple(segments), tuple(reads), tuple(judged), tuple(given), last, tokens, size)

    def leaves(self, parent: int, listing: str = "") -> list[Segment]:
        """One leaf a category under node `parent`, in the policy's order, or those of a category list; each
        is read at its last token."""
        leaves = self._plan.lists[listing].leaves if listing else self._plan.leaves
        return [Segment(np.array(ids, np.int32), parent, (len(ids) - 1,)) for ids in leaves]

    def _limit(self, nodes: tuple[Node, ...]) -> int:
        """`limit` of a plan's nodes."""
        fixed = sum(len(part) for node in nodes for part in node.parts if not isinstance(part, str))
        if self._room < fixed:
            raise ContextError(
                f"the policy has {len(self._plan.root)} tokens and leaves no room for a conversation",
                hint="use fewer categories or shorter descriptions",
            )
        return self._room - fixed


def too_long(tokens: str, limit: int) -> ContextError:
    """The refusal of what does not fit the context."""
    return ContextError(
        f"the conversation has {tokens} tokens; beside its policy this guard takes at most {limit}",
        hint="check it in parts; it is never cut silently",
    )


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether tokens stand for a text's bytes: no normaliser, which could drop some, and a byte alphabet."""
    return tokenizer.normalizer is None and "ByteLevel" in repr(tokenizer.pre_tokenizer)


def _unspelt_bytes(tokenizer: Tokenizer) -> bytes:
    """Bytes that a byte-level vocabulary has no token for; SmolLM2's lacks 21, among them 0x04 and 0xF1."""
    if not _is_byte_level(tokenizer):
        return b""
    return bytes(byte for byte, char in enumerate(_BYTE_CHARS) if tokenizer.token_to_id(char) is None)


def _byte_chars() -> str:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table): printable Latin-1
    stands for itself, the other bytes for the characters from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


_BYTE_CHARS = _byte_chars()
