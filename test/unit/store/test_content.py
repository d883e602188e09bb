from __future__ import annotations

from pathlib import Path

import pytest

from safelight.errors import InvalidRequest, NotFound
from safelight.store.content import ContentStore


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "content")


def test_a_sample_has_one_place_and_it_maps_both_ways(content: ContentStore) -> None:
    path = content.place("image_1", 2, "jpeg")
    assert path == content.root / "image_1" / "2.jpg"
    assert content.stored(path) == "image_1/2.jpg"
    assert content.located("image_1/2.jpg") == path


def test_a_place_that_the_caller_chose_stays_absolute(content: ContentStore) -> None:
    assert content.stored(Path("/somewhere/out.mp4")) == "/somewhere/out.mp4"
    assert content.located("/somewhere/out.mp4") == Path("/somewhere/out.mp4")


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".", "a.b", "x" * 129, "a\0"])
def test_a_job_id_cannot_leave_the_root(content: ContentStore, name: str) -> None:
    for act in (lambda: content.place(name, 0, "png"), lambda: content.delete(name)):
        with pytest.raises(InvalidRequest, match="job id"):
            act()


def test_a_stored_name_cannot_leave_the_root(content: ContentStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        content.located("../jobs.sqlite")
    content.prepare("image_1")
    (content.root / "image_1" / "0.png").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound):
        content.located("image_1/0.png")
    assert content.stored(content.root / ".." / "x") == str(content.root / ".." / "x")


def test_prepare_sweeps_what_a_killed_writer_left(content: ContentStore) -> None:
    content.prepare("a")
    content.place("a", 0, "png").write_bytes(b"x")
    (content.root / "a" / ".safelight-12.part").write_bytes(b"half")
    content.prepare("a")
    assert [path.name for path in (content.root / "a").iterdir()] == ["0.png"]


def test_delete_removes_a_job_and_no_other(content: ContentStore) -> None:
    for job in ("a", "b"):
        content.prepare(job)
        content.place(job, 0, "png").write_bytes(b"x")
    content.delete("a")
    content.delete("a")
    assert [path.name for path in content.root.iterdir()] == ["b"]


def test_discard_takes_only_what_is_under_the_root(content: ContentStore, tmp_path: Path) -> None:
    outside = tmp_path / "mine.png"
    outside.write_bytes(b"x")
    content.discard(outside)
    assert outside.exists()
    content.prepare("a")
    for index in (0, 1):
        content.place("a", index, "png").write_bytes(b"x")
    content.discard(content.place("a", 0, "png"))
    assert content.place("a", 1, "png").exists()
    content.discard(content.place("a", 1, "png"))
    content.discard(content.place("a", 1, "png"))
    assert not (content.root / "a").exists()


def test_a_file_that_is_gone_is_not_found(content: ContentStore) -> None:
    with pytest.raises(NotFound) as caught:
        content.stat(content.place("a", 0, "png"))
    assert caught.value.code == "content_gone"


def test_input_pictures_without_a_job_are_swept(content: ContentStore) -> None:
    """A crash before the job's row, or behind its end, leaves them."""
    for job in ("image_1", "image_2", "image_3"):
        content.keep({f"{job}/input-0.raw": b"123", f"{job}/mask.raw": b"1"})
    finished = content.place("image_2", 0, "png")
    finished.write_bytes(b"png")
    for job in ("image_1", "image_2"):  # the first may be written to at this moment
        (content.root / job / ".safelight-12.part").write_bytes(b"half")
    content.sweep({"image_1"})
    left = sorted(str(path.relative_to(content.root)) for path in content.root.rglob("*"))
    assert left == [
        "image_1",
        "image_1/.safelight-12.part",
        "image_1/input-0.raw",
        "image_1/mask.raw",
        "image_2",
        "image_2/0.png",
    ]


def test_a_file_of_another_job_is_adopted(
    content: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content.prepare("a")
    source = content.place("a", 0, "mp4")
    source.write_bytes(b"clip")
    content.adopt({"b/clip.raw": source})
    assert content.located("b/clip.raw").samefile(source)

    def without_links(source: Path, path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr("os.link", without_links)
        content.adopt({"c/clip.raw": source})
    content.delete("a")
    for name in ("b/clip.raw", "c/clip.raw"):
        assert content.located(name).read_bytes() == b"clip"
    with pytest.raises(NotFound) as caught:
        content.adopt({"d/clip.raw": source})
    assert caught.value.code == "content_gone"


def test_small_pictures_of_a_finished_job_are_retained(
    content: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.store.content.MAX_RETAINED", 4)
    for job in ("a", "b"):
        names = [f"{job}/input-0.raw", f"{job}/input-1.raw"]
        content.keep({names[0]: b"123", names[1]: b"4" if job == "a" else b"45"})
        assert content.retained(names[0]) == b"123"  # its job may just be ending
        content.retain(names)
        content.forget(names)
    content.sweep(())
    assert content.retained("a/input-0.raw") == b"123"
    assert content.retained("a/input-1.raw") == b"4"
    for name in ("b/input-0.raw", "b/input-1.raw"):
        with pytest.raises(NotFound):
            content.retained(name)
