"""Adapters of one pipeline: targets, merging, files that do not fit, and what is left of them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from fakes import cases
from fakes import lora as fakes
from fakes.cases import Checkpoints, Stepper
from fakes.lora import Files
from fakes.single_files import write_gguf
from safelight.errors import GenerationFailed
from safelight.lora import adapters
from safelight.lora.adapters import Adapters
from safelight.models.remote.adapter import NoAdapters
from safelight.parallel.mesh import Mesh
from safelight.request import Adapter

CASE = {case.name: case for case in fakes.cases()}
WAN, A14B, FLUX, SDXL = (CASE[name] for name in ("Wan 2.1", "Wan 2.2 A14B", "FLUX.1 dev", "SDXL"))
Bits = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def shared_wan(checkpoints: Checkpoints) -> Any:
    return cases.loaded(checkpoints.of(WAN))


@pytest.fixture
def wan(shared_wan: Any) -> Iterator[Any]:
    """One that has no adapters, and is to have none afterwards."""
    yield shared_wan
    for digest in {digest for digest, _ in shared_wan.lora._loaded}:
        shared_wan.lora.drop(digest)
    assert tuners(shared_wan.pipeline) == []


@pytest.fixture
def a(loras: Files) -> Adapter:
    return loras.adapter(WAN, "a")


def bits(pipeline: Any) -> Bits:
    """Copies of all weights, by component and name."""
    return {
        f"{name}.{key}": tensor.clone()
        for name, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        for key, tensor in module.state_dict().items()
    }


def same(one: Bits, other: Bits) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def tuners(pipeline: Any) -> list[str]:
    """Layers of peft's in a pipeline's components, and components that know of adapters."""
    modules = {n: m for n, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
    layers = [
        f"{name}.{path}"
        for name, module in modules.items()
        for path, layer in module.named_modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    return layers + [name for name, module in modules.items() if "peft_config" in vars(module)]


def forward(family: Any) -> torch.Tensor:
    """Something that Wan's transformer makes."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        made: torch.Tensor = family.transformer(
            hidden_states=torch.randn(1, 16, 2, 8, 8, generator=generator).to(family.dtype),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=generator).to(family.dtype),
            return_dict=False,
        )[0]
    return made


# ------------------------------------------------------------------------------- what is in force


def test_without_adapters_the_model_is_as_it_was_loaded(wan: Any, a: Adapter) -> None:
    before, made = bits(wan.pipeline), forward(wan)
    wan.lora.wear([a])
    assert not torch.equal(forward(wan), made)
    assert len(tuners(wan.pipeline)) > 10
    wan.lora.wear([])
    assert same(bits(wan.pipeline), before)
    assert torch.equal(forward(wan), made)
    wan.lora.drop(a.digest)
    assert tuners(wan.pipeline) == []


def test_a_scale_is_a_strength(wan: Any, a: Adapter) -> None:
    made = {}
    for scale in (0.0, 0.5, 1.0):
        wan.lora.wear([msgspec.structs.replace(a, scale=scale)])
        made[scale] = forward(wan)
    wan.lora.wear([])
    assert torch.equal(made[0.0], forward(wan))
    assert not torch.allclose(made[0.5], made[1.0])


def test_one_that_is_loaded_or_dropped_later_leaves_the_others_alone(
    wan: Any, loras: Files, a: Adapter
) -> None:
    wan.lora.wear([a])
    made = forward(wan)
    other = loras.adapter(WAN, "b")
    wan.lora.load(other)
    wan.lora.wear([a])
    assert torch.equal(forward(wan), made)
    wan.lora.drop(other.digest)
    wan.lora.wear([a])
    assert torch.equal(forward(wan), made)


