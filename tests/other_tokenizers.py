"""Tiny tokenizers of the forms that guards' checkpoints have besides Llama 3's, and templates of the same
structure as theirs. The words are ours: a family has to fit whatever a checkpoint's own template says."""

from __future__ import annotations

import json

from llama3 import SPLIT
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "Human user: AI assistant: Answers: Task: Check the conversation. Categories: None Violent Jailbreak PII",
    "Safety: Safe Safety: Unsafe Safety: Controversial Refusal: Yes Refusal: No Violence safe unsafe",
    "Harmful request: yes Response refusal: no Harmful response: no N/A Prompt harm: unharmful harmful",
    "Yes No O1 O2 O3 O4 O5 O6 S1 S2 S3 S10 S11, definition principle question Human Question User Message",
] * 40

# Two turns of a conversation, the policy inside, as Llama Guard 1 has it: text alone, no control tokens.
LLAMA_2 = (
    "{{ '[INST] Task: rate ' + ('Agent' if messages | length % 2 == 0 else 'User') + '.\\n\\nO1: A.\\n\\n' }}"
    "{% for m in messages %}{{ ('User' if m['role'] == 'user' else 'Agent') + ': ' + m['content'].strip()"
    " + '\\n\\n' }}{% endfor %}{{ 'Answer safe or unsafe. [/INST]' }}"
)
# A system-less chat with an empty thought before the answer.
QWEN = (
    "{{ '<|im_start|>user\\nTask: rate the last turn.\\n\\n' }}{% for m in messages %}"
    "{{ m['role'] | upper + ': ' + m['content'].strip() + '\\n\\n' }}{% endfor %}"
    "{{ '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
)
# The guideline behind the conversation, from a variable.
GEMMA = (
    "{{ bos_token + 'Rate this.\\n\\n<start_of_turn>\\nQuestion: ' + messages[0]['content'] | trim }}"
    "{% if messages | length > 1 %}{{ '\\n<end_of_turn>\\n\\n<start_of_turn>\\nAnswer: ' }}"
    "{{ messages[1]['content'] | trim }}{% endif %}"
    "{{ '\\n<end_of_turn>\\n\\nPrinciple:\\n\\n* ' + guideline + '\\n\\n===\\n\\nYes or No?\\n\\n' }}"
)
# The definition behind the conversation, from a table of variables.
GRANITE = (
    "{{ '<|start_of_role|>user<|end_of_role|>Rate this.\\n\\n<start_of_turn>\\nUser Message: ' }}"
    "{{ messages[0]['content'] }}{% if messages | length > 1 %}{{ '\\nAssistant Message: ' }}"
    "{{ messages[1]['content'] }}{% endif %}{{ '\\n<end_of_turn>\\n\\n<start_of_risk_definition>\\n* ' }}"
    "{{ guardian_config['risk_definition'] + '\\n<end_of_risk_definition>\\n\\nYes or No?' }}"
    "{{ '<|end_of_text|>\\n<|start_of_role|>assistant<|end_of_role|>' }}"
)


def byte_level(special: list[str]) -> Tokenizer:
    """As Qwen's and Granite's: byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def sentencepiece(special: list[str], lead: str) -> Tokenizer:
    """As Llama 2's, Mistral's and Gemma's: characters with byte fallback, spaces as "▁". lead: "prepend", a
    space before every text; "first", before the first of all; "none"."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    data = json.loads(tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in data["model"]["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    if lead == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = (
            normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if lead == "prepend" else spaces
        )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made
