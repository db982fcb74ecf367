"""Harmless texts that the base model itself writes, and refusals: what natural language looks like without
harm.

The public sets hold harmful requests of many styles and harmless ones of few, and a guard trained on them
takes style for harm. An instruction-tuned base writes the missing half when it is asked for nothing bad:
given no more than the opening of a user's turn it continues with what its users ask (Magpie, arXiv
2406.08464), it answers that, and it writes pieces about the subjects of data/written.toml.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record
from aegis_edge.errors import AegisError
from aegis_edge.train.kept import Job, Journal, Pair, Tell, kept
from aegis_edge.train.settings import Settings
from aegis_edge.train.workers import Workers

_TEXT = tomllib.loads(resources.files("aegis_edge.data").joinpath("written.toml").read_text("utf-8"))
FORMS, SUBJECTS, REFUSALS = (tuple(_TEXT[k]) for k in ("forms", "subjects", "refusals"))
SOURCE, REFUSED = "written", "refused"
LEAST = 12  # characters; what is shorter was broken off
CHUNK = 64  # texts written side by side: the weights are read once for all of them
ASK_TOKENS, ANSWER_TOKENS, PIECE_TOKENS = 64, 112, 144
LIKELIEST = 100  # tokens that are drawn from; the rest of the distribution is where a small model babbles


class Writer:
    """Samples from a chat model, chunk by chunk; a chunk's texts follow from its seed."""

    def __init__(self, folder: Path, model: Any) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = model.eval()
        mark = "\N{SYMBOL FOR RECORD SEPARATOR}"
        if self.tokenizer.chat_template is None:
            raise AegisError(
                f"{folder}: the base has no chat template, and writes nothing without one", hint="--written 0"
            )
        turn = str(self.tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False))
        self.opening, closing = turn.split(mark)
        self.end = self.tokenizer(closing, add_special_tokens=False)["input_ids"][0]

    def asked(self, prompt: str) -> str:
        """The text after which the model answers `prompt`."""
        turns = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def continued(self, texts: Sequence[str], tokens: int, seed: int) -> list[str]:
        """What follows each text, up to the end of its turn or `tokens`."""
        self.tokenizer.pad_token_id = self.end
        inputs = self.tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        draw = torch.Generator().manual_seed(seed)
        begun, past, fed = ids.shape[1], None, ids
        going = torch.ones(len(texts), dtype=torch.bool)
        with torch.inference_mode():
            for _ in range(tokens):
                places = (mask.cumsum(1) - 1).clamp_min(0)[:, -fed.shape[1] :]
                out = self.model(
                    fed, attention_mask=mask, position_ids=places, past_key_values=past, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
                past = out.past_key_values
                likeliest, which = out.logits[:, -1].float().topk(min(LIKELIEST, out.logits.shape[-1]))
                fed = which.gather(1, torch.multinomial(likeliest.softmax(-1), 1, generator=draw))
                fed[~going] = self.end
                going &= fed[:, 0] != self.end
                ids, mask = torch.cat((ids, fed), 1), torch.cat((mask, torch.ones_like(fed)), 1)
                if not going.any():
                    break
        return [str(t).strip() for t in self.tokenizer.batch_decode(ids[:, begun:], skip_special_tokens=True)]


def written(settings: Settings, base: Any, workers: Workers) -> list[Record]:
    """The base's own texts of a run, harmless: from its folder where they are, else made and kept there."""
    if not settings.written:
        return []

    def make(journal: Journal, tell: Tell) -> list[Pair]:
        return write(Writer(settings.base, base), settings.written, settings.seed, workers, journal, tell)

    place = (settings.out, *settings.average)[-1] / "written.jsonl"
    return [
        Record(prompt, answer, False, None if answer is None else False, Categories(), None, SOURCE)
        for prompt, answer in kept(place, "the base writes", settings.written * 5 // 4, make)
    ]


def write(
    writer: Writer, count: int, seed: int, workers: Workers, journal: Journal, tell: Tell = lambda n: None
) -> list[Pair]:
    """About `count` harmless texts: half of them questions, every second with an answer, half of them
    pieces. `tell` is called with the number of texts of each chunk as it is done."""
    rng = random.Random(f"{seed}/written")
    wishes = [f"Write {form} {subject}." for form in FORMS for subject in SUBJECTS]
    pieces = rng.sample(wishes, min(len(wishes), count // 2))

    def chunk(job: Job) -> list[str]:
        texts = journal.get(job, partial(writer.continued, *job))
        tell(len(texts))
        return texts

    def chunks(texts: Sequence[str], tokens: int, number: int) -> list[str]:
        starts = range(0, len(texts), CHUNK)
        jobs: list[Job] = [
            (texts[i : i + CHUNK], tokens, seed * 1000 + number * 300 + i // CHUNK) for i in starts
        ]
        return [text for part in workers.map(chunk, jobs) for text in part]

    asks = chunks([writer.opening] * (count - len(pieces)), ASK_TOKENS, 0)
    answered = asks[: len(asks) // 2]
    answers = chunks([writer.asked(a) for a in answered], ANSWER_TOKENS, 1)
    out: list[Pair] = [(a, b if len(b) >= LEAST else None) for a, b in zip(answered, answers, strict=True)]
    out += [(a, None) for a in asks[len(answered) :]]
    out += [(text, None) for text in chunks([writer.asked(p) for p in pieces], PIECE_TOKENS, 2)]
    return list({pair[0]: pair for pair in out if len(pair[0]) >= LEAST}.values())


def refused(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Prompts, harmful and harmless, each with a refusal: the answer is safe whatever was asked."""
    rng = random.Random(f"{seed}/refused")
    pool = [r for r in records if r.unsafe is not None and r.response is None]
    return [
        replace(r, response=rng.choice(REFUSALS), response_unsafe=False, source=REFUSED)
        for r in rng.sample(pool, min(len(pool), count))
    ]
