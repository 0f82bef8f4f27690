"""Every link between the documents leads somewhere: to a file that is there, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support_documents import ROOT, documents

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(path: Path) -> set[str]:
    """What links may name in a document: its headings, as GitHub spells them there."""
    headings = re.findall(r"^#+ (.*)$", _prose(path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken(path: Path) -> list[str]:
    """Links of a document within the repository that lead nowhere."""
    broken = []
    for target in _LINK.findall(_prose(path.read_text())):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if "://" not in target and (not there.exists() or (anchor and anchor not in _anchors(there))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_documents_links_lead_somewhere(path: Path) -> None:
    assert _broken(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A & B, `c`\n\n[1](#a--b-c) [2](#d) [3](none.md) [4](page.md#a--b-c)\n\n```\n[5](none)\n```\n")
    assert _broken(page) == ["#d", "none.md"]
