from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.engine_peer import CARD, request
from safelight.errors import ConfigError, InvalidRequest, NotFound, Overloaded, Unavailable
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.manager.media import Decoded, Media
from safelight.request import State
from safelight.store.content import ContentStore
from safelight.store.tables import Status
from safelight.wire import links
from safelight.wire import messages as m

pytestmark = pytest.mark.anyio


def exists(path: str) -> bool:
    return Path(path).exists()


async def until(manager: RequestManager, job_id: str, reached: Any) -> JobView:
    """The first view of the job that satisfies `reached`."""
    async for view in manager.subscribe(job_id):
        if reached(view):
            return view
    raise AssertionError("the job ended before")


async def test_a_job_goes_from_submit_to_completed(lab: Any) -> None:
    manager = await lab.manager()
    accepted = await manager.submit(request(n=2))
    assert (accepted.status, accepted.progress, accepted.eta) == (Status.QUEUED, 0, None)
    first, second = await lab.peer.submitted()

    await lab.peer.progress(first, State.DENOISING, step=3, eta=2.0)
    view = await until(manager, "video_1", lambda v: v.steps_done == 3)
    assert (view.status, view.progress, view.steps_total) == (Status.IN_PROGRESS, 37, 8)
    assert view.started_at is not None
    assert view.eta is None  # the other sample's is not known yet

    await lab.peer.deliver(second)
    assert await lab.peer.next(m.Written) == m.Written(samples=("video_1.1",))
    view = await manager.job("video_1")
    assert [o.sample for o in view.outputs] == ["video_1.1"]
    assert view.eta is not None and 0 < view.eta <= 2.0

    await lab.peer.deliver(first)
    view = await manager.wait("video_1")
    assert (view.status, view.progress, view.steps_done) == (Status.COMPLETED, 100, 8)
    assert [(o.sample, o.seed) for o in view.outputs] == [("video_1.0", 7), ("video_1.1", 8)]
    assert all(exists(o.path) for o in view.outputs)
    assert await lab.peer.next(m.Written) == m.Written(samples=("video_1.0",))
    stored = await manager.job("video_1")
    assert stored == view


async def test_every_sample_gets_its_seed_key_and_place(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request("image_1", task="text-to-image", n=2, priority=3, compression=80))
    specs = await lab.peer.submitted()
    assert [s.id for s in specs] == ["image_1.0", "image_1.1"]
    assert [s.sampling.seed for s in specs] == [7, 8]
    assert {(s.attempt, s.priority, s.delivery.compression) for s in specs} == {(1, 3, 80)}
    assert {s.batch_key for s in specs} == {CARD.batch_key(specs[0].sampling, "text-to-image")}
    assert {s.tokens for s in specs} == {16}
    root = lab.data / "content" / "image_1"
    assert [s.delivery.path for s in specs] == [str(root / "0.png"), str(root / "1.png")]
    assert root.is_dir()
    embedded = specs[1].delivery.parameters
    assert (embedded["seed"], embedded["prompt"]) == ("8", "a red circle")


async def test_samples_of_a_model_with_a_step_cache_share_no_forward(lab: Any) -> None:
    manager = await lab.manager(card=msgspec.structs.replace(CARD, alone=True))
    await manager.submit(request("image_1", task="text-to-image", n=2))
    specs = await lab.peer.submitted()
    assert [s.batch_key for s in specs] == ["alone: image_1.0", "alone: image_1.1"]


async def test_parameters_are_not_embedded_when_that_is_off(lab: Any) -> None:
    manager = await lab.manager(embed_parameters=False)
    await manager.submit(request())
    assert (await lab.peer.submitted())[0].delivery.parameters == {}


