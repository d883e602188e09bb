"""Which text encoders ranks can share, from a checkpoint's JSON files, and how.

Needs no torch: the entrypoint and `doctor` ask it before any weight is read; `parallel/tensor.py`
does what the plans here say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from safelight.errors import ConfigError


class Cut(Enum):
    """What a rank keeps of a layer's weight, and what that makes of the layer's output."""

    OUTPUTS = "outputs"
    """Rows of a linear [outputs, inputs] and of its bias: these outputs, or heads, are the
    rank's own."""
    INPUTS = "inputs"
    """Columns of a linear that takes what `OUTPUTS` made: outputs are summed over the ranks."""
    VOCABULARY = "vocabulary"
    """Rows of an embedding [vocabulary, width]: lookups are summed over the ranks."""
    LOGITS = "logits"
    """Rows of the head [vocabulary, width]: logits are gathered from the ranks."""
    HEADS = "heads"
    """Columns of a table [buckets, heads]: the biases of the rank's own heads."""


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """How encoders of one `model_type` are shared."""

    heads: dict[str, int]
    """Config key -> its default in transformers, which a config file may leave out; None in the
    file means as many as the first."""
    cuts: dict[str, Cut]
    """Pattern of the last part of a layer's name -> cut. It holds for modules and for the keys of
    files alike: what transformers renames in old checkpoints are the first parts."""
    attention: str = ""
    """Pattern of modules that count their heads."""
    counts: tuple[str, ...] = ()
    """Their attributes that are divided by the ranks."""

    def cut(self, name: str) -> Cut | None:
        """Of the module `name`; None if it is whole on every rank."""
        return next((cut for end, cut in self.cuts.items() if _ends(name, end)), None)

    def counting(self, name: str) -> bool:
        """Whether the module `name` has `counts`."""
        return bool(self.attention) and _ends(name, self.attention)


def _ends(name: str, pattern: str) -> bool:
    return re.fullmatch(rf"(.*\.)?(?:{pattern})", name) is not None


_T5_CUTS = {
    r"SelfAttention\.[qkv]": Cut.OUTPUTS,
    r"SelfAttention\.o": Cut.INPUTS,
    r"SelfAttention\.relative_attention_bias": Cut.HEADS,
    r"DenseReluDense\.wi(_[01])?": Cut.OUTPUTS,
    r"DenseReluDense\.wo": Cut.INPUTS,
    r"shared|embed_tokens": Cut.VOCABULARY,
}
# Vision towers have no `layers.N.self_attn` or `layers.N.mlp`, so they stay whole.
_DECODER_CUTS = {
    r"layers\.\d+\.self_attn\.[qkv]_proj": Cut.OUTPUTS,
    r"layers\.\d+\.self_attn\.o_proj": Cut.INPUTS,
    r"layers\.\d+\.mlp\.(gate|up)_proj": Cut.OUTPUTS,
    r"layers\.\d+\.mlp\.down_proj": Cut.INPUTS,
    r"embed_tokens": Cut.VOCABULARY,
    r"lm_head": Cut.LOGITS,
}


def _t5(heads: int) -> Family:
    return Family(
        heads={"num_heads": heads},
        cuts=_T5_CUTS,
        attention="SelfAttention",
        counts=("n_heads", "inner_dim"),
    )


def _decoder(heads: int, key_value_heads: int) -> Family:
    return Family(
        heads={"num_attention_heads": heads, "num_key_value_heads": key_value_heads},
        cuts=_DECODER_CUTS,
    )


FAMILIES: dict[str, Family] = {
    "t5": _t5(8),
    "umt5": _t5(6),
    "qwen2_5_vl": _decoder(64, 8),
    "qwen3": _decoder(32, 32),
    "mistral": _decoder(32, 8),
    "mistral3": _decoder(32, 8),
}
"""By `model_type`. The language model of a vision-language one has its numbers in `text_config`,
or beside the rest in checkpoints of transformers 4."""


def shardable(config: Mapping[str, Any]) -> int | str:
    """The number of heads that the ranks must share evenly, from an encoder's `config.json`.

    Key and value heads count as well: it is their greatest common divisor with the query heads.
    A text if the encoder is left whole: why, to be read after its name.
    """
    kind = config.get("model_type", "")
    if str(kind).startswith("clip"):
        return "is a CLIP, too small to be worth sharing"
    if kind not in FAMILIES:
        return f"is of type {kind or 'unknown'}, for which there is no plan"
    if config.get("quantization_config"):
        return "is quantized, so its weights cannot be cut"
    numbers = config.get("text_config") or config
    counts = [numbers.get(key, usual) for key, usual in FAMILIES[kind].heads.items()]
    return math.gcd(*(count or counts[0] for count in counts))


def survey(directory: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Of the pipeline in `directory`: text encoder -> heads to share, and -> why it stays whole."""
    heads: dict[str, int] = {}
    whole: dict[str, str] = {}
    for component in text_encoders(directory):
        found = shardable(_read(directory / component / "config.json"))
        if isinstance(found, int):
            heads[component] = found
        else:
            whole[component] = found
    return heads, whole


def text_encoders(directory: Path) -> Iterator[str]:
    """Components of the pipeline that are text encoders of transformers, in order."""
    for component, value in _read(directory / "model_index.json").items():
        if component.startswith("text_encoder") and isinstance(value, list):
            library, name = value
            if library == "transformers" and name:
                yield component


def class_name(directory: Path, component: str) -> str:
    """The transformers class of a component."""
    return str(_read(directory / "model_index.json")[component][1])


def plan(directory: Path, component: str, ranks: int) -> Family:
    """How `ranks` share the component.

    Raises `ConfigError` if it is left whole, or if they cannot share it evenly: then with the
    degrees that fit.
    """
    config = _read(directory / component / "config.json")
    found = shardable(config)
    if isinstance(found, str):
        raise ConfigError(
            f"The text encoder {component} cannot be shared by ranks: it {found}.", param="tp_size"
        )
    if found % ranks:
        fits = ", ".join(str(n) for n in range(1, min(found, 16) + 1) if found % n == 0)
        raise ConfigError(
            f"--tp-size {ranks} cannot share out the {found} attention heads of {component} "
            f"evenly; {fits} fit.",
            param="tp_size",
        )
    return FAMILIES[config["model_type"]]


def weight_files(folder: Path) -> list[Path]:
    """An encoder's safetensors files; not those of variants, which may lie beside them.

    Raises `ConfigError` if there are none.
    """
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = _read(folder / "model.safetensors.index.json")
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ConfigError` if there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as failure:
        raise ConfigError(f"{path} cannot be read: {failure}.", param="model_path") from failure
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a JSON object.", param="model_path")
    return found
