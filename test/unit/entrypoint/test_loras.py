"""The endpoints that manage adapters, as three manuals print them, and adapters of one request."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest

from fakes import stack
from fakes.adapters import adapter
from safelight.request import SampleSpec


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog directory with two adapters."""
    directory = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("style", "face")):
        adapter(directory / f"{name}.safetensors", seed)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[stack.Stack]:
    with stack.running(tmp_path_factory.mktemp("data"), lora_dir=str(library)) as running:
        yield running


@pytest.fixture
def client(server: stack.Stack) -> Iterator[httpx2.Client]:
    """With nothing in force."""
    with httpx2.Client(base_url=server.base_url, timeout=30) as client:
        assert client.post("/remove-lora").status_code == 200
        yield client


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("A", "B"), 10):
        adapter(directory / f"{name}.safetensors", seed)
    return directory


def made(client: httpx2.Client, server: stack.Stack, **fields: Any) -> SampleSpec:
    """What the ranks get of an image."""
    answer = client.post("/v1/images/generations", json={"prompt": "x", **fields})
    assert answer.status_code == 200, answer.text
    assert "warnings" not in answer.json()
    return server.peer.specs[-1]


def used(spec: SampleSpec) -> list[tuple[str, float, str]]:
    return [(one.name, one.scale, one.target) for one in spec.adapters]


def refused(answer: httpx2.Response, status: int, param: str | None) -> str:
    assert answer.status_code == status, answer.text
    failure = answer.json()["error"]
    assert failure["param"] == param, failure
    return str(failure["message"])


class TestManuals:
    def test_sglang_switches_by_unmerging(
        self, client: httpx2.Client, server: stack.Stack, files: Path
    ) -> None:
        for name in ("A", "B"):
            sent = {
                "lora_nickname": f"lora_{name.lower()}",
                "lora_path": f"{files}/{name}.safetensors",
            }
            answer = client.post("/v1/set_lora", json=sent)
            assert answer.json()["status"] == "ok"
            spec = made(client, server)
            assert (used(spec), spec.merged) == ([(sent["lora_nickname"], 1.0, "all")], True)
            assert client.post("/v1/unmerge_lora_weights").status_code == 200
            assert used(made(client, server)) == []
        assert client.post("/v1/merge_lora_weights", json={"strength": 0.8}).status_code == 200
        assert used(made(client, server)) == [("lora_b", 0.8, "all")]

    def test_curl_without_a_content_type(
        self, client: httpx2.Client, server: stack.Stack, files: Path
    ) -> None:
        body = f'{{"lora_nickname": "lora_a", "lora_path": "{files}/A.safetensors"}}'
        url = f"{server.base_url}/v1/set_lora"
        subprocess.run(
            ["curl", "-sS", "--fail-with-body", "-X", "POST", url, "-d", body],
            check=True,
            capture_output=True,
        )
        assert used(made(client, server)) == [("lora_a", 1.0, "all")]

    def test_several_at_once_and_then_one_of_them(
        self, client: httpx2.Client, server: stack.Stack, files: Path
    ) -> None:
        several = {
            "lora_nickname": ["lora_1", "lora_2"],
            "lora_path": [f"{files}/A.safetensors", f"{files}/B.safetensors"],
            "target": ["transformer", "all"],
            "strength": [0.8, 1.0],
        }
        assert client.post("/v1/set_lora", json=several).status_code == 200
        spec = made(client, server)
        assert used(spec) == [("lora_1", 0.8, "transformer"), ("lora_2", 1.0, "all")]
        assert client.post("/v1/set_lora", json={"lora_nickname": "lora_1"}).status_code == 200
        assert used(made(client, server)) == [("lora_1", 1.0, "all")]

    def test_the_list_has_the_shape_of_the_manuals(
        self, client: httpx2.Client, library: Path, files: Path
    ) -> None:
        path = f"{files}/A.safetensors"
        sent = {"lora_nickname": "my_style", "lora_path": path, "strength": 0.8}
        set_ = client.post("/v1/set_lora", json=sent).json()
        found = client.get("/v1/list_loras").json()
        assert {"nickname": "my_style", "path": path} in found["loaded_adapters"]
        assert found["active"] == set_["active"]
        assert found["active"] == {
            "transformer": [
                {
                    "nickname": "my_style",
                    "path": path,
                    "merged": True,
                    "strength": 0.8,
                    "num_lora_layers_with_weights": 4,
                }
            ]
        }
        available = {one["nickname"]: one["path"] for one in found["available"]}
        assert available["face"] == str(library / "face.safetensors")

    def test_flux_api_applies_and_removes(self, client: httpx2.Client, server: stack.Stack) -> None:
        sent = {"lora_name": "face", "lora_weight": 0.8}
        assert client.post("/apply-lora", json=sent).json()["lora_weight"] == 0.8
        status = client.get("/lora-status").json()
        assert (status["lora_loaded"], status["current_lora"]) == (True, "face")
        assert (status["lora_weight"], len(status["loras"])) == (0.8, 1)
        assert used(made(client, server)) == [("face", 0.8, "all")]
        assert "Removed face" in client.post("/remove-lora", json={}).json()["message"]
        assert client.get("/lora-status").json()["lora_loaded"] is False
        assert used(made(client, server)) == []
        names = [one["nickname"] for one in client.get("/loras").json()["loras"]]
        assert {"face", "style"} <= set(names)

    def test_a_form_says_the_same(self, client: httpx2.Client, server: stack.Stack) -> None:
        sent = {"lora_nickname[]": ["style", "face"], "strength[]": ["0.7", "0.9"]}
        assert client.post("/v1/set_lora", data=sent).status_code == 200
        assert used(made(client, server)) == [("style", 0.7, "all"), ("face", 0.9, "all")]


