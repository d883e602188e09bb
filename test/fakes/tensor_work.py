"""Work for `fakes.ranks`: shared text encoders."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
import transformers

from fakes import encoders_zoo
from safelight import config as configuration
from safelight.models.loading import load_pipeline
from safelight.parallel import tensor
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh

if TYPE_CHECKING:
    from fakes.ranks import RankPool

CPU = torch.device("cpu")

IDS = torch.tensor(
    [[5, 9, 258, 3, 200, 17, 64, 65, 2], [130, 7, 195, 194, 129, 2, 0, 0, 0]], dtype=torch.int64
)
"""Words of every rank's share, and padding."""
MASK = (IDS != 0).long()


class Encoded(NamedTuple):
    """What an encoder made of `IDS`, where they are no padding."""

    hidden: list[numpy.ndarray[Any, Any]]
    """[words, width] of every layer"""
    logits: numpy.ndarray[Any, Any] | None
    """[words, vocabulary]"""


class Shared(NamedTuple):
    """One rank's account of a shared encoder."""

    encoded: Encoded
    nbytes: int
    traffic: dict[str, int]
    own: bool
    """Whether the encoder is of transformers' own class."""
    dtypes: set[str]
    plain: bool
    """Whether outputs are tensors, and weights nobody's to train."""


def encode(model: Any) -> Encoded:
    """Every layer's output, under inference mode as on ranks."""
    with torch.inference_mode():
        found = model(IDS, attention_mask=MASK, output_hidden_states=True)
    rows = MASK.bool()
    hidden = [layer[rows].float().numpy() for layer in found.hidden_states]
    if "last_hidden_state" in found:
        hidden.append(found.last_hidden_state[rows].float().numpy())
    logits = found.logits[rows].float().numpy() if "logits" in found else None
    return Encoded(hidden, logits)


def mesh_of(tp: int, world: int) -> Mesh:
    return Mesh.create(Layout(ulysses=world, tp=tp), CPU)


def share(
    rank: int, directory: Path, tp: int, world: int, dtype: torch.dtype = torch.float32
) -> Shared:
    """Load this rank's share of a text encoder and encode with it."""
    mesh = mesh_of(tp, world)
    model = tensor.load_encoder(directory, encoders_zoo.COMPONENT, mesh, dtype, CPU)
    mesh.traffic.take()
    with torch.inference_mode():
        first = model(IDS, attention_mask=MASK)[0]
    traffic = mesh.traffic.take()
    plain = type(first) is torch.Tensor and not any(p.requires_grad for p in model.parameters())
    return Shared(
        encode(model),
        nbytes(model),
        traffic,
        type(model) is getattr(transformers, type(model).__name__),
        {f"{name.rsplit('.', 2)[-2]} {p.dtype}" for name, p in model.named_parameters()},
        plain,
    )


def nbytes(model: torch.nn.Module) -> int:
    """Of weights and buffers; more if they are views of something larger."""
    tensors = (*model.parameters(), *model.buffers())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def refusal(rank: int, directory: Path, tp: int, world: int) -> str:
    """The error of loading, and what it is."""
    try:
        tensor.load_encoder(
            directory, encoders_zoo.COMPONENT, mesh_of(tp, world), torch.float32, CPU
        )
    except Exception as failure:  # noqa: BLE001  which one it is, is the question
        return f"{type(failure).__name__}: {failure}"
    return "loaded"


def generate(rank: int, directory: Path, tp: int, world: int) -> list[int]:
    """Words a shared encoder goes on with."""
    model: Any = tensor.load_encoder(
        directory, encoders_zoo.COMPONENT, mesh_of(tp, world), torch.float32, CPU
    )
    return continued(model)


def continued(model: Any) -> list[int]:
    words = model.generate(IDS[:1], attention_mask=MASK[:1], do_sample=False, max_new_tokens=4)
    return [int(word) for word in words[0]]


def look(rank: int, directory: Path, tp: int, world: int) -> numpy.ndarray[Any, Any]:
    """What a shared encoder makes of words and a picture."""
    mesh = mesh_of(tp, world)
    return seen(tensor.load_encoder(directory, encoders_zoo.COMPONENT, mesh, torch.float32, CPU))


