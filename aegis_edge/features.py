"""What a decoder has beyond Llama's: a record in the manifest (`model.features`), every field optional.

The exporter folds what it can into the weights (embedding, residual, query and logit multipliers, 1 + w of
Gemma's norms); only what is left is here, and an engine that lacks one of these refuses the guard by its
name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from aegis_edge.errors import ArtifactError

ACTIVATIONS = ("silu", "gelu_tanh")
_MAX_WINDOW = 1 << 20
_MAX_TABLES = 4


@dataclass(frozen=True)
class Features:
    """The defaults are Llama's decoder.

    activation         of the MLP's gate: silu, or GELU by its tanh formula
    qk_norm            RMSNorm over each head of queries and keys, before rotary
    out_norms          RMSNorm over what attention and MLP give, before it is added to the residual stream
    attention_softcap  c: attention scores become c tanh(score / c); 0: as they are
    logit_softcap      the same of the LM head's logits
    windows            of each layer, how many tokens back a token sees, itself included; 0, or (): all
    rope_of            of each layer, its table in `rope.inverse_frequency`; (): rope_theta, rope_scaling
    rope_factors       of each rotary table, the factor on cos and sin
    input_block        Hadamard transform in blocks before qkv and gate_up; 0: none
    """

    activation: str = "silu"
    qk_norm: bool = False
    out_norms: bool = False
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    windows: tuple[int, ...] = ()
    rope_of: tuple[int, ...] = ()
    rope_factors: tuple[float, ...] = ()
    input_block: int = 0

    def names(self) -> list[str]:
        """What an engine of Llama's decoder lacks, in words for a refusal."""
        table = {
            "a GELU gate": self.activation != "silu",
            "query and key norms": self.qk_norm,
            "norms after attention and MLP": self.out_norms,
            "an attention soft cap": self.attention_softcap > 0,
            "a logit soft cap": self.logit_softcap > 0,
            "a sliding window": any(self.windows),
            "rotary tables": bool(self.rope_of),
            "a Hadamard transform of its inputs": self.input_block > 0,
        }
        return [name for name, has in table.items() if has]

    def window(self, layer: int) -> int:
        """Of one layer; 0: none."""
        return self.windows[layer] if self.windows else 0

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        default = asdict(Features())
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value != default[key]
        }

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Features:
        """Of the manifest's `model` section, whose sizes have been checked; raises ArtifactError for anything
        that is not exactly what `to_json` writes.
        """
        data = model.get("features")
        if data is None:
            return cls()
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or not set(data) <= known:
            raise _bad(data)
        lists: dict[str, Any] = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        features = cls(**{**data, **lists})
        if not features._is_sound(model):
            raise _bad(data)
        return features

    def _is_sound(self, model: Mapping[str, Any]) -> bool:
        layers, hidden = model["layers"], model["hidden"]
        tables, block = len(self.rope_factors), self.input_block if type(self.input_block) is int else -1
        return (
            self.activation in ACTIVATIONS
            and type(self.qk_norm) is bool
            and type(self.out_norms) is bool
            and all(_is_number(cap, 0.0, 1e6) for cap in (self.attention_softcap, self.logit_softcap))
            and _are_ints(self.windows, layers, _MAX_WINDOW)
            and _are_ints(self.rope_of, layers, tables - 1)
            and bool(self.rope_of) == bool(tables)
            and isinstance(self.rope_factors, tuple)
            and tables <= _MAX_TABLES
            and all(_is_number(factor, 1e-3, 1e3) for factor in self.rope_factors)
            and (block == 0 or (16 <= block <= 512 and block & (block - 1) == 0 and hidden % block == 0))
        )


def _are_ints(values: Any, count: int, largest: int) -> bool:
    """Empty, or one integer a layer in 0..largest."""
    if not isinstance(values, tuple):
        return False
    return not values or (
        len(values) == count and all(type(value) is int and 0 <= value <= largest for value in values)
    )


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def _bad(data: Any) -> ArtifactError:
    return ArtifactError(
        f"aegis.json: model.features {data!r} is not what this version reads",
        hint="export the guard again with this version, or install the version that wrote it",
    )
