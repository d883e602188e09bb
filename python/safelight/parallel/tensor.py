"""Tensor-parallel text encoders: every rank holds a share of the weights and reads only that.

The weights are cut as `parallel/encoders.py` plans. A rank computes its own heads and its own
columns of the feed-forward layers; what they add to the residual stream is summed over the ranks,
so that everything outside attention and feed-forward, and the output, is the same bits on every
rank. Outputs are plain tensors, and the object is of the pipeline's own class.

Loading stays with transformers' ``from_pretrained(None, config=…, state_dict=…)``, so renamed keys
of older checkpoints, tied weights and layers kept in float32 are its business, as ever. It is given
layers cut to size (right after their construction, on the meta device) and, as the state, slices of
the safetensors files: views of mapped memory, of which only what a rank keeps is ever copied.
A key that were cut differently from its layer would not fit and fail the loading.

Why not transformers' own ``from_pretrained(distributed_config=…)``: its mesh must span all ranks,
it picks the device from LOCAL_RANK, it has no plan for T5 and UMT5, and its interface is still
changing from release to release. Why not torch's `parallelize_module`: it distributes weights that
are loaded already, and wraps inputs and outputs as DTensor, which the layers below do not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from safelight.errors import ConfigError
from safelight.parallel import encoders
from safelight.parallel.encoders import Cut, Family
from safelight.parallel.mesh import Mesh
from safelight.parallel.traffic import Traffic

AXIS = "tp"
"""In the counts of traffic."""


def load_encoder(
    directory: Path, component: str, mesh: Mesh, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """This rank's share of one text encoder of the pipeline in `directory`.

    `mesh` must have a `tp_mesh`. Raises `ConfigError`, before weights are read, if the component is
    left whole or its heads cannot be shared evenly, and if the files lack some of its weights.
    """
    assert mesh.tp_mesh is not None
    peers = Peers(
        mesh.tp_mesh.get_group(), mesh.tp_mesh.get_local_rank(), mesh.tp_mesh.size(), mesh.traffic
    )
    family = encoders.plan(directory, component, peers.size)
    folder = directory / component
    whole = getattr(transformers, encoders.class_name(directory, component))
    state = dict(_shares(folder, family, peers))
    mapped = {part.untyped_storage().data_ptr() for part in state.values()}
    model, report = _cut_at_birth(whole, lambda born: cut(born, family, peers)).from_pretrained(
        None,
        config=whole.config_class.from_pretrained(folder, local_files_only=True),
        generation_config=_generation(folder),
        state_dict=state,
        dtype=dtype,
        output_loading_info=True,
    )
    del state
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"The weights in {folder} lack {missing}.", param="model_path")
    model.__class__ = whole
    _own(model, mapped, device)
    return model.requires_grad_(False).to(device)


def _cut_at_birth(whole: type, trim: Callable[[nn.Module], None]) -> Any:
    """`whole`, whose instances are trimmed before `from_pretrained` fills them.

    It has the name and the module of the original: by these transformers finds what to rename.
    """

    def construct(self: Any, config: Any) -> None:
        super(born, self).__init__(config)
        trim(self)

    born: Any = type(
        whole.__name__, (whole,), {"__init__": construct, "__module__": whole.__module__}
    )
    return born


def _generation(folder: Path) -> Any:
    """The settings of `generate`; None if the folder has none."""
    if not (folder / "generation_config.json").is_file():
        return None
    return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)


def _own(model: nn.Module, mapped: set[int], device: torch.device) -> None:
    """Copy what still lies in the mapped files to memory of `device`, so that these can be closed.

    Weights whose precision was changed on loading have their own memory already.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.untyped_storage().data_ptr() in mapped:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            tensor.data = copy.copy_(tensor.detach())


# -------------------------------------------------------------------------------- cutting weights


def _shares(folder: Path, family: Family, peers: Peers) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's part of every tensor in the folder's safetensors files, as views of them."""
    for path in encoders.weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no mapping
                layer, _, parameter = key.rpartition(".")
                whole = file.get_slice(key)
                yield key, whole[_part(whole.get_shape(), family.cut(layer), parameter, peers)]


def _part(shape: list[int], cut: Cut | None, parameter: str, peers: Peers) -> tuple[slice, ...]:
    """What this rank keeps of a layer's "weight" or "bias" of that shape."""
    part = [slice(0, size) for size in shape]
    if cut in (Cut.OUTPUTS, Cut.VOCABULARY, Cut.LOGITS):
        part[0] = peers.share(shape[0])
    elif cut in (Cut.INPUTS, Cut.HEADS) and parameter == "weight":
        part[1] = peers.share(shape[1])
    return tuple(part)