async def test_the_row_is_committed_before_the_scheduler_hears_of_it(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safelight.store.jobs import JobStore

    manager = await lab.manager()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(JobStore, "add", broken)
    with pytest.raises(OSError, match="disk full"):
        await manager.submit(request("video_1"))
    monkeypatch.undo()
    await manager.submit(request("video_2"))
    assert [s.id for s in await lab.peer.submitted()] == ["video_2.0"]


async def test_a_caller_that_leaves_during_submit_does_not_orphan_the_job(lab: Any) -> None:
    manager = await lab.manager()
    caller = asyncio.ensure_future(manager.submit(request()))
    await asyncio.sleep(0)  # it has begun
    caller.cancel()
    assert [s.id for s in await lab.peer.submitted()] == ["video_1.0"]
    assert (await manager.job("video_1")).status is Status.QUEUED


async def test_a_full_disk_refuses_and_keeps_nothing(lab: Any, monkeypatch: Any) -> None:
    manager = await lab.manager()
    whole = ContentStore.keep

    def keep(store: ContentStore, files: dict[str, bytes]) -> None:
        whole(store, files)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ContentStore, "keep", keep)
    media = Media(images=(Decoded(b"123", 1, 1, "RGB", "digest"),))
    asked = request("image_1", task="text-to-image", inputs=media.inputs("image_1"))
    with pytest.raises(Unavailable, match="No space left"):
        await manager.submit(asked, media=media)
    with pytest.raises(NotFound):
        await manager.job("image_1")
    assert list(manager.content_store.root.rglob("*.raw")) == []


async def test_one_failing_sample_fails_the_job_and_cancels_the_others(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request(n=3))
    specs = await lab.peer.submitted()
    await lab.peer.deliver(specs[0])
    await lab.peer.next(m.Written)
    await lab.peer.fail(specs[1], "oom", "No memory.")
    view = await manager.wait("video_1")
    assert (view.status, view.error_code) == (Status.FAILED, "oom")
    assert view.error_message == "No memory."
    assert set((await lab.peer.next(m.Cancel)).samples) == {"video_1.1", "video_1.2"}