def seen(model: Any) -> numpy.ndarray[Any, Any]:
    """[words, width] of words with a picture of 2 x 2 patches among them, for Qwen2.5-VL."""
    words = torch.tensor([[5, 252, 250, 250, 250, 250, 253, 9]])
    patches = torch.randn(4, 3 * 2 * 2 * 2, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model(
            input_ids=words,
            attention_mask=torch.ones_like(words),
            pixel_values=patches,
            image_grid_thw=torch.tensor([[1, 2, 2]]),
            mm_token_type_ids=(words == 250).int(),
            output_hidden_states=True,
        )
    return found.hidden_states[-1][0].numpy()


def encode_prompt(rank: int, directory: Path, tp: int, world: int) -> numpy.ndarray[Any, Any]:
    """Embeddings of a whole `WanPipeline` with a shared text encoder."""
    from diffusers import WanPipeline

    config = configuration.build({"model_path": str(directory), "device": "cpu"})
    pipeline = load_pipeline(WanPipeline, directory, config, mesh_of(tp, world))
    return prompt_embeddings(pipeline)


def prompt_embeddings(pipeline: Any) -> numpy.ndarray[Any, Any]:
    """[2, 32, width]: of a prompt and a negative one."""
    with torch.inference_mode():
        embeddings = pipeline.encode_prompt("A lamp in a darkroom", "fog", max_sequence_length=32)
    return torch.cat(embeddings).numpy()


# ------------------------------------------------------------------------------------------ memory


def peak(rank: int, directory: Path, tp: int, world: int, dtype: torch.dtype) -> int:
    """By how many bytes the resident memory of this rank rose at most while it loaded its share."""
    mesh = mesh_of(tp, world)
    component = encoders_zoo.COMPONENT
    return rise(lambda: tensor.load_encoder(directory, component, mesh, dtype, CPU))


def peak_whole(rank: int, directory: Path, dtype: torch.dtype) -> int:
    """The same of loading the whole encoder."""
    return rise(lambda: encoders_zoo.load_whole(directory, dtype))


def rise(load: Callable[[], torch.nn.Module]) -> int:
    """The peak of resident memory over its level before, in bytes.

    Weights are read through once, as those that stay in mapped files are not in memory before.
    """
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept, would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before = _status("VmRSS")
    model = load()
    for parameter in model.parameters():
        parameter.detach().amax()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


# ------------------------------------------------------------------------------------------- rows


class Row(NamedTuple):
    """An encoder shared by some ranks, against the whole one."""

    encoder: str
    degree: int
    difference: float
    """Largest difference of any layer's output, relative to the largest value there."""
    share: float
    """Bytes of weights and buffers of the rank with the most, as a part of the whole's."""
    same_bits: bool
    """Whether all ranks got the same outputs."""


def compare(encoder: str, directory: Path, ranks: RankPool, degree: int) -> Row:
    """Share the encoder in `directory` by groups of `degree` ranks, and compare."""
    whole = encoders_zoo.load_whole(directory)
    shares = ranks.run(share, directory, degree, ranks.size)
    return Row(
        encoder,
        degree,
        max(difference(one.encoded, encode(whole)) for one in shares),
        max(one.nbytes for one in shares) / nbytes(whole),
        all(same_bits(one.encoded, shares[0].encoded) for one in shares),
    )


def rows(directory: Path, pools: dict[int, RankPool]) -> list[Row]:
    """Every encoder of the zoo × every pool's size, for the tables in `docs/`."""
    found = []
    for name, build in encoders_zoo.ENCODERS.items():
        written = encoders_zoo.write(build(), directory / name)
        found += [compare(name, written, pool, degree) for degree, pool in pools.items()]
    return found


def difference(one: Encoded, other: Encoded) -> float:
    """The largest of all layers, each relative to its largest value."""
    return max(
        float(numpy.abs(a - b).max() / numpy.abs(b).max())
        for a, b in zip(_tensors(one), _tensors(other), strict=True)
    )


def same_bits(one: Encoded, other: Encoded) -> bool:
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(numpy.array_equal(a, b) for a, b in pairs)


def _tensors(encoded: Encoded) -> list[numpy.ndarray[Any, Any]]:
    return encoded.hidden + ([] if encoded.logits is None else [encoded.logits])