def cut(model: nn.Module, family: Family, peers: Peers) -> None:
    """Cut the layers of a whole encoder to this rank's share, in place; weights become empty.

    Its parameters should be on the meta device, where whole ones take no memory.
    """
    layers: dict[nn.Module, nn.Module] = {}
    """What replaces a module, which may be in the model by several names."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if family.counting(name):
            for attribute in family.counts:
                setattr(module, attribute, getattr(module, attribute) // peers.size)
        if found := family.cut(name):
            if module not in layers:
                layers[module] = _layer(module, found, peers)
            model.set_submodule(name, layers[module])


def _layer(whole: nn.Module, cut: Cut, peers: Peers) -> nn.Module:
    weights = {
        name: _empty(parameter, _part(list(parameter.shape), cut, name, peers))
        for name, parameter in whole.named_parameters(recurse=False)
    }
    weight, bias = weights["weight"], weights.get("bias")
    rows = whole.get_parameter("weight").shape[0]
    match cut:
        case Cut.OUTPUTS:
            return Share(weight, bias)
        case Cut.INPUTS:
            return SummedShare(weight, bias, peers)
        case Cut.LOGITS:
            return GatheredShare(weight, bias, peers, rows)
        case Cut.VOCABULARY:
            return VocabularyShare(weight, peers, rows)
    return TableShare(weight)


def _empty(whole: nn.Parameter, part: tuple[slice, ...]) -> nn.Parameter:
    shape = [kept.stop - kept.start for kept in part]
    return nn.Parameter(torch.empty(shape, dtype=whole.dtype, device=whole.device))


# ---------------------------------------------------------------------------------- layers to share


@dataclass(frozen=True)
class Peers:
    """The ranks that share an encoder, as one of them sees it."""

    group: dist.ProcessGroup
    rank: int
    """This one's place among them."""
    size: int
    traffic: Traffic

    def share(self, length: int) -> slice:
        """This rank's part of so many rows: equal parts, of which the last may be shorter."""
        part = -(-length // self.size)
        return slice(min(self.rank * part, length), min((self.rank + 1) * part, length))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of everybody's, written into `tensor`; the same bits on every rank."""
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, group=self.group)
        self.traffic.all_reduce(AXIS, tensor.nbytes, self.size)
        return tensor

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Everybody's, of one shape, in the order of ranks."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self.group)
        self.traffic.all_gather(AXIS, tensor.nbytes, self.size)
        return parts


class Share(nn.Linear):
    """A linear layer with some of the outputs."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight, self.bias = weight, bias  # type: ignore[assignment]


class SummedShare(Share):
    """A linear layer with some of the inputs: every rank gets the whole outputs."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, peers: Peers) -> None:
        super().__init__(weight, bias)
        self._peers = peers

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        outputs = self._peers.sum(functional.linear(input, self.weight))
        return outputs if self.bias is None else outputs + self.bias


class GatheredShare(Share):
    """A head with the logits of some of the words: every rank gets all of them."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, peers: Peers, words: int
    ) -> None:
        super().__init__(weight, bias)
        self._peers = peers
        self._words = words

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        logits = super().forward(input)
        short = -(-self._words // self._peers.size) - logits.shape[-1]
        parts = self._peers.gather(functional.pad(logits, (0, short)).contiguous())
        return torch.cat(parts, -1)[..., : self._words]


class VocabularyShare(nn.Embedding):
    """An embedding with some of the words: every rank gets the vectors of all."""

    def __init__(self, weight: nn.Parameter, peers: Peers, words: int) -> None:
        super().__init__(weight.shape[0], weight.shape[1], device="meta")
        self.weight = weight
        self._peers = peers
        self._first = peers.share(words).start

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        own = input - self._first
        others = (own < 0) | (own >= self.num_embeddings)
        vectors = functional.embedding(own.masked_fill(others, 0), self.weight)
        return self._peers.sum(vectors.masked_fill(others[..., None], 0))


class TableShare(nn.Embedding):
    """An embedding with some of the columns."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight.shape[0], weight.shape[1], device="meta")
        self.weight = weight
