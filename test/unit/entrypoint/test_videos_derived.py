"""Remixes, edits and extensions of finished videos; the frames are real."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from PIL import Image

from fakes import clips, probe, stack
from fakes.engine_peer import CARD
from safelight.output import clips as read
from safelight.request import SampleSpec
from safelight.store import content as content_store
from safelight.wire import messages as m

MOVER = msgspec.structs.replace(
    CARD, name="lab/mover", tasks=("text-to-video", "image-to-video"), max_images=1
)


@pytest.fixture(scope="module")
def filming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """A server that makes real videos at once, from text and from pictures."""
    with stack.running(tmp_path_factory.mktemp("filming"), card=MOVER) as running:
        running.peer.makes = clips.made
        yield running


@pytest.fixture(scope="module")
def client(filming: stack.Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=filming.base_url, timeout=60) as client:
        yield client


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(clips.clip(1, 64, 64)[0, ::-1].copy()).save(out, "png")
    return out.getvalue()


def post(running: stack.Stack, client: httpx2.Client, path: str, **request: Any) -> dict[str, Any]:
    """Posts, and waits until the job is completed; the video as it was first answered."""
    answer = client.post(f"/v1/videos{path}", **request)
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    view = running.call(running.manager.wait(video["id"]))
    assert view.status == "completed", view
    return video


def made(running: stack.Stack, client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    return post(running, client, "", json={"prompt": "a red circle", **fields})


def error(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def spec_of(running: stack.Stack, video: dict[str, Any]) -> SampleSpec:
    return next(spec for spec in running.peer.specs if spec.id == f"{video['id']}.0")


def frames(running: stack.Stack, video: dict[str, Any], index: int = 0) -> np.ndarray:
    view = running.call(running.manager.job(video["id"]))
    return probe.decode(Path(view.outputs[index].path))


# ------------------------------------------------------------------------------ remixes and edits


def test_a_remix_is_the_same_request_with_another_prompt(
    filming: stack.Stack, client: httpx2.Client
) -> None:
    asked = {"size": "48x96", "seconds": 1, "num_inference_steps": 3, "guidance_scale": 2.5}
    source = made(filming, client, seed=11, output_quality="low", negative_prompt="fog", **asked)
    again = post(filming, client, f"/{source['id']}/remix", json={"prompt": "a blue circle"})
    assert again["prompt"] == "a blue circle"
    assert again["remixed_from_video_id"] == source["id"]
    assert source["remixed_from_video_id"] is None
    for name in ("model", "size", "seconds", "seed", "num_frames", "fps", "guidance_scale"):
        assert again[name] == source[name]
    one, two = (spec_of(filming, video) for video in (source, again))
    assert (one.sampling, one.task, one.inputs) == (two.sampling, two.task, two.inputs)
    assert one.delivery.compression == two.delivery.compression == 35
    assert client.get(f"/v1/videos/{again['id']}").json()["remixed_from_video_id"] == source["id"]


def test_what_a_remix_names_replaces_what_was(filming: stack.Stack, client: httpx2.Client) -> None:
    source = made(filming, client, seed=11, num_frames=5, n=2)
    given = {"prompt": "x", "size": "96x48", "seconds": 1, "seed": 3, "n": 1, "fps": 4}
    again = post(filming, client, f"/{source['id']}/remix", json=given)
    assert (again["size"], again["seconds"], again["seed"], again["fps"]) == ("96x48", "1", 3, 4)
    assert "n" not in again
    more = post(filming, client, f"/{source['id']}/remix", json={"prompt": "x", "n": 3})
    assert more["seeds"] == [11, 12, 13]
    both = post(filming, client, f"/{source['id']}/remix", data={"prompt": "x", "fps": "4"})
    assert (both["n"], both["seeds"], both["seconds"]) == (2, [11, 12], "1.25")


def test_a_remix_begins_with_the_same_picture(filming: stack.Stack, client: httpx2.Client) -> None:
    files = {"input_reference": ("first.png", picture(), "image/png")}
    source = post(filming, client, "", data={"prompt": "it moves"}, files=files)
    assert spec_of(filming, source).task == "image-to-video"
    again = post(filming, client, f"/{source['id']}/remix", json={"prompt": "it turns"})
    one, two = (spec_of(filming, video).inputs.images for video in (source, again))
    assert [i.digest for i in one] == [i.digest for i in two]
    assert one[0].path != two[0].path
    third = post(filming, client, f"/{again['id']}/remix", json={"prompt": "it stops"})
    assert spec_of(filming, third).inputs.images[0].digest == one[0].digest


def test_large_pictures_are_not_kept(
    filming: stack.Stack, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_store, "MAX_RETAINED", 64 * 64 * 3 - 1)
    files = {"input_reference": ("first.png", picture(), "image/png")}
    source = post(filming, client, "", data={"prompt": "it moves"}, files=files)
    path = f"/v1/videos/{source['id']}/remix"
    failure = error(client.post(path, json={"prompt": "it turns"}), 400)
    assert (failure["param"], failure["code"]) == ("input_reference", "input_gone")
    again = client.post(path, data={"prompt": "it turns"}, files=files)
    assert again.status_code == 200


@pytest.mark.parametrize("form", ["json", "id", "brackets"])
def test_an_edit_names_a_video_in_every_shape(
    filming: stack.Stack, client: httpx2.Client, form: str
) -> None:
    source = made(filming, client, seed=21)
    body: dict[str, Any] = {
        "json": {"json": {"prompt": "bluer", "video": {"id": source["id"]}}},
        "id": {"json": {"prompt": "bluer", "video": source["id"]}},
        "brackets": {"data": {"prompt": "bluer", "video[id]": source["id"]}},
    }[form]
    edited = post(filming, client, "/edits", **body)
    assert (edited["seed"], edited["prompt"]) == (21, "bluer")
    assert edited["remixed_from_video_id"] == source["id"]


@pytest.mark.parametrize("path", ["/edits", "/extensions"])
def test_an_uploaded_video_is_refused_with_what_would_work(
    client: httpx2.Client, path: str
) -> None:
    files = {"video": ("clip.mp4", b"\0\0\0\x18ftypmp42", "video/mp4")}
    answer = client.post(f"/v1/videos{path}", data={"prompt": "x", "seconds": "1"}, files=files)
    failure = error(answer, 400)
    assert (failure["param"], failure["code"]) == ("video", "unsupported_parameter")
    assert "input_reference" in failure["message"]
    for value in (None, {}, {"id": 3}, 4, {"id": "video_1", "index": -1}):
        answer = client.post(f"/v1/videos{path}", json={"prompt": "x", "video": value})
        assert error(answer, 400)["param"] == "video"
    unknown = client.post(f"/v1/videos{path}", json={"prompt": "x", "video": {"id": "video_x"}})
    error(unknown, 404)


def test_a_source_must_be_finished(manual: stack.Stack, slow: httpx2.Client) -> None:
    job = slow.post("/v1/videos", json={"prompt": "a red circle"}).json()["id"]
    (spec,) = manual.call(manual.peer.submitted())
    paths = (f"/v1/videos/{job}/remix", "/v1/videos/edits", "/v1/videos/extensions")
    body = {"prompt": "x", "video": {"id": job}}
    for path in paths:
        failure = error(slow.post(path, json=body), 400)
        assert failure["code"] == "video_not_ready"
        assert failure["param"] == ("video_id" if "remix" in path else "video")
    manual.call(manual.peer.fail(spec, "oom", "No memory."))
    manual.call(manual.manager.wait(job))
    for path in paths:
        failure = error(slow.post(path, json=body), 400)
        assert failure["code"] == "video_failed"
        assert "No memory." in failure["message"]
    error(slow.post("/v1/videos/video_x/remix", json={"prompt": "x"}), 404)


def test_a_remix_is_checked_like_any_request(filming: stack.Stack, client: httpx2.Client) -> None:
    source = made(filming, client)
    for body, param in (
        ({}, "prompt"),
        ({"prompt": "x", "size": "9x9"}, "size"),
        ({"prompt": "x", "seed": "much"}, "seed"),
        ({"prompt": "x", "enable_upscaling": True}, "enable_upscaling"),
    ):
        answer = client.post(f"/v1/videos/{source['id']}/remix", json=body)
        assert error(answer, 400)["param"] == param
    told = post(filming, client, f"/{source['id']}/remix", json={"prompt": "x", "fsp": 3})
    assert told["warnings"] == ["Unknown field 'fsp'. Did you mean 'fps'? It was ignored."]


# ------------------------------------------------------------------------------------- extensions


def test_an_extension_is_the_source_and_what_follows(
    filming: stack.Stack, client: httpx2.Client
) -> None:
    source = made(filming, client, seed=0, seconds="1")
    extended = post(
        filming, client, "/extensions",
        json={"prompt": "it goes on", "seconds": "1", "video": {"id": source["id"]}},
    )  # fmt: skip
    assert (extended["seconds"], extended["size"], extended["fps"]) == ("2", "64x64", 8)
    assert extended["extended_from_video_id"] == source["id"]
    assert extended["remixed_from_video_id"] is None
    before, after = frames(filming, source), frames(filming, extended)
    assert after.shape == (17, 64, 64, 3)  # 9 and 9, one of which is the same
    spec = spec_of(filming, extended)
    assert spec.task == "image-to-video"
    expected = np.concatenate([clips.clip(9, 64, 64), clips.clip(9, 64, 64)[1:]])
    assert np.abs(after.astype(int) - expected).mean((1, 2, 3)).max() < 5
    assert np.abs(after[:9].astype(int) - before).mean() < 2
    view = filming.call(filming.manager.job(extended["id"]))
    assert view.outputs[0].num_frames == 17

    longer = post(
        filming, client, "/extensions",
        data={"prompt": "and on", "seconds": "0.5", "video[id]": extended["id"]},
    )  # fmt: skip
    assert longer["seconds"] == "2.5"
    assert frames(filming, longer).shape[0] == 21
    again = client.post(f"/v1/videos/{longer['id']}/remix", json={"prompt": "x"})
    assert error(again, 400)["code"] == "unsupported"


def test_it_begins_with_the_last_frame_of_the_chosen_output(
    filming: stack.Stack, client: httpx2.Client
) -> None:
    source = made(filming, client, seed=1, n=2)
    body = {"prompt": "on", "video": {"id": source["id"], "index": 1}}
    extended = post(filming, client, "/extensions", json=body)
    assert extended["seed"] == 2
    view = filming.call(filming.manager.job(source["id"]))
    pixels = read.frame(Path(view.outputs[1].path), 8, (64, 64))
    (given,) = spec_of(filming, extended).inputs.images
    assert given.digest == hashlib.sha256(pixels).hexdigest()
    last = frames(filming, source, 1)[-1].astype(int)
    assert np.abs(frames(filming, extended)[8] - last).mean() < 2
    other = client.post(
        "/v1/videos/extensions", json={"prompt": "on", "video": {"id": source["id"], "index": 2}}
    )
    assert error(other, 404)["param"] == "index"


def test_nothing_of_it_is_left_but_the_file(filming: stack.Stack, client: httpx2.Client) -> None:
    source = made(filming, client)
    body = {"prompt": "on", "video": {"id": source["id"]}}
    extended = post(filming, client, "/extensions", json=body)
    view = filming.call(filming.manager.job(extended["id"]))
    left = {path.name for path in Path(view.outputs[0].path).parent.iterdir()}
    assert "0.mp4" in left
    assert not [name for name in left if name.endswith(".raw")]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seconds": 4}, "seconds"),
        ({"seconds": 0.01}, "seconds"),
        ({"seconds": [1]}, "seconds"),
        ({"num_frames": 1}, "seconds"),
        ({"seconds": 1, "num_frames": 5}, "num_frames"),
        ({"size": "96x96"}, "size"),
        ({"fps": 4}, "size"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_what_does_not_fit_is_refused(
    filming: stack.Stack, client: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    source = made(filming, client)
    body = {"prompt": "on", "video": {"id": source["id"]}, **fields}
    assert error(client.post("/v1/videos/extensions", json=body), 400)["param"] == param


def test_a_model_that_takes_no_picture_extends_nothing(
    shared: stack.Stack, httpx_client: httpx2.Client
) -> None:
    job = httpx_client.post("/v1/videos", json={"prompt": "a red circle"}).json()["id"]
    shared.call(shared.manager.wait(job))
    body = {"prompt": "on", "seconds": 1, "video": {"id": job}}
    failure = error(httpx_client.post("/v1/videos/extensions", json=body), 400)
    assert (failure["param"], failure["code"]) == ("model", "unsupported")
    assert "lab/tiny" in failure["message"]


@pytest.fixture
def httpx_client(shared: stack.Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=shared.base_url, timeout=30) as client:
        yield client


def test_an_extension_outlives_its_source_and_a_restart(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path, card=MOVER, automatic=False) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        running.peer.makes = clips.made
        source = client.post("/v1/videos", json={"prompt": "x", "seed": 0}).json()
        (spec,) = running.call(running.peer.submitted())
        running.call(running.peer.deliver(spec))
        running.call(running.manager.wait(source["id"]))
        body = {"prompt": "on", "video": {"id": source["id"]}}
        extended = client.post("/v1/videos/extensions", json=body).json()
        client.delete(f"/v1/videos/{source['id']}")
    with stack.running(tmp_path, card=MOVER, automatic=False) as running:
        running.peer.makes = clips.made
        (spec,) = running.call(running.peer.submitted())
        assert spec.attempt == 2
        clip = spec.delivery.continues
        assert clip is not None and Path(clip.path).exists()
        running.call(running.peer.deliver(spec))
        running.call(running.manager.wait(extended["id"]))
        assert frames(running, extended).shape[0] == 17
        assert not Path(clip.path).exists()


def test_a_cancelled_extension_leaves_nothing(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path, card=MOVER, automatic=False) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        running.peer.makes = clips.made
        source = client.post("/v1/videos", json={"prompt": "x"}).json()
        (spec,) = running.call(running.peer.submitted())
        running.call(running.peer.deliver(spec))
        running.call(running.manager.wait(source["id"]))
        body = {"prompt": "on", "video": {"id": source["id"]}}
        extended = client.post("/v1/videos/extensions", json=body).json()
        running.call(running.manager.cancel(extended["id"]))
        running.call(running.peer.next(m.Cancel))
        left = Path(running.manager.content_store.root / extended["id"])
        assert not list(left.glob("*.raw"))


# ------------------------------------------------------------------------------------- characters


def test_characters_are_refused_in_the_envelope(client: httpx2.Client) -> None:
    files = {"video": ("clip.mp4", b"\0\0\0\x18ftypmp42", "video/mp4")}
    made = client.post("/v1/videos/characters", data={"name": "Ada"}, files=files)
    for answer in (made, client.get("/v1/videos/characters/char_1")):
        assert error(answer, 400)["code"] == "unsupported"
    failure = client.post("/v1/videos", json={"prompt": "x", "characters": [{"id": "char_1"}]})
    assert error(failure, 400)["param"] == "characters"
