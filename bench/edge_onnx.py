"""The ONNX graph that TensorRT Edge-LLM 0.11 exports, run by ONNX Runtime on a CPU.

All of it is standard operators but `AttentionPlugin`, which only NVIDIA's runtime has: packed rows of
queries, keys and values [T, (Hq + 2 Hkv) d] -> rotary embedding (rows of cosines and sines, half a head
apart) -> causal attention [T, Hq, d]. It is replaced by standard operators in fp32. Not seen here: the plugin
itself and its pages of cached keys and values, whose inputs are taken out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aegis_edge.errors import ScorerError

if TYPE_CHECKING:
    import onnx

GRAPH = Path("onnx", "llm", "model.onnx")  # in an exported folder, where its README's command puts it
_HIDDEN = -1e9  # added to the scores of what a token does not see


class EdgeOnnx:
    """A graph as `Ask`: all paths in one pass, what they share with the policy once."""

    def __init__(self, file: Path, root: Sequence[int]) -> None:
        """Raises ScorerError for a graph that is not of the form above."""
        import onnx
        import onnxruntime
        from safetensors.numpy import load_file

        about = json.loads((file.parent / "config.json").read_text("utf-8"))
        self._root = list(root)
        self._embedding = load_file(file.parent / "embedding.safetensors")["embedding"]
        kept = load_file(file.parent / "vocab_map.safetensors")["vocab_map"]
        self._row = {int(token): row for row, token in enumerate(kept)}
        scaling = (about.get("rope_scaling") or {}).get("rope_type", "default")
        if scaling != "default":
            raise ScorerError(f"{file}: rotary scaling {scaling!r} is not run here")
        half = np.arange(0, about["head_dim"], 2, dtype=np.float64) / about["head_dim"]
        self._frequency = about["rope_theta"] ** -half
        model = onnx.load(str(file))
        replace_attention(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, paths: list[list[int]], tokens: list[int]) -> list[list[float]]:
        """See scoring.tokens.Ask; every path begins with the policy."""
        n = len(self._root)
        if any(path[:n] != self._root for path in paths):
            raise ScorerError("a path that does not begin with the exported policy")
        rests = [path[n:] for path in paths]
        ids = np.array(self._root + [i for rest in rests for i in rest])
        owner = np.repeat(np.arange(len(rests) + 1), [n, *map(len, rests)])
        depth = np.concatenate([np.arange(n), *(n + np.arange(len(rest)) for rest in rests)])
        sees = (owner == 0)[None] | (owner[:, None] == owner[None])
        sees &= depth[None] <= depth[:, None]
        angles = depth[:, None] * self._frequency
        given = {
            "inputs_embeds": self._embedding[ids],
            "rope_rotary_cos_sin": np.concatenate((np.cos(angles), np.sin(angles)), 1).astype(np.float32),
            "logits_indices": n - 1 + np.cumsum([len(rest) for rest in rests]),
            "mask": np.where(sees, 0.0, _HIDDEN).astype(np.float32),
        }
        logits = self._session.run(["logits"], given)[0]
        columns = [self._row[token] for token in tokens]
        return [[float(x) for x in row[columns]] for row in logits]


def replace_attention(model: onnx.ModelProto) -> None:
    """Put standard operators for every AttentionPlugin, in place; a new input `mask` [T, T] is added to the
    scores. Raises ScorerError where one does more than plain attention."""
    from onnx import TensorProto, helper

    graph, nodes = model.graph, []
    for index, node in enumerate(graph.node):
        if node.op_type != "AttentionPlugin":
            nodes.append(node)
            continue
        has = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        more = [name for name, value in has.items() if name.startswith("enable_") and value]
        if more or has["sliding_window_size"] > 0:
            raise ScorerError(f"AttentionPlugin does more than attention: {more or 'a sliding window'}")
        nodes += _attention(index, node, has)
    if len(nodes) == len(graph.node):
        raise ScorerError("a graph without AttentionPlugin")
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    inputs = [given for given in graph.input if given.name in used]
    del graph.input[:]
    graph.input.extend([*inputs, helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["t", "t"])])
    outputs = [made for made in graph.output if made.name == "logits"]
    del graph.output[:]
    graph.output.extend(outputs)


def _attention(index: int, node: Any, has: dict[str, Any]) -> list[Any]:
    """The nodes of one attention; names begin with its index."""
    from onnx import TensorProto, helper, numpy_helper

    heads, kv, size = (int(has[name]) for name in ("num_q_heads", "num_kv_heads", "head_size"))
    made: list[Any] = []

    def op(kind: str, *inputs: str, count: int = 1, **attributes: Any) -> list[str]:
        outputs = [f"attention{index}_{len(made)}_{i}" for i in range(count)]
        made.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def constant(values: Sequence[float], dtype: Any = np.int64) -> str:
        return op("Constant", value=numpy_helper.from_array(np.array(values, dtype)))[0]

    def by_head(rows: str, count: int) -> str:  # [T, count * d] -> [count, T, d]
        split = op("Reshape", rows, constant([-1, count, size]))[0]
        return op("Transpose", split, perm=[1, 0, 2])[0]

    cosine, sine = op("Split", "rope_rotary_cos_sin", axis=1, num_outputs=2, count=2)

    def turned(x: str) -> str:
        a, b = op("Split", x, axis=2, num_outputs=2, count=2)
        parts = [op("Mul", *pair)[0] for pair in ((a, cosine), (b, sine), (b, cosine), (a, sine))]
        return op("Concat", op("Sub", *parts[:2])[0], op("Add", *parts[2:])[0], axis=2)[0]

    def shared(x: str) -> str:  # a key head for each of its query heads
        repeated = op("Gather", x, constant([i // (heads // kv) for i in range(heads)]), axis=0)
        return repeated[0]

    rows = op("Cast", node.input[0], to=TensorProto.FLOAT)[0]
    sizes = constant([heads * size, kv * size, kv * size])
    q, k, v = op("Split", rows, sizes, axis=1, count=3)
    keys = op("Transpose", shared(turned(by_head(k, kv))), perm=[0, 2, 1])[0]
    scores = op("MatMul", turned(by_head(q, heads)), keys)[0]
    scaled = op("Mul", scores, constant(has["attention_scale"], np.float32))[0]
    weights = op("Softmax", op("Add", scaled, "mask")[0], axis=-1)[0]
    out = op("Transpose", op("MatMul", weights, shared(by_head(v, kv)))[0], perm=[1, 0, 2])[0]
    made.append(helper.make_node("Cast", [out], [node.output[0]], to=TensorProto.FLOAT16))
    return made
