"""`docs/examples/safelight-dots`: installed with pip, and served like any other model."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from openai import OpenAI
from PIL import Image

from fakes import cases, examples
from fakes.cases import Case
from fakes.ranks import RankPool, pool
from fakes.server import Server, serving
from safelight.models.inputs import image
from safelight.parallel.layout import Layout
from safelight.request import SampleSpec
from tools import pipelines
from tools.bounds import LARGEST

LEVEL = 1 / 255 + 1e-6
"""Of a colour: frames are compared after rounding, and a last bit may round the other way."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the package is; it can be imported, here and in processes that are started."""
    packages = examples.install(examples.DOTS, tmp_path_factory.mktemp("plugin"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        patch.setenv("PYTHONPATH", str(packages))
        yield packages


@pytest.fixture(scope="module")
def model(installed: Path) -> Path:
    examples.run("python -m safelight_dots.make dots", installed.parent, installed)
    return installed.parent / "dots"


@pytest.fixture(scope="module")
def ranks(installed: Path) -> Iterator[RankPool]:
    """Ranks that are started where the package can be found already."""
    with pool(2) as two:
        yield two


def own_loop(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What the package's own `generate` makes of a sample."""
    from safelight_dots import model as dots  # type: ignore[import-not-found,unused-ignore]

    s = spec.sampling
    made: np.ndarray = dots.generate(
        dots.read(directory / "model"),
        spec.prompt,
        negative_prompt=s.negative_prompt,
        image=image(spec.inputs.images[0]) if spec.inputs.images else None,
        strength=s.strength or 1.0,
        width=s.width,
        height=s.height,
        steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        seed=s.seed,
    )
    return made[None]


def case(task: Any, **values: Any) -> Case:
    return Case(
        name="Dots",
        task=task,
        make=lambda directory: directory,
        reference=own_loop,
        values={"width": 48, "height": 24, "num_inference_steps": 5, **values},
    )


CASES = (
    case("text-to-image", guidance_scale=2.0, negative_prompt="a blue dot"),
    case("text-to-image", guidance_scale=1.0),
    Case(
        **{
            **vars(case("image-to-image", strength=0.8)),
            "images": ((50, 30),),
            "variant": {"guidance_scale": 1.0},
            "on_two": (("cfg_parallel_size", 2),),
        }
    ),
)


@pytest.mark.parametrize("case", CASES, ids=["guided", "unguided", "from a picture"])
def test_it_makes_its_own_pictures_alone_batched_resumed_and_on_two_ranks(
    case: Case, model: Path, ranks: RankPool
) -> None:
    row = pipelines.measure(case, model, ranks)
    assert row.exact
    assert row.resumed == (0.0, 0.0)
    assert row.batched is not None and row.ranks is not None
    for latents, frames in (row.batched, row.ranks):
        assert latents <= LARGEST
        assert frames <= LEVEL


def test_a_batch_is_one_forward(model: Path) -> None:
    family, forwards = cases.loaded(model), []
    family.model.register_forward_hook(lambda module, inputs, made: forwards.append(len(made)))
    specs = [cases.sample(CASES[0], model, f"{n}.0", seed=n) for n in range(3)]
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    with torch.inference_mode():
        family.step(sessions)
    assert forwards == [6]  # both halves of three


@pytest.mark.parametrize("rows", [2, 7, 9])
def test_rows_that_ranks_cannot_share_evenly_come_together(installed: Path, rows: int) -> None:
    from safelight_dots.adapter import Rows  # type: ignore[import-not-found,unused-ignore]

    layout, whole = Layout(ulysses=2, ring=2), torch.rand(1, rows, 2, 3)
    places = {(r, u): {"ring": r, "ulysses": u} for r in range(2) for u in range(2)}

    def mesh(place: tuple[int, int]) -> Any:
        def gather(part: torch.Tensor, axis: str) -> list[torch.Tensor]:
            ring, _ = place
            if axis == "ulysses":
                return [Rows(mesh((ring, u))).part(whole) for u in range(2)]
            groups = [[Rows(mesh((r, u))).part(whole) for u in range(2)] for r in range(2)]
            return [torch.cat(group, dim=1) for group in groups]

        return SimpleNamespace(layout=layout, index=places[place].__getitem__, gather=gather)

    for place in places:
        mine = Rows(mesh(place))
        assert torch.equal(mine.whole(mine.part(whole), rows), whole)


# ------------------------------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    flags = ("--model-path", str(model), "--ulysses-degree", "2")
    with serving(model.parent / "data", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.base_url}/v1", api_key="any", max_retries=0) as client:
        yield client


def decoded(answer: Any) -> np.ndarray:
    (one,) = answer.data
    with Image.open(io.BytesIO(base64.b64decode(one.b64_json))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_picture_over_http_is_what_one_rank_makes(client: OpenAI, model: Path) -> None:
    assert [one.id for one in client.models.list().data] == ["dots"]
    answer = client.images.generate(prompt="a red dot", size="64x48", extra_body={"seed": 5})
    made = decoded(answer)
    assert made.shape == (48, 64, 3)
    red, green, blue = made[20:28, 28:36].reshape(-1, 3).mean(0)
    assert red > 200 and green < 60 and blue < 60
    expected = dots_generate(model, "a red dot", seed=5, width=64, height=48)
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_a_picture_is_made_from_a_picture(client: OpenAI) -> None:
    papers = []
    for colour in ((250, 250, 250), (5, 5, 5)):
        file = io.BytesIO()
        Image.new("RGB", (40, 40), colour).save(file, "PNG")
        answer = client.images.edit(
            image=("paper.png", file.getvalue(), "image/png"),
            prompt="a blue dot",
            extra_body={"seed": 5, "strength": 0.4},
        )
        made = decoded(answer)
        assert made.shape == (40, 40, 3)  # as the input
        assert made[20, 20, 2] > made[20, 20, :2].max() + 50
        papers.append(made[:6, :6].mean())
    assert papers[0] > papers[1] + 50


def test_what_the_model_cannot_do_is_refused(server: Server) -> None:
    body = {"prompt": "a red dot", "size": "60x60"}
    answer = server.client.post("/v1/images/generations", json=body)
    assert answer.status_code == 400
    assert "dots takes 16 to 512 in steps of 8" in answer.json()["error"]["message"]


def dots_generate(model: Path, prompt: str, **values: Any) -> np.ndarray:
    from safelight_dots import model as dots  # type: ignore[import-not-found,unused-ignore]

    made: np.ndarray = dots.generate(
        dots.read(model / "model"), prompt, steps=8, guidance_scale=1.5, **values
    )
    return made