def test_those_used_longest_ago_make_room_for_others(
    wan: Any, loras: Files, a: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, c = (loras.adapter(WAN, letter) for letter in "bc")
    room = 2 * max(Path(one.path).stat().st_size for one in (a, b, c))
    monkeypatch.setattr(adapters, "limit_of", lambda device: room)
    made = {}
    for one in (a, b, a, c):
        wan.lora.wear([one])
        made[one.digest] = forward(wan)
    assert {digest for digest, _ in wan.lora._loaded} == {a.digest, c.digest}
    for one in (b, a, c):
        wan.lora.wear([one])
        assert torch.equal(forward(wan), made[one.digest])
        assert len(wan.lora._loaded) == 2


def test_no_request_loses_an_adapter_to_its_next(
    wan: Any, loras: Files, a: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    worn = [a, *(loras.adapter(WAN, letter) for letter in "bc")]
    wan.lora.wear(worn)
    made = forward(wan)
    for one in worn:
        wan.lora.drop(one.digest)
    monkeypatch.setattr(adapters, "limit_of", lambda device: 1)
    wan.lora.wear(worn)
    assert torch.equal(forward(wan), made)
    assert len(wan.lora._loaded) == 3


def test_a_file_that_does_not_fit_takes_no_room(
    wan: Any, loras: Files, a: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "limit_of", lambda device: Path(a.path).stat().st_size)
    wan.lora.load(a)
    with pytest.raises(GenerationFailed):
        wan.lora.load(loras.adapter(SDXL, "a"))
    assert {digest for digest, _ in wan.lora._loaded} == {a.digest}


def test_one_adapter_twice_has_both_strengths(wan: Any, a: Adapter) -> None:
    wan.lora.wear([a])
    whole = forward(wan)
    half = msgspec.structs.replace(a, scale=0.5)
    wan.lora.wear([half, msgspec.structs.replace(half, name="again")])
    assert torch.equal(forward(wan), whole)


def test_targets_are_components(checkpoints: Checkpoints, loras: Files) -> None:
    family = cases.loaded(checkpoints.of(A14B))
    one, lora = loras.adapter(A14B, "a"), family.lora
    first, second = family.pipeline.transformer, family.pipeline.transformer_2
    for target, expected in {
        "transformer_2": [second],
        "transformer": [first],
        "all": [first, second],
    }.items():
        aimed = msgspec.structs.replace(one, target=target)
        assert len(lora.load(aimed)) == len(expected)
        lora.wear([aimed])
        adapted = [any(isinstance(m, BaseTunerLayer) for m in e.modules()) for e in (first, second)]
        assert adapted == [first in expected, second in expected], target


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "critic",
            "is meant for critic, which .* cannot change. Its targets are: all, transformer",
        ),
        ("text_encoder", "has no weights for text_encoder, but for transformer"),
    ],
)
def test_targets_that_are_not_there(
    checkpoints: Checkpoints, tmp_path: Path, target: str, message: str
) -> None:
    where = checkpoints.of(FLUX)
    path = fakes.write(where, tmp_path / "mine", 1, ["transformer"])
    family = cases.loaded(where)
    with pytest.raises(GenerationFailed, match=f"'mine' {message}"):
        family.lora.wear([fakes.adapter(path, target=target)])
    assert [name for name in tuners(family.pipeline) if "." in name] == []


def test_text_encoders_are_changed_and_prompts_are_kept_apart(
    checkpoints: Checkpoints, loras: Files
) -> None:
    family, case = cases.loaded(checkpoints.of(SDXL)), SDXL
    one, where = loras.adapter(SDXL, "a"), checkpoints.of(SDXL)
    sample = cases.sample(case, where)
    words = {}
    with torch.inference_mode():
        for target in ("all", "unet", "text_encoder", "none"):
            aimed = msgspec.structs.replace(one, target=target)
            family.lora.wear([] if target == "none" else [aimed])
            words[target] = family.encode(sample).positive.words
    assert torch.equal(words["unet"], words["none"])
    assert not torch.equal(words["all"], words["text_encoder"])
    assert not torch.equal(words["all"], words["none"])
    assert not torch.equal(words["text_encoder"], words["none"])


# ------------------------------------------------------------------------------ formats of files


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_files_of_kohyas_scripts_are_read(
    checkpoints: Checkpoints, loras: Files, tmp_path: Path
) -> None:
    """Their layers have other names, and a strength of their own."""
    good = load_file(loras.of(SDXL, "a"))
    state = {}
    for key, tensor in good.items():
        layer, _, part = key.partition(".lora")
        name = layer.replace("text_model.", "").replace("unet.", "lora_unet_").replace(".", "_")
        name = name.replace("text_encoder_2_", "lora_te2_text_model_")
        name = name.replace("text_encoder_", "lora_te1_text_model_")
        down = "A" in part or "down" in part
        state[f"{name}.lora_{'down' if down else 'up'}.weight"] = tensor.contiguous()
        state[f"{name}.alpha"] = torch.tensor(float(fakes.ALPHA))
    save_file(state, tmp_path / "kohya.safetensors")
    family = cases.loaded(checkpoints.of(SDXL))
    sample = cases.sample(SDXL, checkpoints.of(SDXL))
    made = []
    for one in (loras.adapter(SDXL, "a"), fakes.adapter(tmp_path / "kohya.safetensors")):
        stepper = Stepper(family, Mesh.single(cases.CPU))
        spec = msgspec.structs.replace(sample, adapters=(one,))
        stepper.begin(spec)
        made.append(stepper.finish(spec.id))
        assert family.lora.load(one).keys() == {"unet", "text_encoder", "text_encoder_2"}
    assert np.array_equal(*made)


