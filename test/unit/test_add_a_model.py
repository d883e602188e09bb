"""`docs/add_a_model.md`, followed to the letter: its blocks, as they stand there."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AuraFlowPipeline

from fakes import cases, examples
from fakes.cases import Case
from fakes.ranks import RankPool, pool
from fakes.zoo import as_bytes
from safelight.errors import InvalidRequest
from safelight.request import SampleSpec
from tools import documents, pipelines
from tools.bounds import LARGEST

PAGE = (documents.DOCS / "add_a_model.md").read_text("utf-8")
FILE = re.compile(r"^`([\w./-]+)`\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's checkpoint, with the page's package installed."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in FILE.findall(PAGE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    packages = folder / "packages"
    for script in SHELL.findall(PAGE):
        examples.run(script, folder, packages)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        patch.chdir(folder)
        runpy.run_path("tiny.py", run_name="__main__")
        yield folder / "tiny-auraflow"


@pytest.fixture(scope="module")
def ranks(model: Path) -> Iterator[RankPool]:
    """Ranks that are started where the package can be found already."""
    with pool(2) as two:
        yield two


def reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    pipeline = AuraFlowPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    s = spec.sampling
    made = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        width=s.width,
        height=s.height,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
    )
    return as_bytes(made.images[0])


CASE = Case(
    name="AuraFlow",
    task="text-to-image",
    make=lambda directory: directory,
    reference=reference,
    values={"width": 64, "height": 48, "num_inference_steps": 3, "max_sequence_length": 16},
    variant={"guidance_scale": 1.0},
    on_two=(("cfg_parallel_size", 2),),
)


def test_what_the_page_makes_has_the_bits_of_diffusers(model: Path, ranks: RankPool) -> None:
    row = pipelines.measure(CASE, model, ranks)
    assert row.exact
    assert row.resumed == (0.0, 0.0)
    assert row.batched is not None and row.ranks is not None
    assert row.largest <= LARGEST


def test_it_is_the_pages_family_that_runs(model: Path) -> None:
    card = cases.card_of(model)
    assert (card.family, card.width.max, card.defaults["guidance_scale"]) == ("auraflow", 256, 3.5)
    with pytest.raises(InvalidRequest, match="Nearest: 48 or 64"):
        card.resolve({"width": 50})
    family = cases.loaded(model)
    assert type(family).__module__ == "safelight_auraflow.adapter"
    steps: list[int] = []
    family.pipeline.transformer.register_forward_hook(
        lambda module, inputs, made: steps.append(len(inputs[0]))
    )
    specs = [cases.sample(CASE, model, f"{n}.0", seed=n) for n in range(2)]
    with torch.inference_mode():
        family.step([family.begin(spec, family.encode(spec)) for spec in specs])
    assert steps == [4]


def test_its_prompt_is_seen_in_its_pictures(model: Path) -> None:
    pipeline = AuraFlowPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    first, second = (
        pipeline(
            prompt=prompt,
            width=32,
            height=32,
            num_inference_steps=2,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="np",
        ).images[0]
        for prompt in ("a red circle", "two blue squares")
    )
    assert np.abs(first - second).max() > 1e-3
    assert first.std() > 1e-2


def test_every_file_of_the_page_is_found() -> None:
    assert len(FILE.findall(PAGE)) == PAGE.count("```toml") + PAGE.count("```python") == 5
    assert SHELL.findall(PAGE) == ["pip install ./safelight-auraflow\n"]
