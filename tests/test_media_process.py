"""The decoder process ends for real here: by its limits, by signals from outside, with its parent. Each death costs one row at most."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medley.media import MediaConfig, MediaProcess, encode_flac

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits on memory need Linux, the tests read /proc")

SOURCE = Path(__file__).resolve().parents[1] / "src"


def png(side_pixels: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side_pixels, side_pixels), 7).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


SMALL, LARGE = ("image", png(16)), ("image", png(4_000, "RGBA"))


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(is_true: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_true()


def test_one_process_cleans_many_media_in_order_and_ends_with_the_block():
    clip = ("audio", encode_flac(np.linspace(-0.5, 0.5, 4_000, dtype=np.float32), 16_000))
    with MediaProcess(MediaConfig()) as process:
        assert process.process_id is None
        first = process.clean([SMALL, clip] * 100)
        process_id = process.process_id
        assert process.clean([SMALL, clip] * 100) == first
        assert process.process_id == process_id
        assert process_id is not None
        assert is_running(process_id)
    assert not is_running(process_id)
    assert [medium.content[:4] for medium in first if medium.content] == [b"\xff\xd8\xff\xe0", b"fLaC"] * 100


def test_a_medium_that_takes_too_long_costs_its_row_and_the_others_are_cleaned_by_a_new_process():
    with MediaProcess(MediaConfig(max_decode_seconds=0.05)) as process:
        process.clean([SMALL])
        process_id = process.process_id
        found = process.clean([SMALL, LARGE, SMALL, SMALL])
        assert process.process_id != process_id
    assert [medium.reason for medium in found] == ["", "decoder took more than 0.05 s", "", ""]
    assert all(medium.content for medium in (found[0], *found[2:]))


def test_a_medium_that_needs_too_much_memory_costs_its_row():
    with MediaProcess(MediaConfig(max_decode_bytes=50_000_000)) as process:
        found = process.clean([SMALL, LARGE, SMALL])
    assert [medium.reason for medium in found] == ["", "decoder needed more than 50 MB", ""]


def test_a_process_ended_from_outside_between_media_costs_no_row():
    with MediaProcess(MediaConfig()) as process:
        expected = process.clean([SMALL])
        assert process.process_id is not None
        os.kill(process.process_id, signal.SIGKILL)
        assert process.clean([SMALL]) == expected


def test_a_process_ended_from_outside_while_it_decodes_costs_no_row_and_ended_twice_costs_one():
    def end(process: MediaProcess, num_times: int, ended: list[int]) -> None:
        """Kill each new child as soon as it has begun to decode the large image."""
        for _ in range(num_times):
            assert wait_until(lambda: process.process_id not in (None, *ended) and resident_megabytes(process.process_id) > 80)
            os.kill(process.process_id, signal.SIGSEGV)  # type: ignore[arg-type]
            ended.append(process.process_id)  # type: ignore[arg-type]

    for num_times, reasons in ((1, ["", "", ""]), (2, ["", "decoder crashed (signal 11)", ""])):
        with MediaProcess(MediaConfig()) as process:
            process.clean([SMALL])
            ended: list[int] = []
            killer = threading.Thread(target=end, args=(process, num_times, ended))
            killer.start()
            found = process.clean([SMALL, LARGE, SMALL])
            killer.join()
        assert len(ended) == num_times
        assert [medium.reason for medium in found] == reasons


def resident_megabytes(process_id: int | None) -> float:
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def test_a_process_that_hangs_is_ended_and_costs_its_row():
    with MediaProcess(MediaConfig(max_decode_seconds=0.25)) as process:
        process.clean([SMALL])
        assert process.process_id is not None
        os.kill(process.process_id, signal.SIGSTOP)
        found = process.clean([SMALL, SMALL])
    assert [medium.reason for medium in found] == ["decoder gave no answer in 3 s", ""]


def test_what_is_too_large_or_empty_is_refused_without_a_process():
    with MediaProcess(MediaConfig(max_size_bytes=10)) as process:
        found = process.clean([SMALL, ("audio", b"")])
        assert process.process_id is None
    assert [medium.reason for medium in found] == [f"image has {len(SMALL[1])} bytes, limit 10", "audio is empty (0 bytes)"]


def test_the_process_imports_no_torch_opens_nothing_knows_no_secret_and_dies_with_its_parent():
    code = (
        "import sys, time; from medley.media import MediaConfig, MediaProcess; process = MediaProcess(MediaConfig())\n"
        "data = sys.stdin.buffer.read(); assert process.clean([('image', data)])[0].content\n"
        "assert 'torch' not in sys.modules; print(process.process_id, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "AWS_SECRET_ACCESS_KEY": "canary"}
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert parent.stdin
    assert parent.stdout
    parent.stdin.write(SMALL[1])
    parent.stdin.close()
    place = Path(f"/proc/{int(parent.stdout.readline())}")
    assert b"canary" not in (place / "environ").read_bytes()
    assert "torch" not in (place / "maps").read_text()
    assert "Max open files            0 " in (place / "limits").read_text()
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_running(int(place.name)))
    parent.stdout.close()
