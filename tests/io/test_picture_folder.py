"""Folders of pictures: every file is a job, or is counted as passed over, with the reason."""

import os
import sys
from pathlib import Path

import pytest
from pictures import NOISE, encoded

from npgemma.errors import BadJobs
from npgemma.io.jobs import Job
from npgemma.io.picture_folder import folder_jobs
from npgemma.io.picture_kinds import SUFFIXES

PNG = encoded(NOISE, "PNG")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other links and pipes")
AVIF = b"\0\0\0\x1cftypavif" + bytes(16)
HEIC = b"\0\0\0\x18ftypheic" + bytes(16)


def names(folder: Path) -> list[str]:
    return [job.id for job in folder_jobs(folder, "ocr")[0]]


def test_a_folder_gives_one_job_per_picture_sorted_by_name(tmp_path):
    called = ["b.png", "a.JPG", "c.webp", "é猫.Tiff", "without ending", "a.heic", "notes.txt", "d.png.bak"]
    for name in called:
        (tmp_path / name).write_bytes(PNG)
    assert folder_jobs(tmp_path, "ocr") == ([Job(name, (name,), "ocr", tmp_path) for name in sorted(called)], "")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO"])
def test_a_picture_without_an_ending_is_found(kind, tmp_path):
    (tmp_path / "picture").write_bytes(encoded(NOISE, kind))
    assert names(tmp_path) == ["picture"]


@pytest.mark.parametrize("suffix", [*sorted(SUFFIXES), ".JPG", ".Jfif"])
def test_a_damaged_file_that_is_called_like_a_picture_is_a_job(suffix, tmp_path):
    """So that its error is told."""
    (tmp_path / f"a{suffix}").write_bytes(b"\xfe\x00\x01damaged")
    assert names(tmp_path) == [f"a{suffix}"]


PASSED_OVER = {
    ".a.png": (PNG, "1 hidden"),
    "._a.jpg": (b"\0\5\x16\7" + bytes(90), "1 hidden"),
    ".DS_Store": (b"\0\0\0\1Bud1", "1 hidden"),
    "a.avif": (AVIF, "1 AVIF picture; convert AVIF to PNG or JPEG"),
    "a.jpg": (HEIC, "1 HEIC picture; convert HEIC to PNG or JPEG"),
    "a": (HEIC, "1 HEIC picture; convert HEIC to PNG or JPEG"),
    "a.svg": (b"<svg/>", "1 SVG picture; convert SVG to PNG or JPEG"),
    "a.jxl": (b"\xff\x0a\1\2", "1 JPEG XL picture; convert JPEG XL to PNG or JPEG"),
    "a.pdf": (b"%PDF-1.7", "1 PDF picture; convert PDF to PNG or JPEG"),
    "a.psd": (b"8BPS\0\1", "1 Photoshop document; convert Photoshop document to PNG or JPEG"),
    "a.nef": (encoded(NOISE, "TIFF"), "1 RAW photo; convert RAW photo to PNG or JPEG"),
    "a.mp4": (b"\0\0\0\x18ftypisom", "1 video"),
    "a.txt": (b"a note", "1 text file"),
    "a.json": (b"{}", "1 JSON file"),
    "a.html": (b"<html>", "1 web page"),
    "b.png": (b"", "1 empty file"),
    "a.zip": (b"PK\3\4", "1 archive"),
    "a.bin": (b"\x80\x81\x82\x00", "1 other file"),
    "fork.jpg": (b"\0\5\x16\7" + bytes(90), "1 macOS resource fork"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "1 Git LFS pointer (run: git lfs pull)"),
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_another_file_is_passed_over_and_counted_with_the_reason(name, tmp_path):
    content, says = PASSED_OVER[name]
    (tmp_path / "z.png").write_bytes(PNG)
    (tmp_path / name).write_bytes(content)
    jobs, others = folder_jobs(tmp_path, "ocr")
    assert [job.id for job in jobs] == ["z.png"]
    assert others == f"1 file passed over: {says}"


def test_files_are_counted_by_reason_the_most_frequent_first(tmp_path):
    (tmp_path / "z.png").write_bytes(PNG)
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_bytes(b"a note")
    for name, content in (
        ("a.avif", AVIF),
        ("b.avif", AVIF),
        ("c.heic", HEIC),
        ("l", b"version https://git-lfs"),
        ("m", b"version https://git-lfs"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / ".thumbnails").mkdir()
    counts = "3 text files, 2 AVIF pictures, 2 Git LFS pointers (run: git lfs pull), 1 hidden, 1 HEIC picture, 1 folder"
    advice = "convert AVIF and HEIC to PNG or JPEG"
    assert folder_jobs(tmp_path, "ocr")[1] == f"10 files passed over: {counts}; {advice}"


@POSIX
def test_links_and_pipes(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "broken.png").symlink_to("gone.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    jobs, others = folder_jobs(tmp_path, "ocr")
    assert [job.id for job in jobs] == ["a.png", "link.png"]
    assert others == "3 files passed over: 2 broken links, 1 special file"


def test_the_file_of_results_is_not_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "out.jsonl").write_bytes(b"{}\n")
    assert folder_jobs(tmp_path, "ocr", tmp_path / "out.jsonl")[1] == ""
    assert folder_jobs(tmp_path, "ocr")[1] == "1 file passed over: 1 JSON file"


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(BadJobs, match=r"contains no pictures: it is empty"):
        folder_jobs(tmp_path, "ocr")
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(BadJobs, match=r"contains no pictures: 1 file passed over: 1 HEIC picture; convert HEIC to PNG"):
        folder_jobs(tmp_path, "ocr")
    with pytest.raises(BadJobs, match=r"nowhere cannot be read"):
        folder_jobs(tmp_path / "nowhere", "ocr")