class TestRefusals:
    @pytest.mark.parametrize(
        ("sent", "status", "param", "words"),
        [
            ({}, 400, "lora_nickname", "is missing"),
            ({"lora_nickname": []}, 400, "lora_nickname", "is missing"),
            ({"lora_nickname": "nobody"}, 404, "lora_nickname", "this server has"),
            ({"lora_nickname": "x", "lora_path": "/nowhere"}, 400, "lora_path", "There is no"),
            ({"lora_nickname": "x", "lora_path": "{}/x.bin"}, 400, "lora_path", "Convert it"),
            (
                {"lora_nickname": "x", "lora_path": "{}/x.safetensors"},
                400,
                "lora_path",
                "cut short",
            ),
            ({"lora_nickname": ["style"], "strength": [1, 2]}, 400, "strength", "lists 2 values"),
            ({"lora_nickname": ["style"], "target": []}, 400, "target", "lists 0 values"),
            ({"lora_nickname": ["a", "b"], "lora_path": ["x"]}, 400, "lora_path", "lists 1"),
            ({"lora_nickname": "style", "target": "critic"}, 400, "target", "it has transformer"),
            ({"lora_nickname": "style", "strength": 11}, 400, "strength", "got 11"),
            ({"lora_nickname": "style", "strenght": 1}, 400, "strenght", "'strength'"),
            ({"lora_nickname": ["style", "style"]}, 400, "lora_nickname", "twice"),
            ({"lora_nickname": "style", "model": "other"}, 404, "model", "does not exist"),
            ({"lora_nickname": ["style"] * 17}, 400, "lora_nickname", "at most 16"),
        ],
    )
    def test_set_lora(
        self,
        client: httpx2.Client,
        tmp_path: Path,
        sent: dict[str, Any],
        status: int,
        param: str,
        words: str,
    ) -> None:
        (tmp_path / "x.bin").touch()
        whole = adapter(tmp_path / "x.safetensors")
        whole.write_bytes(whole.read_bytes()[:-1])
        if isinstance(sent.get("lora_path"), str):
            sent = {**sent, "lora_path": sent["lora_path"].format(tmp_path)}
        answer = client.post("/v1/set_lora", json=sent)
        assert words in refused(answer, status, param)
        assert client.get("/v1/list_loras").json()["active"] == {}

    def test_what_the_ranks_refuse(self, client: httpx2.Client, server: stack.Stack) -> None:
        server.peer.misfits["misfit"] = "The adapter 'misfit' was made for another model."
        path = adapter(Path(server.manager.adapters.store.root).parent / "misfit.safetensors", 50)
        sent = {"lora_nickname": "misfit", "lora_path": str(path)}
        words = refused(client.post("/v1/set_lora", json=sent), 400, "lora_path")
        assert words == "The adapter 'misfit' was made for another model."
        names = [one["nickname"] for one in client.get("/loras").json()["loras"]]
        assert "misfit" not in names

    def test_the_others(self, client: httpx2.Client) -> None:
        merge, apply = "/v1/merge_lora_weights", "/apply-lora"
        assert "set_lora first" in refused(client.post(merge), 400, "lora_nickname")
        refused(client.post(merge, json={"target": "critic"}), 400, "target")
        refused(client.post(apply, json={}), 400, "lora_name")
        refused(
            client.post(apply, json={"lora_name": "face", "lora_weight": 3}), 400, "lora_weight"
        )
        refused(client.post("/remove-lora", json={"lora_name": "nobody"}), 404, "lora_name")
        refused(client.get("/lora-status", params={"model": "other"}), 404, "model")

    def test_all_of_them_need_the_key(self, tmp_path: Path) -> None:
        posts = ("/v1/set_lora", "/v1/merge_lora_weights", "/v1/unmerge_lora_weights")
        with (
            stack.running(tmp_path, api_key="secret") as running,
            httpx2.Client(base_url=running.base_url, timeout=30) as client,
        ):
            for path in (*posts, "/apply-lora", "/remove-lora"):
                assert client.post(path).status_code == 401
            for path in ("/v1/list_loras", "/lora-status", "/loras"):
                assert client.get(path).status_code == 401


