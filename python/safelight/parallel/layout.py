"""How a number of devices is shared out, completed and checked before anything is loaded.

``num_gpus = dp × spare × cfg × ring × ulysses``; tensor-parallel encoders and the parallel VAE use
the ranks that are there. Needs no torch: the entrypoint, the supervisor and `doctor` ask it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from safelight.config import ParallelConfig
from safelight.errors import ConfigError


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The degrees of one engine. Axes are ordered from the slowest to the fastest: neighbours in
    rank are neighbours in `ulysses`, which talks the most."""

    dp: int = 1
    """Replicas: worker groups that share nothing but the scheduler."""
    spare: int = 1
    """Ranks that repeat the transformer's work, there for the encoders or the VAE alone."""
    cfg: int = 1
    """2: the conditional and the unconditional half on different ranks."""
    ring: int = 1
    ulysses: int = 1
    tp: int = 1
    """Ranks that share a text encoder."""

    @property
    def sp(self) -> int:
        """Ranks that share one sequence."""
        return self.ring * self.ulysses

    @property
    def group_size(self) -> int:
        """Ranks of one replica."""
        return self.spare * self.cfg * self.sp

    @property
    def num_gpus(self) -> int:
        return self.dp * self.group_size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a replica's mesh, as `AXES`."""
        return (self.spare, self.cfg, self.ring, self.ulysses)

    @property
    def even(self) -> bool:
        """Whether a sequence must divide evenly: diffusers has no padding where ring and Ulysses
        are combined."""
        return self.ring > 1 and self.ulysses > 1

    def flags(self) -> str:
        """The command line that asks for it."""
        parts = [f"--num-gpus {self.num_gpus}"]
        if self.dp > 1:
            parts.append(f"--dp-size {self.dp}")
        if self.cfg > 1:
            parts.append(f"--cfg-parallel-size {self.cfg}")
        if self.sp > 1 or self.spare > 1:
            parts += [f"--ulysses-degree {self.ulysses}", f"--ring-degree {self.ring}"]
        if self.tp > 1:
            parts.append(f"--tp-size {self.tp}")
        return " ".join(parts)


