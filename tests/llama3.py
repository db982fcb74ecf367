"""A tiny base of Llama 3.1's shape: its special tokens, its pre-tokeniser, its chat template's form.

Not its vocabulary: ids here say nothing about the ids of the real checkpoint, only that what is compiled is
what this tokenizer and template give.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_export import tiny_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from aegis_edge.families import find_recipe

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3.1's, but for tools: a system turn with dates is always there, and turns are trimmed.
CHAT = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: 26 Jul 2024\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def make_tokenizer(vocab: int = 900) -> Tokenizer:
    """A byte-level BPE trained on the NemoGuard prompt and its answers, so that words are whole tokens."""
    recipe = find_recipe("nemoguard-content-safety-v2")
    assert recipe is not None
    corpus = [message.content for message in recipe.exchange or () if not isinstance(message, str)]
    corpus += ['{"User Safety": "safe", "Response Safety": "unsafe"}', "on-topic off-topic?\n\n .\n\n"] * 50
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def write_checkpoint(folder: Path, tokenizer: Tokenizer, chat: str | None = CHAT, context: int = 2048) -> Any:
    """Save a random Llama with tokenizer and chat template; returns the model."""
    model = tiny_model(tokenizer.get_vocab_size())
    model.config.max_position_embeddings = context
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer, chat)
    return model


def write_tokenizer(folder: Path, tokenizer: Tokenizer, chat: str | None = CHAT) -> Path:
    """Save what a checkpoint has besides its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[4]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat)
    return folder