@pytest.mark.filterwarnings("ignore:Adapter .default.:UserWarning")  # peft takes a bias for broken
@pytest.mark.parametrize("option", ["use_dora", "use_rslora", "lora_bias"])
def test_kinds_of_lora(checkpoints: Checkpoints, tmp_path: Path, option: str) -> None:
    """As diffusers has them; merged they are the same, and leave nothing."""
    where = checkpoints.of(WAN)
    path = fakes.write(where, tmp_path / "mine", 1, ["transformer"], **{option: True})
    one = fakes.adapter(path, 0.6)
    spec = msgspec.structs.replace(cases.sample(WAN, where), adapters=(one,))
    with fakes.upstream([one]):
        expected = WAN.reference(where, spec)
    family = cases.loaded(where)
    before, stepper = bits(family.pipeline), Stepper(family, Mesh.single(cases.CPU))
    stepper.begin(spec)
    assert np.array_equal(stepper.finish(spec.id), expected)
    apart = forward(family)
    family.lora.wear([one], merged=True)
    assert torch.allclose(forward(family), apart, atol=1e-5)
    family.lora.drop(one.digest)
    assert same(bits(family.pipeline), before)
    assert tuners(family.pipeline) == []


# ------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_merges_leave_the_bits(
    checkpoints: Checkpoints, loras: Files, precision: str
) -> None:
    family = cases.loaded(checkpoints.of(WAN), (("dit_precision", precision),))
    a, b = loras.adapter(WAN, "a"), loras.adapter(WAN, "b", 0.3)
    before, made = bits(family.pipeline), forward(family)
    for turn in range(20):
        family.lora.wear([a, b] if turn % 2 else [a], merged=True)
        assert tuners(family.pipeline) == ["transformer"]  # no layer of peft's is in the way
        assert not same(bits(family.pipeline), before)
        if turn % 3:
            family.lora.wear([])
            assert same(bits(family.pipeline), before)
    family.lora.wear([b])
    family.lora.wear([])
    assert same(bits(family.pipeline), before)
    assert torch.equal(forward(family), made)


def test_merged_weights_are_made_once_and_given_back(wan: Any, a: Adapter) -> None:
    def merged() -> list[int]:
        wan.lora.wear([a], merged=True)
        found = [weight.data_ptr() for weight in wan.transformer.parameters()]
        wan.lora.forget_merged()  # they are in force
        assert found == [weight.data_ptr() for weight in wan.transformer.parameters()]
        wan.lora.wear([])
        return found

    before = [weight.data_ptr() for weight in wan.transformer.parameters()]
    made = merged()
    assert made == merged()
    assert made != before
    wan.lora.forget_merged()
    assert all(not part._merged for part in wan.lora._parts.values())
    assert before == [weight.data_ptr() for weight in wan.transformer.parameters()]


def test_merged_or_not_is_one_picture(wan: Any, a: Adapter) -> None:
    wan.lora.wear([a])
    apart = forward(wan)
    wan.lora.wear([a], merged=True)
    assert torch.allclose(forward(wan), apart, atol=1e-5)


def test_samples_take_turns_with_a_merged_one(checkpoints: Checkpoints, loras: Files) -> None:
    """Each gets what it would get alone, to the bit."""
    where = checkpoints.of(WAN)
    a, b = loras.adapter(WAN, "a"), loras.adapter(WAN, "b")
    specs = {
        name: msgspec.structs.replace(
            cases.sample(WAN, where, f"{name}.0"), adapters=adapters, merged=merged
        )
        for name, adapters, merged in [
            ("merged", (a,), True),
            ("other", (b,), True),
            ("apart", (a,), False),
            ("none", (), False),
        ]
    }
    stepper = Stepper(cases.loaded(where), Mesh.single(cases.CPU))
    for spec in specs.values():
        stepper.begin(spec)
    for _ in range(stepper.left("none.0")):
        for spec in specs.values():
            stepper.step(spec.id)
    for name, spec in specs.items():
        alone = Stepper(cases.loaded(where), Mesh.single(cases.CPU))
        alone.begin(spec)
        assert np.array_equal(stepper.finish(spec.id), alone.finish(spec.id)), name


