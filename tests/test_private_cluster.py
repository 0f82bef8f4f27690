"""A private cluster leaves nothing behind, unless the run failed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support_cli import in_fresh_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a busy machine takes minutes to start Ray

_PROGRAM = """
from pathlib import Path
from launch.presets import PRESETS
from workers.cluster import StartingCluster
with StartingCluster(PRESETS['cff-vit'].settings) as starting:
    starting.wait()
    import ray
    ray.get(ray.put(1))
    starting.failed = {failed}
    print(*(folder.name for folder in (Path({temporary!r}) / 'ray').glob('session_2*')))
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder whose name is short, as the paths of Ray's sockets begin with it."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.parametrize("failed", [False, True])
def test_ray_s_folder_goes_with_the_cluster_unless_the_run_failed(
    temporary: Path, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: every run left a folder in the temporary one, for ever."""
    monkeypatch.setenv("RAY_TMPDIR", str(temporary))
    other = temporary / "ray" / "session_1999-01-01_00-00-00_0_1"  # somebody else's
    other.mkdir(parents=True)
    session = in_fresh_python(_PROGRAM.format(failed=failed, temporary=str(temporary))).strip()
    assert session.startswith("session_")
    left = temporary / "ray" / session
    assert (left / "logs").is_dir() == failed
    assert os.path.lexists(temporary / "ray" / "session_latest") == failed
    assert other.is_dir()
