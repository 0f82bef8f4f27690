"""Images and names of classes that were made to harm `launch predict`: a line each, and little memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from pipeline.data.sources import images
from tests.support_cli import ROOT
from tests.test_damaged_runs import change_card, put, run, whole

__all__ = ["run", "whole"]  # fixtures

_ROW = b"\0" * 25  # of 8 RGB pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (8, 8), pixels: bytes = _ROW * 8) -> bytes:
    """A PNG, with chunks behind its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + end


@pytest.fixture(scope="module")
def bomb() -> bytes:
    return zlib.compress(bytes(64 << 20), 9)


def hostile(bomb: bytes) -> dict[str, tuple[bytes, str]]:
    """Files, and what is said of them."""
    return {
        "pixels.png": (png(size=(60_000, 60_000)), "Image size (3600000000 pixels) exceeds limit"),
        "many.png": (png(size=(12_000, 12_000)), "12000×12000 pixels in"),
        "text.png": (png(chunk(b"zTXt", b"k\0\0" + bomb)), "too large"),
        "international.png": (png(chunk(b"iTXt", b"k\0\1\0\0\0" + bomb)), "too large"),
        "profile.png": (png(chunk(b"iCCP", b"k\0\0" + bomb)), "too large"),
        "short.png": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0\0\x08\0\0"), "Truncated IHDR"),
        "none.png": (png(size=(0, 0)), "in no format"),
        "header.gif": (b"GIF89a\xff\xff\xff\xff\xf7\0\0", ""),
        "header.bmp": (b"BM" + struct.pack("<IHHIIiiHHI", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0), ""),
        "header.ppm": (b"P6 99999999 99999999 255\n", "exceeds limit"),
    }


def test_images_that_are_made_to_harm_are_a_line_each(run: Path, tmp_path: Path, bomb: bytes, capsys: Any) -> None:
    files = hostile(bomb)
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.png").write_bytes(png())
    os.mkfifo(tmp_path / "pipe.png")
    names = [*files, "pipe.png", "good.png", "gone.png"]
    capsys.readouterr()
    tracemalloc.start()
    try:
        assert main(["predict", str(run), *(str(tmp_path / name) for name in names)]) == 2
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1, "the good one"
    lines = said.err.splitlines()
    assert len(lines) == len(names)  # each of the bad ones, and their number
    for line, name in zip(lines, [*files, "pipe.png", "gone.png"], strict=False):
        assert line.startswith(f"{tmp_path / name}: ")
        assert files.get(name, (b"", ""))[1] in line
    assert "no regular file" in lines[len(files)]
    assert lines[-1] == f"error: {len(names) - 1} of {len(names)} files could not be read."


def test_an_image_with_more_pixels_than_its_bytes_can_hold_is_not_decoded(tmp_path: Path) -> None:
    """Symptom: 144 million pixels in 300 KB took a quarter of a GiB, and Pillow's warning was printed on two lines."""
    file = tmp_path / "many.png"
    file.write_bytes(png(size=(12_000, 12_000)))
    for look in (
        lambda: images.look(file),
        lambda: images.read(file, (1, 8, 8)),
        lambda: images.look(file.read_bytes()),
    ):
        with pytest.raises(ValueError, match="not plausible"):
            look()


@pytest.mark.parametrize("given", [["--top", "-3"], ["--top=-3"], ["--top", "0"]])
def test_no_class_to_name_is_one_sentence(given: list[str], run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "good.png").write_bytes(png())
    assert main(["predict", str(run), str(tmp_path / "good.png"), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--top" in line and "at least 1" in line


def test_a_huge_number_of_classes_to_name_names_them_all(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "good.png").write_bytes(png())
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "good.png"), "--top", str(10**30)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.count("%") == 10


def test_names_of_classes_do_not_reach_the_terminal_as_commands(run: Path, tmp_path: Path, capsys: Any) -> None:
    """Symptom: a class called ESC ]0;… changed the terminal's title, and one with a line's end made two lines."""
    (tmp_path / "good.png").write_bytes(png())
    names = [f"\x1b]0;owned\x07\x9b2J\r\n\u202e{number}" for number in range(10)]
    change_card(run, lambda card: put(card, "classes", names))
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "good.png"), "--top", "10"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert "\\x1b]0;owned\\x07\\x9b2J\\r\\n\\u202e3" in line


def test_an_error_with_a_name_of_control_characters_is_printed_safely(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch", "predict", "\x1b[2Jrun", "x.png"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr
    assert b"\\x1b[2Jrun" in done.stderr