def threads(configured: int, cores: int, ranks: int) -> int:
    """Torch threads of a rank on the CPU: as configured, else an equal share of the cores."""
    return configured or max(1, cores // ranks)


AXES = ("spare", "cfg", "ring", "ulysses")


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model can be shared out; read from its JSON files."""

    transformer: str
    """Class name."""
    heads: int
    """Attention heads of the transformer."""
    width: int = 0
    """Of its hidden states."""
    feed_forward: int = 0
    """Width of the feed-forward layers' inside."""
    sequence: bool = True
    """Whether its sequence can be split: there is a plan for it."""
    masked: bool = False
    """Whether its attention may take a mask."""
    cached: bool = False
    """Whether it runs with a step cache."""
    guided: bool = True
    """Whether it runs a conditional and an unconditional forward."""
    encoder_heads: dict[str, int] = {}
    """Text encoder component -> heads that tensor parallelism must share out evenly."""
    encoders_whole: dict[str, str] = {}
    """Text encoder component -> why it is left whole."""


def complete(given: ParallelConfig) -> Layout:
    """The layout from what was given; the rest as SGLang completes it.

    Ranks that no degree claims go to sequence parallelism, as Ulysses; where its degrees are all
    given, to replicas. Raises `ConfigError` saying what does not fit together and what would.
    """
    cfg, sp = _cfg(given), _given_sp(given)
    total = given.num_gpus or _implied(given, cfg, sp)
    dp = given.dp_size or _replicas(given, total, cfg, sp)
    if total % dp:
        raise _misfit(
            given, total, f"{_several(total, 'GPU')} cannot be shared by {dp} replicas (--dp-size)"
        )
    group = total // dp
    ranks = _several(group, "rank")
    if group % cfg:
        raise _misfit(given, total, f"{ranks} cannot be halved (--cfg-parallel-size {cfg})")
    if sp is None:
        sp = group // cfg
    ring, ulysses = _split(given, total, sp)
    if group % (cfg * sp):
        raise _misfit(
            given,
            total,
            f"{ranks} a replica are not a multiple of cfg {cfg} × ring {ring} × ulysses {ulysses}",
        )
    spare = group // (cfg * sp)
    layout = Layout(dp=dp, spare=spare, cfg=cfg, ring=ring, ulysses=ulysses, tp=given.tp_size)
    _check_work(given, layout)
    return layout


def _check_work(given: ParallelConfig, layout: Layout) -> None:
    """Raise `ConfigError` unless every rank of a replica has something of its own to do."""
    group, total = layout.group_size, layout.num_gpus
    ranks = _several(group, "rank")
    if group % layout.tp:
        raise _misfit(given, total, f"{ranks} a replica cannot be grouped by --tp-size {layout.tp}")
    if given.vae_parallel == "on":
        if group == 1:
            raise ConfigError(
                "--vae-parallel on shares the VAE's work among the ranks of a replica, which has "
                "only one here. Give a replica several (--num-gpus), or leave it out.",
                param="vae_parallel",
            )
        return
    busy = _least_ranks(given, layout.cfg, layout.sp)
    if group > busy:
        raise _misfit(
            given,
            total,
            f"the degrees use {busy} of a replica's {ranks}; the rest would only repeat their work "
            "(--vae-parallel on or a larger --tp-size would give them some)",
        )


def _several(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _least_ranks(given: ParallelConfig, cfg: int, sp: int) -> int:
    """Ranks of the smallest replica that has these degrees."""
    return math.lcm(cfg * sp, given.tp_size)


def _implied(given: ParallelConfig, cfg: int, sp: int | None) -> int:
    """Devices that the degrees multiply to; without degrees, as many as `--gpu-ids` names."""
    degrees = (given.dp_size, given.cfg_parallel_size, sp, given.ulysses_degree, given.ring_degree)
    if given.gpu_ids and cfg == given.tp_size == 1 and set(degrees) == {None}:
        return max(1, len(given.gpu_ids.split(",")) // given.gpus_per_rank)
    known = sp or given.ulysses_degree or given.ring_degree or 1
    return (given.dp_size or 1) * _least_ranks(given, cfg, known)


def _cfg(given: ParallelConfig) -> int:
    if given.cfg_parallel_size is None:
        return 2 if given.enable_cfg_parallel else 1
    if given.cfg_parallel_size == 1 and given.enable_cfg_parallel:
        raise ConfigError(
            "--enable-cfg-parallel contradicts --cfg-parallel-size 1: leave one of them out.",
            param="cfg_parallel_size",
        )
    return given.cfg_parallel_size


def _given_sp(given: ParallelConfig) -> int | None:
    """The sequence-parallel degree as far as it follows from the degrees alone."""
    if given.ulysses_degree is not None and given.ring_degree is not None:
        product = given.ulysses_degree * given.ring_degree
        if given.sp_degree not in (None, product):
            raise ConfigError(
                f"--sp-degree {given.sp_degree} is not --ulysses-degree {given.ulysses_degree} × "
                f"--ring-degree {given.ring_degree}; leave it out, or give {product}.",
                param="sp_degree",
            )
        return product
    return given.sp_degree


def _replicas(given: ParallelConfig, total: int, cfg: int, sp: int | None) -> int:
    """Replicas fill the devices when nothing else is left to choose."""
    if sp is None or given.vae_parallel == "on":
        return 1
    least = _least_ranks(given, cfg, sp)
    return 1 if total % least else total // least


def _split(given: ParallelConfig, total: int, sp: int) -> tuple[int, int]:
    """(ring, ulysses) of a sequence-parallel degree."""
    if given.ulysses_degree is not None:
        known, flag = given.ulysses_degree, "--ulysses-degree"
    elif given.ring_degree is not None:
        known, flag = given.ring_degree, "--ring-degree"
    else:
        return 1, sp
    if sp % known:
        raise _misfit(given, total, f"{flag} {known} does not divide {sp} sequence-parallel ranks")
    if flag == "--ulysses-degree":
        return sp // known, known
    return known, sp // known


def _misfit(given: ParallelConfig, total: int, reason: str) -> ConfigError:
    examples = "; ".join(layout.flags() for layout in _examples(given, total)[:4])
    hint = f" For example: {examples}." if total > 1 else ""
    return ConfigError(f"The parallel layout does not fit: {reason}.{hint}")


def _examples(given: ParallelConfig, total: int) -> list[Layout]:
    """Layouts of `total` devices that keep as much as can be of what was asked for."""
    tp, dp = given.tp_size, given.dp_size
    cfg = 2 if given.enable_cfg_parallel else given.cfg_parallel_size

    def strays(layout: Layout) -> tuple[bool, bool, bool]:
        return (layout.tp != tp, dp not in (None, layout.dp), cfg not in (None, layout.cfg))

    options = [
        msgspec.structs.replace(option, tp=1 if option.group_size % tp else tp)
        for option in divisions(total)
        if option.group_size > 1 or given.vae_parallel != "on"
    ]
    least = min(map(strays, options), default=None)
    return [option for option in options if strays(option) == least]


def divisions(num_gpus: int) -> Iterator[Layout]:
    """Every layout of so many devices without tensor parallelism, the usual ones first."""
    for dp in _divisors(num_gpus):
        for cfg in (c for c in (1, 2) if num_gpus // dp % c == 0):
            sp = num_gpus // dp // cfg
            for ring in _divisors(sp):
                yield Layout(dp=dp, cfg=cfg, ring=ring, ulysses=sp // ring)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


# ---------------------------------------------------------------------------- against the model


def refusals(layout: Layout, model: Capabilities) -> list[str]:
    """Why `model` cannot run so, each with what would fit; empty if it can."""
    found = []
    if layout.sp > 1 and not model.sequence:
        found.append(
            f"{model.transformer} has no plan for sequence parallelism; "
            "--dp-size and --cfg-parallel-size work, with --ulysses-degree 1 --ring-degree 1"
        )
    if model.heads % layout.ulysses:
        fitting = ", ".join(str(d) for d in _divisors(model.heads) if d <= 16)
        found.append(
            f"--ulysses-degree {layout.ulysses} cannot share out the {model.heads} attention heads "
            f"of {model.transformer} evenly; {fitting} fit, and any --ring-degree"
        )
    if layout.ring > 1 and model.masked:
        found.append(
            f"--ring-degree {layout.ring}: {model.transformer} takes an attention mask, which ring "
            f"attention does not rotate with the keys; --ulysses-degree {layout.sp} does it right"
        )
    if layout.cfg > 1 and not model.guided:
        found.append(
            f"--cfg-parallel-size {layout.cfg}: {model.transformer} runs no unconditional forward; "
            "use --ulysses-degree or --dp-size"
        )
    if layout.tp > 1:
        found += _encoder_refusals(layout, model)
    return found


def _encoder_refusals(layout: Layout, model: Capabilities) -> Iterator[str]:
    for component, heads in model.encoder_heads.items():
        if heads % layout.tp:
            fitting = ", ".join(str(d) for d in _divisors(heads) if d <= 16)
            yield (
                f"--tp-size {layout.tp} cannot share out the {heads} attention heads of "
                f"{component} evenly; {fitting} fit"
            )
    if not model.encoder_heads:
        reasons = "; ".join(f"{name} {why}" for name, why in model.encoders_whole.items())
        yield f"--tp-size {layout.tp}: no text encoder can be shared out ({reasons or 'none'})"


def check(layout: Layout, model: Capabilities) -> None:
    """Raise `ConfigError` unless `model` can run so, with the layouts that would fit."""
    if found := refusals(layout, model):
        others = [option.flags() for option in fitting(layout.num_gpus, model, tp=layout.tp)]
        fits = "; ".join(others[:4]) if others else "none with so many devices"
        raise ConfigError(f"{'. '.join(found)}. Layouts that fit: {fits}.")


def fitting(num_gpus: int, model: Capabilities, *, tp: int = 0) -> list[Layout]:
    """Layouts of so many devices that `model` can run, with the largest `tp` that fits; with as
    much of a `tp` that was asked for as fits."""
    found = []
    for division in divisions(num_gpus):
        shared = math.gcd(tp, division.group_size, *model.encoder_heads.values())
        layout = msgspec.structs.replace(division, tp=shared if model.encoder_heads else 1)
        if not refusals(layout, model):
            found.append(layout)
    return found