async def test_a_file_that_could_not_be_written_fails_the_job(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    (spec,) = await lab.peer.submitted()
    await lab.peer.report(
        m.MediaFailed(sample=spec.id, attempt=1, code="disk_full", message="No room.")
    )
    assert (await manager.wait("video_1")).error_code == "disk_full"
    assert (await lab.peer.next(m.Cancel)).samples == (spec.id,)  # it must be forgotten there


async def test_frames_that_went_with_their_rank_are_asked_for_again(lab: Any) -> None:
    manager = await lab.manager()
    asked = request()
    await manager.submit(asked)
    (spec,) = await lab.peer.submitted()
    await lab.peer.report(
        m.MediaFailed(sample=spec.id, attempt=spec.attempt, code=m.FRAMES_LOST, message="gone")
    )
    assert (await lab.peer.next(m.Redeliver)).samples == (spec.id,)
    await lab.peer.deliver(spec)
    assert (await manager.wait(asked.id)).status == "completed"


async def test_cancel_is_final_and_idempotent(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    (spec,) = await lab.peer.submitted()
    waiting = asyncio.ensure_future(manager.wait("video_1"))
    view = await manager.cancel("video_1")
    assert (view.status, view.error_code) == (Status.CANCELLED, "cancelled")
    assert (await waiting).status is Status.CANCELLED
    assert (await lab.peer.next(m.Cancel)).samples == (spec.id,)
    assert await manager.cancel("video_1") == view
    assert lab.peer.silent(m.Cancel)

    # Frames that were under way: the file goes, the scheduler may forget, the job stays cancelled.
    ready = await lab.peer.deliver(spec)
    assert (await lab.peer.next(m.Written)).samples == (spec.id,)
    assert not exists(ready.path)
    assert await manager.job("video_1") == view


async def test_a_sample_that_the_scheduler_stopped_cancels_its_job(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request(n=2))
    specs = await lab.peer.submitted()
    await lab.peer.say(m.SampleCancelled(sample=specs[0].id, attempt=1))
    assert (await manager.wait("video_1")).status is Status.CANCELLED


async def test_cancel_after_completion_changes_nothing(lab: Any) -> None:
    lab.peer.automatic = True
    manager = await lab.manager()
    await manager.submit(request())
    done = await manager.wait("video_1")
    assert await manager.cancel("video_1") == done
    assert done.status is Status.COMPLETED


async def test_delete_removes_row_and_files_and_stops_the_work(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request(n=2))
    specs = await lab.peer.submitted()
    await lab.peer.deliver(specs[0])
    await lab.peer.next(m.Written)
    waiting = asyncio.ensure_future(manager.wait("video_1"))
    await asyncio.sleep(0)
    await manager.delete("video_1")
    assert (await waiting).status is Status.CANCELLED
    assert (await lab.peer.next(m.Cancel)).samples == (specs[1].id,)
    assert not (lab.data / "content" / "video_1").exists()
    for call in (manager.job, manager.wait, manager.cancel, manager.delete):
        with pytest.raises(NotFound, match="video_1"):
            await call("video_1")  # type: ignore[operator]

    late = await lab.peer.deliver(specs[1])
    await lab.peer.next(m.Written)
    assert not Path(late.path).parent.exists()


async def test_files_at_the_callers_own_place_are_its_own(lab: Any, tmp_path: Path) -> None:
    lab.peer.automatic = True
    manager = await lab.manager()
    place = tmp_path / "mine.mp4"
    await manager.submit(request(), destinations=[place])
    view = await manager.wait("video_1")
    assert [o.path for o in view.outputs] == [str(place)]
    await manager.delete("video_1")
    assert place.exists()


# ---------------------------------------------------------------------------------- admission


async def test_a_full_queue_refuses_with_the_predicted_wait(lab: Any) -> None:
    manager = await lab.manager(max_queued_samples=3)
    await manager.submit(request("a", n=3))
    specs = await lab.peer.submitted()
    for spec, eta in zip(specs, (7.2, 3.1, 500.0), strict=True):
        await lab.peer.progress(spec, State.DENOISING, step=1, eta=eta)
    await until(manager, "a", lambda v: v.steps_done == 3)
    waits = []
    for n in (1, 2, 3):
        with pytest.raises(Overloaded) as caught:
            await manager.submit(request("b", n=n))
        waits.append(caught.value.retry_after_s)
    assert waits == [4, 8, 60]
    with pytest.raises(InvalidRequest, match="at most 3"):
        await manager.submit(request("b", n=4))
    with pytest.raises(NotFound):
        await manager.job("b")

    await lab.peer.deliver(specs[0])
    await lab.peer.next(m.Written)
    await manager.submit(request("b"))  # a finished sample makes room, its job need not be done


async def test_the_backlog_stands_in_for_unknown_etas(lab: Any) -> None:
    manager = await lab.manager(max_queued_samples=1)
    await manager.submit(request("a"))
    await lab.peer.submitted()
    heard = asyncio.Event()
    manager.plans = lambda _: heard.set()
    await lab.peer.say(m.Load(unfinished=1, backlog=12.5))
    await lab.peer.say(m.PlanDone(group=0, op="step", samples=(), started=0.0, finished=0.0))
    await heard.wait()
    assert manager.load.backlog == 12.5
    with pytest.raises(Overloaded) as caught:
        await manager.submit(request("b"))
    assert caught.value.retry_after_s == 13


async def test_jobs_that_enter_together_share_the_bound(lab: Any) -> None:
    manager = await lab.manager(max_queued_samples=2)
    results = await asyncio.gather(
        *(manager.submit(request(f"j{i}")) for i in range(5)), return_exceptions=True
    )
    assert sum(isinstance(r, Overloaded) for r in results) == 3


# ----------------------------------------------------------------------------------- recovery


async def test_unfinished_jobs_are_submitted_again_after_a_restart(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request("done"))
    await manager.submit(request("half", n=2))
    (done,), half = await lab.peer.submitted(), await lab.peer.submitted()
    for spec in (done, half[0]):
        await lab.peer.deliver(spec)
        await lab.peer.next(m.Written)
    waiting = asyncio.ensure_future(manager.wait("half"))
    await asyncio.sleep(0)
    await lab.stop(manager)
    with pytest.raises(Unavailable):
        await waiting

    manager = await lab.manager()
    (again,) = await lab.peer.submitted()
    assert (again.id, again.attempt, again.delivery) == (half[1].id, 2, half[1].delivery)
    view = await manager.job("half")
    assert [o.sample for o in view.outputs] == ["half.0"]
    assert (view.attempt, view.steps_done) == (2, 4)
    assert (await manager.job("done")).status is Status.COMPLETED

    await lab.peer.deliver(half[1])  # the old attempt: refused, and not to be forgotten
    await lab.peer.fail(half[1])
    await lab.peer.deliver(again)
    assert await lab.peer.next(m.Written) == m.Written(samples=("half.1",))
    assert (await manager.wait("half")).status is Status.COMPLETED
    assert lab.peer.silent(m.Written)


async def test_a_restarted_scheduler_gets_everything_unfinished(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request(n=2))
    old = await lab.peer.submitted()
    await lab.peer.deliver(old[0])
    await lab.peer.next(m.Written)
    await lab.peer.progress(old[1], State.DENOISING, step=3)
    await until(manager, "video_1", lambda v: v.steps_done == 7)
    await manager.peer_restarted("scheduler")
    (new,) = await lab.peer.submitted()
    assert (new.id, new.attempt) == (old[1].id, 2)
    assert (await manager.job("video_1")).steps_done == 4

    await lab.peer.progress(old[1], State.DENOISING, step=2)  # stale
    await lab.peer.progress(new, State.DENOISING, step=1)
    view = await until(manager, "video_1", lambda v: v.steps_done != 4)
    assert view.steps_done == 5


async def test_a_restarted_output_manager_gets_what_it_was_writing(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request(n=2))
    specs = await lab.peer.submitted()
    await lab.peer.progress(specs[0], State.DENOISING, step=2)
    await lab.peer.progress(specs[1], State.WRITING, step=4)
    await until(manager, "video_1", lambda v: v.steps_done == 6)
    await manager.peer_restarted("output")
    both = (specs[0].id, specs[1].id)
    assert await lab.peer.next(m.Redeliver) == m.Redeliver(samples=both)
    for _ in range(2):  # both lives of it say so, and both are answered
        await lab.peer.deliver(specs[1])
        assert (await lab.peer.next(m.Written)).samples == (specs[1].id,)
    await manager.peer_restarted("output")
    assert await lab.peer.next(m.Redeliver) == m.Redeliver(samples=(specs[0].id,))
    await manager.peer_restarted("workers-0")
    assert lab.peer.silent(m.Redeliver)


async def test_a_job_of_another_model_fails_at_restart(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    await lab.stop(manager)
    other = msgspec.structs.replace(CARD, name="lab/other")
    manager = await lab.manager(card=other)
    view = await manager.job("video_1")
    assert (view.status, view.error_code) == (Status.FAILED, "model_not_served")


async def test_a_delete_that_was_cut_short_is_finished_at_the_next_start(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safelight.store.content import ContentStore

    lab.peer.automatic = True
    manager = await lab.manager()
    await manager.submit(request())
    view = await manager.wait("video_1")

    def cut(*_: object) -> None:
        raise OSError("cut")

    monkeypatch.setattr(ContentStore, "delete", cut)
    with pytest.raises(OSError, match="cut"):
        await manager.delete("video_1")
    monkeypatch.undo()
    assert exists(view.outputs[0].path)
    await lab.stop(manager)
    manager = await lab.manager()
    assert not exists(view.outputs[0].path)
    with pytest.raises(NotFound):
        await manager.job("video_1")


async def test_two_managers_cannot_share_a_data_directory(lab: Any, tmp_path: Path) -> None:
    await lab.manager()
    with pytest.raises(ConfigError, match="in use"):
        await lab.manager()


# ------------------------------------------------------------------------------ news and limits


async def test_a_subscriber_sees_the_newest_view_and_the_end(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    (spec,) = await lab.peer.submitted()
    seen = []

    async def follow() -> None:
        async for view in manager.subscribe("video_1"):
            seen.append(view)

    reader = asyncio.ensure_future(follow())
    for step in range(1, 5):
        await lab.peer.progress(spec, State.DENOISING, step=step, position=0)
    await lab.peer.deliver(spec)
    await reader
    assert seen[0].status is Status.QUEUED
    assert seen[-1].status is Status.COMPLETED
    assert [v.steps_done for v in seen] == sorted(v.steps_done for v in seen)
    assert [v async for v in manager.subscribe("video_1")] == [seen[-1]]


async def test_readiness_follows_the_groups(lab: Any) -> None:
    lab.peer.ready = False
    manager = await lab.manager()
    assert not manager.ready
    plans: asyncio.Queue[m.PlanDone] = asyncio.Queue()
    manager.plans = plans.put_nowait
    done = m.PlanDone(group=0, op="step", samples=("a.0",), started=1.0, finished=2.0)

    async def after(status: m.GroupStatus) -> tuple[bool, str]:
        await lab.peer.say(status)
        await lab.peer.say(done)  # heard after the status
        assert await plans.get() == done
        return manager.ready, manager.readiness

    await lab.peer.next(m.Attach)
    up = m.GroupStatus(group=0, ready=True, detail="serving")
    # The reason may name somebody's sample, and anybody may ask.
    down = m.GroupStatus(group=0, ready=False, detail="rank 1 failed sample video_1.0")
    assert await after(up) == (True, "group 0: serving")
    assert await after(down) == (False, "group 0: not serving")
    assert (await after(up))[0]
    await manager.peer_restarted("scheduler")
    assert not manager.ready


async def test_bytes_that_are_no_message_are_survived(lab: Any) -> None:
    manager = await lab.manager()
    await lab.peer.next(m.Attach)
    await lab.peer.say_raw(b"\xc1 nonsense")
    await lab.peer.report(m.Stop(grace=1.0))  # type: ignore[arg-type]  # not of this link
    lab.peer.automatic = True
    await manager.submit(request())
    assert (await manager.wait("video_1")).status is Status.COMPLETED


async def test_news_of_strangers_are_ignored(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    (spec,) = await lab.peer.submitted()
    for name in ("nobody.0", "video_1.7"):
        stranger = msgspec.structs.replace(spec, id=name)
        await lab.peer.progress(stranger, State.DENOISING, step=1)
        await lab.peer.fail(stranger)
    await lab.peer.deliver(spec)
    assert (await manager.wait("video_1")).status is Status.COMPLETED


async def test_a_job_larger_than_a_message_is_sent_in_several(lab: Any) -> None:
    manager = await lab.manager()
    prompt = "\N{CAT FACE}" * 32_000
    sampling = msgspec.structs.replace(request().sampling, negative_prompt=prompt)
    await manager.submit(request(n=12, prompt=prompt, sampling=sampling))
    messages: list[m.Submit] = []
    while sum(len(message.samples) for message in messages) < 12:
        messages.append(await lab.peer.next(m.Submit))
    assert 1 < len(messages) < 12
    sizes = [len(msgspec.msgpack.encode(message)) for message in messages]
    assert max(sizes) < links.MAX_MESSAGE
    assert [s.id for s in lab.peer.specs] == [f"video_1.{i}" for i in range(12)]


async def test_a_manager_that_goes_deaf_says_so(lab: Any) -> None:
    def explode(_: m.PlanDone) -> None:
        raise ZeroDivisionError

    manager = await lab.manager()
    manager.plans = explode
    await lab.peer.next(m.Attach)
    await lab.peer.say(m.PlanDone(group=0, op="step", samples=(), started=0.0, finished=0.0))
    with pytest.raises(ZeroDivisionError):
        await manager.broken


async def test_lists_mix_live_and_stored_jobs(lab: Any) -> None:
    manager = await lab.manager()
    for name in ("a", "b", "c"):
        await manager.submit(request(name))
        (spec,) = await lab.peer.submitted()
        if name == "b":
            await lab.peer.deliver(spec)
            await manager.wait("b")
        else:
            await lab.peer.progress(spec, State.DENOISING, step=2)
            await until(manager, name, lambda v: v.steps_done == 2)
    page = await manager.list(["text-to-video"], limit=2)
    assert [(v.id, v.steps_done) for v in page.views] == [("c", 2), ("b", 4)]
    assert page.has_more
    page = await manager.list(["text-to-video"], limit=2, after="b")
    assert [v.id for v in page.views] == ["a"] and not page.has_more
