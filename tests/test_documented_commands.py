"""Every command that the documents print runs as it is printed.

They run one after another in one folder, as somebody would who goes through the text: RUN is a small run of theirs,
~/photos a folder of images, the published data sets are made up under their names. One variable of the environment cuts
runs short; it only caps steps. What needs a cluster, a GPU or a site is marked in the text and listed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.presets import PRESETS
from tests.conftest import RAN
from tests.support_data import prepare_made_up, write_photos
from tests.support_documents import ROOT, Printed, commands_of, documents, inline_commands
from tests.support_pictures import write_blank

STEPS = "1"  # of each pass
_LONG = re.compile(
    r"launch (plan|bench|--config|cfl-conv512|dcl-fc|dcl-vgg8b|centres-vit|doctor --gpu|doctor costs) .*"
    r"|launch cff-vit-cifar10( --stages .*)?"
    r"|launch cff-vit .* --sweep .* --run-dir runs/rates|launch compare runs/rates"
)
"""`make test` leaves these to `make test-all`: other commands, or tests of their own, do the same. Sweeps are
test_sweep.py's, label embeddings in stages over Ray test_failures.py's and test_embedding_equality.py's."""

_SERVES = "launch dashboard"  # which runs until it is stopped
_MINE = "runs/mine"
_SMALL = ["cfl-conv512", "--channels", "8", "8", "8", "--executor", "serial", "--max-steps", STEPS, "-q"]
"""What RUN stands for, with label embeddings on CIFAR-10: what is done with a run takes as long as its net is large."""
_LETTERS = {"SEED": "0", "LAG": "1"}

NAMED = [
    arguments for path in documents() for arguments in inline_commands(path.read_text()) if arguments[-1:] != ["--help"]
]


def _printed() -> list[Printed]:
    found = [one for path in documents() for one in commands_of(path.read_text(), str(path.relative_to(ROOT)))]
    of_ci = (ROOT / ".ci" / "run").read_text()
    return [
        replace(one, reason="CI runs it itself")
        if (one.text.startswith("make ") and one.text in of_ci) or one.text == "launch cff-vit"  # `make demo`
        else one
        for one in found
    ]


PRINTED = _printed()


@dataclass
class Reader:
    """Somebody who types what the documents say.

    Attributes:
        home: their home folder; commands run in it.
    """

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = dict(os.environ)
        return kept | {
            "RAY_ADDRESS": "local",  # whatever Ray of somebody else's runs on this machine
            "HOME": str(self.home),
            "LOCALPIPE_DATA": str(self.home / "data"),
            "LOCALPIPE_MAX_STEPS": STEPS,
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": f"{ROOT}:{kept.get('PYTHONPATH', '')}",
        }

    def fill(self, text: str) -> str:
        """The text with its placeholders filled from what was done before."""
        text = re.sub(r"\bRUN\b|runs/…", str(self.home / _MINE), text)
        text = text.replace("IMAGE…", str(self.home / "photos/cat/0.jpg"))
        for letters, value in _LETTERS.items():
            text = re.sub(rf"\b{letters}\b", value, text)
        return text

    def type(self, printed: Printed) -> tuple[int, str]:
        """Runs a command or a block of Python; returns its exit status and all that it printed."""
        text = self.fill(printed.text)
        command = [sys.executable, "-c", text] if printed.python else ["bash", "-c", text]
        process = subprocess.Popen(
            command,
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            return self._follow(process, text)
        finally:
            if process.poll() is None:  # the test's time is over, or it does not end
                os.killpg(process.pid, signal.SIGKILL)

    def _follow(self, process: subprocess.Popen[str], text: str) -> tuple[int, str]:
        if text.startswith(_SERVES):
            assert process.stdout is not None, "it is a pipe"
            said = list(takewhile(lambda line: "Ctrl-C ends it." not in line, process.stdout))
            assert process.poll() is None, "".join(said)
            process.terminate()
            return 0, "".join([*said, process.communicate(timeout=120)[0]])
        output, _ = process.communicate(timeout=800)
        return process.returncode, output


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    home = tmp_path_factory.mktemp("home")
    write_photos(home / "photos")
    shutil.copy(ROOT / "examples" / "plugin_centres.py", home / "my_method.py")
    for name in ("cifar10", "mnist", "fashion-mnist"):
        prepare_made_up(home / "data", name, num_train=600, num_test=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALPIPE_DATA", str(home / "data"))
        patch.setattr("launch.output.pictures.write", write_blank)
        assert main([*_SMALL, "--run-dir", str(home / _MINE)]) == 0
    return Reader(home)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "printed",
    [
        pytest.param(
            one, id=str(one), marks=pytest.mark.exhaustive if _LONG.fullmatch(" ".join(one.text.split())) else ()
        )
        for one in PRINTED
    ],
)
def test_a_printed_command_runs(
    printed: Printed, reader: Reader, record_property: Callable[[str, object], None]
) -> None:
    if printed.reason:
        pytest.skip(printed.reason)
    status, output = reader.type(printed)
    assert status == 0, output
    assert "Traceback" not in output, output
    record_property(RAN, str(printed))


def test_the_documents_print_commands_of_every_kind() -> None:
    """The taking out works: what the README is known to print is found."""
    texts = [printed.text for printed in PRINTED if printed.document == "README.md"]
    assert "launch cff-vit" in texts
    assert any(text.startswith("launch bench") for text in texts)
    assert any(text.startswith("launch analyse RUN") for text in texts)
    assert any(printed.python for printed in PRINTED)
    assert {printed.reason for printed in PRINTED if printed.reason} >= {"CI runs it itself", "needs the network"}


def test_a_new_line_would_be_taken_out_too() -> None:
    text = "Words.\n\n```\nlaunch new --flag \\\n    more   # why\nprinted output\nmake it   # far (needs a GPU)\n```\n"
    found = commands_of(text, "x.md")
    assert [(one.text, one.reason) for one in found] == [("launch new --flag more", ""), ("make it", "needs a GPU")]


@pytest.mark.parametrize("arguments", NAMED, ids=" ".join)
def test_a_command_named_in_running_text_is_known(arguments: list[str], capsys: Any) -> None:
    """Its help is there and knows every flag: what it does is shown by the commands that stand alone."""
    command = [argument for argument in arguments if not argument.startswith("-")][:1]
    if "--preset" in arguments and (named := arguments[arguments.index("--preset") + 1]) in PRESETS:
        command += ["--preset", named]  # its net has flags of its own
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help-all"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert not [flag for flag in arguments if flag.startswith("--") and flag.split("=")[0] not in printed]