class TestOfARequest:
    @pytest.mark.parametrize(
        "fields",
        [
            {"lora": [{"name": "style", "scale": 0.5}]},
            {"lora": [{"lora_nickname": "style", "strength": 0.5}]},
            {"lora": {"name": "style", "path": "style", "scale": 0.5, "int_id": 1}},
            {"lora": '{"name": "style", "scale": 0.5}'},
            {"lora": "style:0.5"},
            {"loras": [{"name": "style", "scale": 0.5}]},
            {"lora_name": "style", "lora_weight": 0.5},
            {"extra_body": {"lora": [{"name": "style", "scale": 0.5}]}},
        ],
    )
    def test_every_spelling(
        self, client: httpx2.Client, server: stack.Stack, fields: dict[str, Any]
    ) -> None:
        client.post("/v1/set_lora", json={"lora_nickname": "face"})
        spec = made(client, server, **fields)
        assert (used(spec), spec.merged) == ([("style", 0.5, "all")], False)
        assert used(made(client, server)) == [("face", 1.0, "all")]
        assert used(made(client, server, lora=[])) == []

    def test_of_forms_videos_and_generate(self, client: httpx2.Client, server: stack.Stack) -> None:
        pairs = [("style", "1"), ("face", "2")]  # one adapter after the other, as SDKs write them
        entries = [{"loras[][name]": name, "loras[][scale]": scale} for name, scale in pairs]
        listed = "&".join(["prompt=x", *map(urlencode, entries)])
        text = {"prompt": "x", "lora": '[{"name": "style"}, {"name": "face", "scale": 2}]'}
        for sent in (listed, urlencode(text)):
            form = {"content-type": "application/x-www-form-urlencoded"}
            client.post("/v1/videos", content=sent, headers=form).raise_for_status()
            server.call(server.manager.wait(server.peer.specs[-1].id.rpartition(".")[0]))
            assert sorted(used(server.peer.specs[-1])) == [("face", 2, "all"), ("style", 1, "all")]
        asked = {"prompt": "x", "lora_name": "style", "lora_weight": 0.3}
        client.post("/generate", json=asked).raise_for_status()
        assert used(server.peer.specs[-1]) == [("style", 0.3, "all")]

    @pytest.mark.parametrize(
        ("fields", "status", "param", "words"),
        [
            ({"lora": "nobody"}, 404, "lora", "this server has"),
            ({"lora": "{library}/style.safetensors"}, 404, "lora", "this server has"),
            ({"lora": {"name": "style", "path": "/etc/passwd"}}, 400, "lora", "gives a path"),
            ({"lora": [{"name": "style", "target": "critic"}]}, 400, "lora", "it has transformer"),
            ({"lora": 3}, 400, "lora", "an adapter is a name"),
            ({"lora": "style", "lora_name": "face"}, 400, "lora_name", "give one of them"),
            ({"lora_name": "style", "lora_weight": 2.5}, 400, "lora_weight", "got 2.5"),
        ],
    )
    def test_refusals(
        self,
        client: httpx2.Client,
        library: Path,
        fields: dict[str, Any],
        status: int,
        param: str,
        words: str,
    ) -> None:
        if isinstance(fields.get("lora"), str):
            fields = {**fields, "lora": fields["lora"].format(library=library)}
        for path in ("/v1/images/generations", "/v1/videos"):
            answer = client.post(path, json={"prompt": "x", **fields})
            assert words in refused(answer, status, param)
