"""Calibration text: what the quantiser looks at, and what the export's fidelity is measured on.

calibration.jsonl is the project's own harmless text (questions, chat, code, news, several languages; some
about dangerous things, in good faith). Whoever has text like what the guard will see gets a better
calibration from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from aegis_edge.conversation import Conversation
from aegis_edge.encoding import ContentEncoder, ConversationEncoder
from aegis_edge.errors import AegisError, ContextError, ExportError, InputError
from aegis_edge.export.trunk import Text
from aegis_edge.families import Plan
from aegis_edge.families.plan import CATEGORY
from aegis_edge.scoring import Segment

PACKAGED = Path(__file__).with_name("calibration.jsonl")
# Enough to estimate second moments of 1,536 inputs; more takes time in proportion and was not seen to help.
MAX_TOKENS = 16384
_MAX_CONVERSATION = 1024


def load_calibration(path: Path | None = None) -> list[Conversation]:
    """Conversations of a file: JSON lines with `prompt` and perhaps `response`, or else one prompt a line.
    None: the project's own."""
    file = path or PACKAGED
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        found = [_conversation(line) for line in lines if line.strip()]
    except (OSError, ValueError, AegisError) as error:
        raise ExportError(
            f"calibration text {file}: {error}",
            hint="JSON lines with prompt and response, or plain text, a prompt a line",
        ) from error
    if not found:
        raise ExportError(f"calibration text {file} is empty")
    return found


def _conversation(line: str) -> Conversation:
    if not line.startswith("{"):
        return Conversation(line)
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return Conversation(line)  # a prompt that only looks like JSON, such as a snippet of code
    if "prompt" not in record:
        raise ValueError("a JSON line without a prompt")
    return Conversation(record["prompt"], record.get("response"))


def flat_text(
    conversations: Sequence[Conversation], encoder: ContentEncoder, plan: Plan, context: int
) -> Text:
    """Encode conversations as flat tokens behind the plan's root, each followed by one category leaf (in
    turn), up to MAX_TOKENS.

    Conversations of more than 1,024 tokens are left out; raises ExportError where none is left.
    """
    conversation_encoder = ConversationEncoder(encoder, plan, context)
    rows = {name: i for i, name in enumerate(plan.rows)}
    ids: list[int] = list(plan.root)
    starts, slots, pairs = [], [], []
    for number, conversation in enumerate(conversations):
        try:
            encoded = conversation_encoder.encode(conversation)
        except (ContextError, InputError):  # too long, or a response where prompts alone are judged
            continue
        if encoded.size > _MAX_CONVERSATION or len(ids) + encoded.size > MAX_TOKENS:
            continue
        chained = _chain(encoded.segments)
        leaves = conversation_encoder.leaves(len(chained)) if len(chained) == len(encoded.segments) else []
        segments = [*chained, *leaves[number % max(1, len(leaves)) :][:1]]
        questions = [*encoded.reads, CATEGORY]
        starts.append(len(ids))
        for segment in segments:
            slots += [len(ids) + slot for slot in segment.slots]
            # Of an answer of three words the outer two.
            pairs += [[rows[row] for row in plan.questions[questions.pop(0)][:2]] for _ in segment.slots]
            ids += segment.ids.tolist()
    if not starts:
        raise ExportError(f"no calibration conversation fits in {_MAX_CONVERSATION} tokens")
    return Text(torch.tensor(ids), len(plan.root), tuple(starts), torch.tensor(slots), torch.tensor(pairs))


def _chain(segments: Sequence[Segment]) -> list[Segment]:
    """The segments up to the first that does not hang from the one before it: flat text has no branches, and
    what branches reads the same text once more."""
    first = next((i for i, segment in enumerate(segments) if segment.parent != i), len(segments))
    return list(segments[:first])
