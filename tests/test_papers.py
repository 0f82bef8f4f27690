"""Whose work this is: every citation leads to an entry with authors, title and year."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from pybtex.database import BibliographyData, Entry, parse_file

from launch.presets import PRESETS
from launch.presets.papers import Paper

ROOT = Path(__file__).parent.parent
METHODS = ROOT / "docs" / "methods.md"
PAPERS = {preset.source.key: preset.source for preset in PRESETS.values() if preset.source is not None}
CITATION = re.compile(
    r"\b(?P<first>(?:van der )?[A-ZØ][\w-]+)(?:(?P<others> et\s+al\.)| & (?P<second>[A-Z][\w-]+))?"
    r"\s(?P<year>(?:19|20)\d\d)\b"
)
NO_CITATIONS = {"ICLR", "NeurIPS", "November"}


@pytest.fixture(scope="module")
def references() -> BibliographyData:
    return parse_file(ROOT / "docs" / "references.bib", bib_format="bibtex")


def plain(text: str) -> str:
    """Without BibTeX's braces and escapes; upper and lower case alike, as journals differ in it."""
    return " ".join(text.replace(r"{\o}", "ø").replace("{", "").replace("}", "").lower().split())


def surnames(entry: Entry) -> list[str]:
    return [plain(" ".join([*person.prelast_names, *person.last_names])) for person in entry.persons["author"]]


def cited() -> list[tuple[str, re.Match[str]]]:
    files = [
        path
        for folder in ("pipeline", "workers", "launch", "tests", "docs")
        for pattern in ("*.py", "*.md")
        for path in (ROOT / folder).rglob(pattern)
    ]
    return [
        (f"{path.relative_to(ROOT)}: {match[0]}", match)
        for path in files
        if path != Path(__file__)
        for match in CITATION.finditer(path.read_text("utf-8"))
        if match["first"] not in NO_CITATIONS
    ]


def test_every_reference_names_authors_title_year_and_where_it_was_published(references: BibliographyData) -> None:
    for key, entry in references.entries.items():
        assert surnames(entry), key
        assert {"title", "year"} <= set(entry.fields), key
        assert {"journal", "booktitle", "eprint", "note"} & set(entry.fields), key
        assert key == surnames(entry)[0].replace(" ", "").replace("ø", "o") + entry.fields["year"], key


def test_arxiv_numbers_are_well_formed_and_each_belongs_to_one_work(references: BibliographyData) -> None:
    numbers = [entry.fields["eprint"] for entry in references.entries.values() if "eprint" in entry.fields]
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}", number) for number in numbers)
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("key", PAPERS)
def test_a_presets_paper_is_in_the_references(key: str, references: BibliographyData) -> None:
    paper, entry = PAPERS[key], references.entries[key]
    assert plain(entry.fields["title"]) == paper.title.lower()
    assert int(entry.fields["year"]) == paper.year
    assert entry.fields.get("eprint", "") == paper.arxiv
    assert entry.fields.get("url", "") == paper.url
    assert surnames(entry) == [author.split()[-1].lower() for author in paper.authors or ("anonymous",)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_which_paper_it_is_from(name: str) -> None:
    preset = PRESETS[name]
    assert preset.source is not None
    families = {
        "cafo": "zhao2023",
        "cff": "aghagolzadeh2025",
        "cfl": "anonymous2023",
        "dcl": "choi2024",
        "ff": "hinton2022",
        "scff": "chen2025",
        "symba": "lee2023",
        "ff-collab": "lorberbom2024",
        "ffcl": "ahamed2023",
        "ffcm": "aghagolzadeh2024",
        "iffcl": "gananath2024",
        "infopro": "wang2021",
        "auglocal": "ma2024",
        "dgl": "belilovsky2020",
        "predsim": "nokland2019",
    }
    family = max((family for family in families if name.startswith(f"{family}-")), key=len)
    assert preset.settings.method.kind in (family, {"ffcm": "cff"}.get(family))
    assert preset.source.key == families[family]
    assert preset.source.short in preset.paper
    assert preset.paper.endswith(preset.source.reference)


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_the_methods_page_lists_the_papers_of_presets(paper: Paper) -> None:
    section = METHODS.read_text("utf-8").split("\n## Papers\n")[1].split("\n## ")[0]
    (row,) = [line for line in section.splitlines() if f"*{paper.title}*" in line]
    assert ", ".join(paper.authors) in row and str(paper.year) in row
    assert f"https://arxiv.org/abs/{paper.arxiv}" in row if paper.arxiv else paper.url in row


def test_the_methods_page_links_the_arxiv_numbers_of_the_references(references: BibliographyData) -> None:
    links = re.findall(r"arXiv:([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\)", METHODS.read_text("utf-8"))
    known = {entry.fields["eprint"] for entry in references.entries.values() if "eprint" in entry.fields}
    assert links
    assert all(text == link and link in known for text, link in links)


def test_every_citation_in_the_sources_is_in_the_references(references: BibliographyData) -> None:
    known = {(*surnames(entry), entry.fields["year"]) for entry in references.entries.values()}

    def resolves(match: re.Match[str]) -> bool:
        first, second, year = match["first"].lower(), (match["second"] or "").lower(), match["year"]
        if match["others"]:
            return any(names[0] == first and names[-1] == year and len(names) > 3 for names in known)
        return (first, second, year) in known if second else (first, year) in known

    found = cited()
    assert len(found) > 40  # the pattern finds citations at all
    assert [where for where, match in found if not resolves(match)] == []


def test_every_reference_is_cited(references: BibliographyData) -> None:
    found = {(match["first"].lower(), match["year"]) for _, match in cited()}
    names = {key: (surnames(entry)[0], entry.fields["year"]) for key, entry in references.entries.items()}
    assert [key for key, name in names.items() if name not in found] == []


def test_paper_short_forms() -> None:
    def by(*authors: str) -> Paper:
        return Paper(key="k", authors=authors, title="T", year=2024, arxiv="2401.00001")

    assert by("A. One").short == "One 2024"
    assert by("A. One", "B. Two").short == "One & Two 2024"
    assert by("A. One", "B. Two", "C. Three").short == "One et al. 2024"
    assert by().reference == "Anonymous: T, 2024, arXiv:2401.00001"
    assert by("A. One", "B. Two").reference == "A. One, B. Two: T, 2024, arXiv:2401.00001"


def test_citation_file_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["type"] == "software"
    assert all(set(author) == {"name"} and author["name"] for author in citation["authors"])  # entities
    assert citation["title"] == project["name"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
