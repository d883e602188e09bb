"""What a batch reads from its file, and what it refuses before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safelight.cli.batch import lines
from safelight.cli.batch.lines import Item
from safelight.errors import ConfigError


def read(path: Path, text: str, **common: Any) -> list[Item]:
    path.write_text(text)
    return lines.read(path, None, common)


def jsonl(*values: object) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


def test_three_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": "a, b", "seed": 3, "size": "64x32"}, {"prompt": "c"}]
    texts = {
        "in.jsonl": jsonl(*rows),
        "in.csv": 'prompt,seed,size\n"a, b",3,64x32\nc,,\n',
        "in.txt": "a, b\n\nc\n",
    }
    by_json, by_csv, by_text = (read(tmp_path / name, text) for name, text in texts.items())
    for items in (by_json, by_csv):
        assert items[0].sampling == {"seed": 3, "width": 64, "height": 32}
        assert items[1].sampling == {}
    for items in (by_json, by_csv, by_text):
        assert [item.line.prompt for item in items] == ["a, b", "c"]
    assert [item.number for item in by_csv] == [2, 3]
    assert [item.number for item in by_text] == [1, 3]
    assert by_csv[1].id == by_json[1].id == by_text[1].id


def test_a_picture_can_stand_in_a_cell(tmp_path: Path) -> None:
    url = "data:image/png;base64," + "A" * 200_000
    [item] = read(tmp_path / "in.csv", f'prompt,image\na,"{url}"\n')
    assert item.options.image_path == [url]


def test_the_command_line_holds_where_a_line_says_nothing(tmp_path: Path) -> None:
    text = jsonl({"prompt": "a"}, {"prompt": "b", "num_inference_steps": 2, "n": 1})
    first, second = read(tmp_path / "in.jsonl", text, num_inference_steps=9, n=3)
    assert (first.sampling, first.options.n) == ({"num_inference_steps": 9}, 3)
    assert (second.sampling, second.options.n) == ({"num_inference_steps": 2}, 1)


def test_ids_follow_from_what_is_said(tmp_path: Path) -> None:
    text = jsonl({"prompt": "a"}, {"prompt": "a", "seed": 1}, {"prompt": "a"}, {"prompt": "b"})
    ids = [item.id for item in read(tmp_path / "in.jsonl", text)]
    assert len(set(ids)) == 4
    assert ids[2] == f"{ids[0]}-2"
    shuffled = jsonl({"prompt": "b"}, {"seed": 1, "prompt": "a"})
    assert [item.id for item in read(tmp_path / "in.jsonl", shuffled)] == [ids[3], ids[1]]


def test_files_of_two_ids_never_have_one_name(tmp_path: Path) -> None:
    given = ["a", "A", "a--1", "a-1", "../a", "a/b", "é", "…", "x" * 300, "x" * 301]
    items = read(
        tmp_path / "in.jsonl", jsonl(*({"id": i, "prompt": "p", "n": 2} for i in given)), n=1
    )
    single = read(tmp_path / "in.jsonl", jsonl(*({"id": i, "prompt": "p"} for i in given)))
    names = [name for item in [*items, *single] for name in item.names(".png")]
    assert len(set(names)) == 3 * len(given)
    assert all(Path(name).name == name and len(name) < 100 for name in names)
    assert items[0].names(".png") == ["a--1.png", "a--2.png"]
    assert single[0].names(".png") == ["a.png"]


def test_lines_of_openais_batch_format(tmp_path: Path) -> None:
    body = {"model": "m", "prompt": "a", "size": "auto", "n": 2, "user": "me", "seed": 4}
    edit = {
        "prompt": "b",
        "images": [{"image_url": "data:image/png;base64,AAAA"}],
        "mask": {"image_url": "data:image/png;base64,BBBB"},
    }
    still, edited, video = read(
        tmp_path / "in.jsonl",
        jsonl(
            {"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": body},
            {"custom_id": "2", "method": "POST", "url": "/v1/images/edits", "body": edit},
            {"custom_id": "3", "method": "POST", "url": "/v1/videos", "body": {"prompt": "c"}},
        ),
    )
    assert (still.id, still.kind, still.line.model, still.options.n) == ("1", "image", "m", 2)
    assert (still.sampling, still.ignored) == ({"seed": 4}, ("user",))
    assert edited.options.image_path == ["data:image/png;base64,AAAA"]
    assert edited.options.mask_path == "data:image/png;base64,BBBB"
    assert (video.id, video.kind) == ("3", "video")


@pytest.mark.parametrize("lora", ["style:0.5", ["style:0.5"], [{"name": "style", "scale": 0.5}]])
def test_adapters_as_on_the_command_line_or_over_http(lora: Any, tmp_path: Path) -> None:
    [item] = read(tmp_path / "in.jsonl", jsonl({"prompt": "a", "lora": lora}))
    assert item.options.lora == ["style:0.5"]


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    [item] = read(tmp_path / "in.jsonl", jsonl({"prompt": "a", "image": ["x.png", "/y.png"]}))
    assert item.options.image_path == [str(tmp_path / "x.png"), "/y.png"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, None),
        ({"num_frames": 1}, "image"),
        ({"num_frames": 5}, None),
        ({"output_format": "mp4"}, "video"),
        ({"output_format": "webp"}, "image"),
        ({"output": "video", "num_frames": 1}, "video"),
    ],
)
def test_what_a_line_becomes(values: dict[str, Any], kind: str | None, tmp_path: Path) -> None:
    [item] = read(tmp_path / "in.jsonl", jsonl({"prompt": "a", **values}))
    assert item.kind == kind


@pytest.mark.parametrize(
    ("name", "text", "messages"),
    [
        ("in.jsonl", '{"prompt": "a"}\n{"prompt": ""}', ["line 2: prompt: expected `str`"]),
        ("in.jsonl", '{"id": "\\ud800", "prompt": "a"}', ["line 1: It is not JSON"]),
        ("in.jsonl", '{"prompt": "a", "guidance_scale": NaN}', ["line 1: It is not JSON"]),
        ("in.jsonl", '{"url": [], "body": {}}', ["line 1: 'url' is []"]),
        ("in.jsonl", '{"prompt": "a"}\nx\n[1]', ["line 2: It is not JSON", "line 3: A JSON obj"]),
        ("in.jsonl", '{"promt": "a"}', ["line 1: Unknown field 'promt'. Did you mean 'prompt'?"]),
        ("in.jsonl", '{"prompt": "a", "n": "x"}', ["line 1: n: expected `int`"]),
        ("in.jsonl", '{"prompt": "a", "size": "9"}', ["line 1: size: WIDTHxHEIGHT"]),
        ("in.jsonl", '{"prompt":"a","lora":[{"name":"x","target":"vae"}]}', ["takes no target"]),
        ("in.jsonl", '{"seed": 1}', ["line 1: Object missing required field `prompt`"]),
        ("in.jsonl", '{"id":"x","prompt":"a"}\n{"id":"x","prompt":"b"}', ["line 2: the id 'x' is"]),
        ("in.jsonl", '{"url": "/v1/x", "body": {}}', ["line 1: 'url' is '/v1/x'; /v1/images/gen"]),
        (
            "in.jsonl",
            '{"url": "/v1/images/edits", "body": {"prompt": "a", "image": "https://h/a.png"}}',
            ["is neither the path of a picture nor a data URL"],
        ),
        ("in.csv", "prompt\na,b\n", ["line 2: There are more cells than columns."]),
        ("in.csv", 'prompt\n"a\n', ["It is not CSV"]),
        ("in.txt", "\n\n", ["in.txt has no lines"]),
        ("in.xlsx", "a", ["does not say what it is; give --input-format csv, jsonl or txt"]),
    ],
)
def test_every_wrong_line_is_named(
    name: str, text: str, messages: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / name, text)
    for message in messages:
        assert message in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        lines.read(tmp_path / "none.jsonl", None, {})