def test_weights_of_a_gguf_file_are_not_merged(
    checkpoints: Checkpoints, loras: Files, tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(checkpoints.of(WAN), wide)
    torch.manual_seed(0)
    kind = cases.loaded(wide).transformer
    type(kind)(**{**kind.config, "attention_head_dim": 32, "ffn_dim": 256}).save_pretrained(
        wide / "transformer"
    )
    path = fakes.write(wide, tmp_path / "mine", 1, ["transformer"])
    weights = "transformer/diffusion_pytorch_model.safetensors"
    file = write_gguf(wide / weights, tmp_path / "wan.gguf")
    family = cases.loaded(wide, (("transformer_path", str(file)),))
    made = forward(family)
    with pytest.raises(GenerationFailed, match=r"cannot be merged into transformer.*quantized"):
        family.lora.wear([fakes.adapter(path)], merged=True)
    assert torch.equal(forward(family), made)
    family.lora.wear([fakes.adapter(path)])
    full = cases.loaded(wide)
    full.lora.wear([fakes.adapter(path)])
    error = (forward(family) - forward(full)).norm() / forward(full).norm()
    assert 1e-4 < float(error) < 0.01
    assert not torch.allclose(forward(family), made, atol=1e-2)


def test_quantized_weights_are_not_merged(checkpoints: Checkpoints, loras: Files) -> None:
    family = cases.loaded(checkpoints.of(WAN), (("quantization", "fp8-storage"),))
    made = forward(family)
    with pytest.raises(GenerationFailed, match=r"cannot be merged into transformer.*quantized"):
        family.lora.wear([loras.adapter(WAN, "a")], merged=True)
    assert torch.equal(forward(family), made)
    family.lora.wear([loras.adapter(WAN, "a")])
    assert not torch.equal(forward(family), made)
    weights = dict(family.transformer.named_parameters())
    assert weights["blocks.0.attn1.to_q.base_layer.weight"].dtype == torch.float8_e4m3fn
    assert {w.dtype for name, w in weights.items() if "lora_" in name} == {torch.float32}


# ---------------------------------------------------------------------------- files that do not fit


def broken() -> Iterator[Any]:
    """How a good file is made a bad one, and what is said of it."""

    def case(name: str, make: Any, message: str) -> Any:
        return pytest.param(make, message, id=name)

    def text(good: Path, bad: Path) -> None:
        bad.write_text("no tensors at all, but many words of some length")

    def cut(good: Path, bad: Path) -> None:
        bad.write_bytes(good.read_bytes()[:-100])

    def cut_header(good: Path, bad: Path) -> None:
        bad.write_bytes(good.read_bytes()[:50])

    def pickled(good: Path, bad: Path) -> None:
        bad.write_bytes(pickle.dumps({"a": 1}))

    def zipped(good: Path, bad: Path) -> None:
        torch.save(load_file(good), bad)

    def missing(good: Path, bad: Path) -> None:
        pass

    def no_lora(good: Path, bad: Path) -> None:
        save_file({"blocks.0.weight": torch.zeros(2, 2)}, bad)

    def lokr(good: Path, bad: Path) -> None:
        save_file({"transformer.blocks.0.attn1.to_q.lokr_w1": torch.zeros(2, 2)}, bad)

    def narrower(good: Path, bad: Path) -> None:
        key = "transformer.blocks.0.attn1.to_q.lora_A.weight"
        fakes.changed(good, bad, {key: torch.zeros(4, 8)})

    def wider(good: Path, bad: Path) -> None:
        key = "transformer.blocks.1.attn1.to_k.lora_A.weight"
        fakes.changed(good, bad, {key: torch.zeros(4, 96)})

    def longer(good: Path, bad: Path) -> None:
        key = "transformer.blocks.1.attn2.to_v.lora_B.weight"
        fakes.changed(good, bad, {key: torch.zeros(96, 4)})

    def deeper(good: Path, bad: Path) -> None:
        key = "transformer.blocks.7.attn1.to_q.lora_"
        more = {f"{key}A.weight": torch.ones(4, 48), f"{key}B.weight": torch.ones(48, 4)}
        fakes.changed(good, bad, more)

    def elsewhere(good: Path, bad: Path) -> None:
        key = "unet.down_blocks.0.attentions.0.to_q.lora_"
        tensors = {f"{key}A.weight": torch.ones(4, 48), f"{key}B.weight": torch.ones(48, 4)}
        save_file(tensors, bad)

    def strangers(good: Path, bad: Path) -> None:
        key = "transformer.single_blocks.0.linear1.lora_"
        tensors = {f"{key}A.weight": torch.ones(4, 48), f"{key}B.weight": torch.ones(48, 4)}
        save_file(tensors, bad)

    def told(text: str) -> Any:
        def make(good: Path, bad: Path) -> None:
            save_file(load_file(good), bad, {"format": "pt", "lora_adapter_metadata": text})

        return make

    def telling(**fields: Any) -> Any:
        return told(json.dumps({f"transformer.{key}": value for key, value in fields.items()}))

    yield case("metadata no JSON", told("{"), "its metadata are no JSON")
    yield case("metadata a list", told("[1]"), "its metadata are no JSON object")
    for name, value in {
        "init_lora_weights": "olora",  # would change the model's own weights
        "layer_replication": [[0, 2], [1, 2]],
        "modules_to_save": ["norm"],
        "rank_pattern": {"(x+x+)+y": 4},
        "target_modules": "(x+x+)+y",
    }.items():
        yield case(name, telling(**{name: value}), f"its metadata ask for transformer.{name}")
    yield case("text", text, "is no whole safetensors file")
    yield case("cut short", cut, "is no whole safetensors file")
    yield case("a header cut short", cut_header, "is no whole safetensors file")
    yield case("a pickle", pickled, "is a pickle .* Convert it to safetensors")
    yield case("torch.save", zipped, "is a pickle .* Convert it to safetensors")
    yield case("missing", missing, "cannot be read: .*No such file")
    yield case("no LoRA", no_lora, "has no LoRA weights, but others, as blocks.0.weight")
    yield case("a LoKr", lokr, "has no LoRA weights: it is a LoKr")
    yield case("narrower", narrower, r"has .*to_q.lora_A.weight of shape 4 × 8, .* takes 4 × 48")
    yield case("wider", wider, "for 96 inputs, and the model's layer has 48")
    yield case("longer", longer, r"has .*to_v.lora_B.weight of shape 96 × 4, .* takes 48 × 4")
    yield case("deeper", deeper, "transformer lacks 1 of its")
    yield case("another's", elsewhere, "changes nothing that this model has .*, but unet")
    yield case("strangers", strangers, "does not fit this model")


@pytest.mark.parametrize(("make", "message"), list(broken()))
@pytest.mark.parametrize("company", [False, True], ids=["alone", "beside another"])
def test_a_bad_file_is_told_in_a_sentence_and_harms_nothing(
    wan: Any, a: Adapter, tmp_path: Path, make: Any, message: str, company: bool
) -> None:
    if company:
        wan.lora.wear([a])
    worn, before = forward(wan), bits(wan.pipeline)
    path = tmp_path / "bad.safetensors"
    make(Path(a.path), path)
    bad = Adapter(name="mine", path=str(path), digest="f" * 64)
    with pytest.raises(GenerationFailed, match=f"^The adapter 'mine' .*{message}") as told:
        wan.lora.load(bad)
    assert told.value.code == "adapter_unfit"
    assert str(told.value).endswith(".") and "\n" not in str(told.value)
    assert "f" * 64 not in str(told.value)
    if company:
        wan.lora.wear([])
        wan.lora.wear([a])
        assert same(bits(wan.pipeline), before)
    assert torch.equal(forward(wan), worn)
    wan.lora.drop(a.digest)
    assert tuners(wan.pipeline) == []


def test_weights_that_would_replace_the_models_are_refused(
    checkpoints: Checkpoints, loras: Files, tmp_path: Path
) -> None:
    """diffusers writes them into the model, where they stay."""
    family, good = cases.loaded(checkpoints.of(FLUX)), loras.of(FLUX, "a")
    key = "transformer.transformer_blocks.0.attn.norm_q.weight"
    path = fakes.changed(good, tmp_path / "control.safetensors", {key: torch.ones(16)})
    before = bits(family.pipeline)
    with pytest.raises(GenerationFailed, match=r"replaces weights of the model .*norm_q"):
        family.lora.load(fakes.adapter(path))
    assert same(bits(family.pipeline), before)


def test_a_remote_model_takes_none(a: Adapter) -> None:
    lora = NoAdapters("dall-e at example.org")
    lora.wear([])
    with pytest.raises(GenerationFailed, match=r"dall-e at example.org takes no adapters"):
        lora.wear([a])


def test_a_pipeline_without_a_loader_takes_none(a: Adapter) -> None:
    @dataclass
    class Bare:
        components: dict[str, Any]

    adapters = Adapters(Bare({}))
    adapters.wear([])
    with pytest.raises(GenerationFailed, match="Bare takes no adapters"):
        adapters.load(a)
