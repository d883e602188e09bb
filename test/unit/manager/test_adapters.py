"""Which adapters a request gets, what administrators change of that, and where the files are."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.adapters import adapter
from fakes.engine_peer import CARD, request
from safelight.errors import ConfigError, InvalidRequest, NotFound
from safelight.manager.adapters import Asked
from safelight.manager.manager import RequestManager
from safelight.manager.wanted import IN_FORCE, named
from safelight.request import Adapter, GenerationRequest
from safelight.store.adapters import AdapterStore
from safelight.wire import messages as m

pytestmark = pytest.mark.anyio

NAME = CARD.name


def asked(
    name: str, path: Path | str | None = None, *, scale: float = 1.0, target: str = "all"
) -> Asked:
    return Asked(
        adapter=named(name, scale, target, param="lora_nickname"),
        path=None if path is None else str(path),
    )


def job(job_id: str, *adapters: Adapter) -> GenerationRequest:
    """One that asks for these adapters, or for what is in force."""
    return request(job_id, adapters=adapters or IN_FORCE)


def own(name: str, scale: float = 1.0, target: str = "all") -> Adapter:
    return Adapter(name=name, scale=scale, target=target)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def overwrite(path: Path) -> None:
    path.write_bytes(b"another")


def remove(path: Path) -> None:
    path.unlink()


def exists(path: str) -> bool:
    return Path(path).is_file()


def files(data: Path) -> set[str]:
    return {path.stem for path in (data / "adapters").glob("*.safetensors")}


async def accepted(manager: RequestManager, job_id: str, *adapters: Adapter) -> GenerationRequest:
    return (await manager.submit(job(job_id, *adapters))).request


def used(request: GenerationRequest) -> list[tuple[str, float, str]]:
    return [(one.name, one.scale, one.target) for one in request.adapters]


@pytest.fixture
def style(tmp_path: Path) -> Path:
    return adapter(tmp_path / "style.safetensors", 1)


@pytest.fixture
def face(tmp_path: Path) -> Path:
    return adapter(tmp_path / "face.safetensors", 2)


class TestInForce:
    async def test_what_is_set_holds_for_later_requests_only(
        self, lab: Any, style: Path, face: Path
    ) -> None:
        manager = await lab.manager()
        before = await accepted(manager, "video_1")
        await manager.adapters.put(NAME, [asked("style", style, scale=0.8)])
        between = await accepted(manager, "video_2")
        await manager.adapters.put(NAME, [asked("face", face)])
        after = await accepted(manager, "video_3")
        assert (used(before), before.merged) == ([], False)
        assert (used(between), between.merged) == ([("style", 0.8, "all")], True)
        assert used(after) == [("face", 1.0, "all")]
        assert between.adapters[0].digest == digest(style)

    async def test_ranks_get_the_path_of_our_copy(self, lab: Any, style: Path) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style)])
        overwrite(style)
        await accepted(manager, "video_1")
        (spec,) = await lab.peer.submitted()
        assert digest(Path(spec.adapters[0].path)) == spec.adapters[0].digest
        assert spec.merged
        assert spec.delivery.parameters["lora"] == "style:1 (all)"

    async def test_all_ranks_have_it_before_it_is_set(self, lab: Any, style: Path) -> None:
        lab.peer.tries = False
        manager = await lab.manager()
        setting = asyncio.create_task(manager.adapters.put(NAME, [asked("style", style)]))
        message = await lab.peer.next(m.LoadAdapters)
        assert message.model == NAME
        assert used(await accepted(manager, "video_1")) == []
        await lab.peer.try_out(message)
        await setting
        assert used(await accepted(manager, "video_2")) == [("style", 1.0, "all")]

    async def test_a_scheduler_that_comes_back_is_asked_again(self, lab: Any, style: Path) -> None:
        lab.peer.tries = False
        manager = await lab.manager()
        setting = asyncio.create_task(manager.adapters.put(NAME, [asked("style", style)]))
        first = await lab.peer.next(m.LoadAdapters)
        await manager.peer_restarted("scheduler")
        again = await lab.peer.next(m.LoadAdapters)
        assert again == first
        await lab.peer.try_out(again)
        await setting

    async def test_what_does_not_fit_changes_nothing(
        self, lab: Any, style: Path, face: Path
    ) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style)])
        lab.peer.misfits["face"] = "The adapter 'face' was made for another model."
        with pytest.raises(InvalidRequest, match="made for another") as failure:
            await manager.adapters.put(NAME, [asked("style"), asked("face", face)])
        assert failure.value.param == "lora_path"
        assert used(await accepted(manager, "video_1")) == [("style", 1.0, "all")]
        assert await manager.adapters.names() == {"style": str(style)}
        assert files(lab.data) == {digest(style)}
        gone = await lab.peer.next(m.ForgetAdapters)
        assert gone.digests == (digest(face),)

    async def test_unmerged_where_merging_is_switched_off(self, lab: Any, style: Path) -> None:
        manager = await lab.manager(disable_fuse_lora=True)
        await manager.adapters.put(NAME, [asked("style", style)])
        assert not (await accepted(manager, "video_1")).merged
        await manager.adapters.merge(NAME, "all", None)
        assert (await accepted(manager, "video_2")).merged

    async def test_nothing_is_merged_into_quantized_weights(self, lab: Any, style: Path) -> None:
        manager = await lab.manager(quantization="int8")
        await manager.adapters.put(NAME, [asked("style", style)])
        assert not (await accepted(manager, "video_1")).merged
        with pytest.raises(InvalidRequest, match="quantized"):
            await manager.adapters.merge(NAME, "all", None)


class TestMerging:
    async def test_unmerge_gives_the_model_as_it_was_and_merge_the_set(
        self, lab: Any, style: Path
    ) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style, scale=0.5)])
        await manager.adapters.unmerge(NAME)
        off = await accepted(manager, "video_1")
        await manager.adapters.merge(NAME, "all", None)
        on = await accepted(manager, "video_2")
        await manager.adapters.merge(NAME, "all", 0.8)
        stronger = await accepted(manager, "video_3")
        assert (used(off), off.merged) == ([], False)
        assert (used(on), on.merged) == ([("style", 0.5, "all")], True)
        assert used(stronger) == [("style", 0.8, "all")]

    @pytest.mark.parametrize("unmerged", [True, False])
    async def test_a_target_changes_its_part_and_leaves_the_rest_as_it_was(
        self, lab: Any, style: Path, unmerged: bool
    ) -> None:
        manager = await lab.manager()
        lab.peer.tries = False
        setting = asyncio.create_task(manager.adapters.put(NAME, [asked("style", style)]))
        ticket = (await lab.peer.next(m.LoadAdapters)).ticket
        layers = {"transformer": 4, "text_encoder": 2}
        await lab.peer.say(m.AdaptersLoaded(ticket=ticket, layers=layers))
        await setting
        if unmerged:
            await manager.adapters.unmerge(NAME)
        await manager.adapters.merge(NAME, "transformer", 0.4)
        rest = [] if unmerged else [("style", 1.0, "text_encoder")]
        found = used(await accepted(manager, "video_1"))
        assert found == [("style", 0.4, "transformer"), *rest]

    @pytest.mark.parametrize("unmerged", [True, False])
    async def test_what_it_does_not_change_is_refused_and_nothing_changes(
        self, lab: Any, style: Path, unmerged: bool
    ) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style)])  # it changes the transformer
        if unmerged:
            await manager.adapters.unmerge(NAME)
        before = manager.adapters.choice(NAME)
        with pytest.raises(InvalidRequest, match=r"None of .* changes text_encoder"):
            await manager.adapters.merge(NAME, "text_encoder", None)
        assert manager.adapters.choice(NAME) == before

    async def test_a_part_of_what_nobody_has_loaded_is_refused(self, lab: Any, style: Path) -> None:
        manager = await lab.manager()
        lab.peer.parts = {}  # as of a model that is not loaded
        await manager.adapters.put(NAME, [asked("style", style)])
        with pytest.raises(InvalidRequest, match="once it is loaded") as failure:
            await manager.adapters.merge(NAME, "transformer", 0.4)
        assert failure.value.param == "target"
        lab.peer.parts = {"transformer": 4}
        await manager.adapters.merge(NAME, "transformer", 0.4)
        assert used(await accepted(manager, "video_1")) == [("style", 0.4, "transformer")]

    async def test_nothing_to_merge_is_said(self, lab: Any) -> None:
        manager = await lab.manager()
        with pytest.raises(InvalidRequest, match="set_lora first"):
            await manager.adapters.merge(NAME, "all", None)
        await manager.adapters.unmerge(NAME)  # has nothing to do


class TestOfARequest:
    async def test_it_gets_what_it_names_unmerged(
        self, lab: Any, style: Path, face: Path, tmp_path: Path
    ) -> None:
        manager = await lab.manager(lora_dir=str(tmp_path))
        await manager.adapters.put(NAME, [asked("set", style)])
        mine = await accepted(manager, "video_1", own("face", 0.3), own("set", -1.0))
        assert (used(mine), mine.merged) == ([("face", 0.3, "all"), ("set", -1.0, "all")], False)
        assert [one.digest for one in mine.adapters] == [digest(face), digest(style)]
        none = (await manager.submit(request("video_2", adapters=()))).request
        assert none.adapters == ()

    async def test_requests_that_come_together_copy_it_once(
        self, lab: Any, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manager = await lab.manager(lora_dir=str(tmp_path))
        taken: list[Path] = []
        take = AdapterStore.take

        def counted(store: AdapterStore, source: Path) -> tuple[Path, str]:
            taken.append(source)
            return take(store, source)

        monkeypatch.setattr(AdapterStore, "take", counted)
        together = [accepted(manager, f"video_{number}", own("style")) for number in range(4)]
        found = await asyncio.gather(*together)
        assert {one.adapters[0].digest for one in found} == {digest(style)}
        assert taken == [style]

    async def test_an_unknown_one_names_those_that_are_known(
        self, lab: Any, style: Path, tmp_path: Path
    ) -> None:
        manager = await lab.manager(lora_dir=str(tmp_path))
        with pytest.raises(NotFound, match="'stile'; this server has style") as failure:
            await accepted(manager, "video_1", own("stile"))
        assert failure.value.code == "adapter_not_found"
        with pytest.raises(NotFound):
            await accepted(manager, "video_1", own(str(style)))
        with pytest.raises(NotFound):
            await manager.job("video_1")

    async def test_a_path_is_refused_unless_it_says_the_name_again(
        self, lab: Any, style: Path
    ) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style)])
        with_path = msgspec.structs.replace(own("style"), path="/etc/passwd")
        with pytest.raises(InvalidRequest, match="gives a path"):
            await accepted(manager, "video_1", with_path)
        for path in ("style", str(style)):
            given = msgspec.structs.replace(own("style"), path=path)
            assert used(await accepted(manager, f"video_{len(path)}", given))

    async def test_a_wrong_target_names_the_components(self, lab: Any, style: Path) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style)])
        with pytest.raises(InvalidRequest, match=r"no 'critic'.*transformer, .*or all"):
            await accepted(manager, "video_1", own("style", target="critic"))

    async def test_one_that_does_not_fit_is_refused_before_it_is_accepted(
        self, lab: Any, style: Path, tmp_path: Path
    ) -> None:
        manager = await lab.manager(lora_dir=str(tmp_path))
        lab.peer.misfits["style"] = "It was made for another model."
        with pytest.raises(InvalidRequest, match="another model"):
            await accepted(manager, "video_1", own("style"))

    async def test_a_file_of_the_directory_that_changes_is_read_again(
        self, lab: Any, style: Path, tmp_path: Path
    ) -> None:
        manager = await lab.manager(lora_dir=str(tmp_path))
        first = await accepted(manager, "video_1", own("style"))
        adapter(style.with_name("new"), 9).replace(style)
        second = await accepted(manager, "video_2", own("style"))
        assert first.adapters[0].digest != second.adapters[0].digest == digest(style)
        # The old one is still an unfinished job's.
        assert files(lab.data) == {one.adapters[0].digest for one in (first, second)}


class TestFiles:
    async def test_what_is_removed_stays_for_the_jobs_that_have_it(
        self, lab: Any, style: Path
    ) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style)])
        await accepted(manager, "video_1")
        (spec,) = await lab.peer.submitted()
        remove(style)
        assert await manager.adapters.remove(NAME, "style") == ("style",)
        assert exists(spec.adapters[0].path)
        assert used(await accepted(manager, "video_2")) == []
        await lab.peer.deliver(spec)
        await manager.wait("video_1")
        assert (await lab.peer.next(m.ForgetAdapters)).digests == (spec.adapters[0].digest,)
        await manager.adapters.sweep()
        assert files(lab.data) == set()

    async def test_taken_out_of_force_it_stays_in_the_catalog(self, lab: Any, style: Path) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("style", style)])
        assert await manager.adapters.remove(NAME, None) == ("style",)
        assert used(await accepted(manager, "video_1")) == []
        remove(style)
        await manager.adapters.put(NAME, [asked("style")])
        assert used(await accepted(manager, "video_2")) == [("style", 1.0, "all")]
        with pytest.raises(NotFound, match="this server has style"):
            await manager.adapters.remove(NAME, "other")

    async def test_the_catalog_and_what_is_in_force_survive_a_restart(
        self, lab: Any, style: Path, face: Path
    ) -> None:
        manager = await lab.manager()
        await manager.adapters.put(NAME, [asked("face", face)])
        await manager.adapters.put(NAME, [asked("style", style, scale=0.7)])
        await accepted(manager, "video_1")
        before = await lab.peer.submitted()
        await lab.stop(manager)
        (lab.data / "adapters" / "0.safetensors").write_bytes(b"of nobody")
        (lab.data / "adapters" / ".safelight-1.part").write_bytes(b"half")

        manager = await lab.manager()
        again = await lab.peer.submitted()
        assert [one.adapters for one in again] == [one.adapters for one in before]
        assert used(await accepted(manager, "video_2")) == [("style", 0.7, "all")]
        assert sorted(await manager.adapters.names()) == ["face", "style"]
        left = {path.name for path in (lab.data / "adapters").iterdir()}
        assert left == {"catalog.json", *(f"{digest(p)}.safetensors" for p in (style, face))}

    async def test_a_broken_catalog_stops_the_start(self, lab: Any) -> None:
        (lab.data / "adapters").mkdir(parents=True)
        (lab.data / "adapters" / "catalog.json").write_text('{"registered": 3}')
        with pytest.raises(ConfigError, match=r"catalog\.json cannot be read"):
            await lab.manager()


class TestStart:
    async def test_the_command_line_s_adapter_is_in_force(self, lab: Any, style: Path) -> None:
        manager = await lab.manager(lora_path=str(style), lora_scale=0.6)
        assert used(await accepted(manager, "video_1")) == [("style", 0.6, "all")]

    async def test_a_file_in_a_directory_by_name(self, lab: Any, style: Path, face: Path) -> None:
        directory = str(style.parent)
        manager = await lab.manager(
            lora_path=directory, lora_name="face.safetensors", lora_nickname="f"
        )
        mine = await accepted(manager, "video_1")
        assert [(one.name, one.digest) for one in mine.adapters] == [("f", digest(face))]

    async def test_what_was_set_since_outlives_a_restart_with_the_same_settings(
        self, lab: Any, style: Path, face: Path
    ) -> None:
        start = {"lora_path": str(style)}
        manager = await lab.manager(**start)
        await manager.adapters.put(NAME, [asked("face", face)])
        await lab.stop(manager)
        manager = await lab.manager(**start)
        assert used(await accepted(manager, "video_1")) == [("face", 1.0, "all")]
        await lab.stop(manager)
        manager = await lab.manager(**start, lora_scale=0.2)
        assert used(await accepted(manager, "video_2")) == [("style", 0.2, "all")]
        await lab.stop(manager)
        manager = await lab.manager()
        assert used(await accepted(manager, "video_3")) == []

    async def test_ranks_try_it_as_soon_as_they_are_ready(self, lab: Any, style: Path) -> None:
        manager = await lab.manager(lora_path=str(style))
        await lab.peer.say(m.GroupStatus(group=0, ready=True, detail="serving", model=NAME))
        message = await lab.peer.next(m.LoadAdapters)
        assert [one.name for one in message.adapters] == ["style"]
        await manager.adapters.trying.repeat()

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"lora_path": "{tmp}/none"}, "There is no"),
            ({"lora_path": "{tmp}/a.bin"}, "Convert it"),
            ({"lora_path": "{tmp}", "lora_name": "b.safetensors"}, "it has style.safetensors"),
            ({"lora_dir": "{tmp}/none"}, "--lora-dir"),
        ],
    )
    async def test_what_cannot_be_had_stops_the_start(
        self, lab: Any, style: Path, settings: dict[str, str], words: str
    ) -> None:
        (style.parent / "a.bin").write_bytes(b"\x80\x02")
        given = {k: v.format(tmp=style.parent) for k, v in settings.items()}
        with pytest.raises(ConfigError, match=words):
            await lab.manager(**given)
