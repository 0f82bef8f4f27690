"""The papers that presets are from. `docs/references.bib` has them under the same keys, and all others cited."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A published method.

    Attributes:
        key: its entry in docs/references.bib.
        authors: their full names; none where the paper does not name them.
        title: as published.
        published: journal or conference; "" for a preprint.
        year: of the publication.
        arxiv: the number of the preprint; "" without one.
        url: where to read a paper that has no preprint; "" if nowhere.
    """

    key: str
    authors: tuple[str, ...] = ()
    title: str
    published: str = ""
    year: int
    arxiv: str = ""
    url: str = ""

    @property
    def short(self) -> str:
        """Authors and year, as texts and docstrings cite it: Choi et al. 2024."""
        names = [author.split()[-1] for author in self.authors] or ["Anonymous"]
        authors = " & ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{authors} {self.year}"

    @property
    def reference(self) -> str:
        """All of it in one line."""
        authors = ", ".join(self.authors) or "Anonymous"
        published = f"{self.published} ({self.year})" if self.published else str(self.year)
        where = f"arXiv:{self.arxiv}" if self.arxiv else self.url
        return ", ".join(part for part in (f"{authors}: {self.title}", published, where) if part)


CFF = Paper(
    key="aghagolzadeh2025",
    authors=("Hossein Aghagolzadeh", "Mehdi Ezoji"),
    title="Contrastive Forward-Forward: A training algorithm of vision transformer",
    published="Neural Networks 192",
    year=2025,
    arxiv="2502.00571",
)
CFL = Paper(
    key="anonymous2023",
    title="Backpropagation-free Contrastive Forward Learning Using Label Embeddings",
    published="manuscript without its authors' names",
    year=2023,
)
DCL = Paper(
    key="choi2024",
    authors=(
        "Suhwan Choi",
        "Myeongho Jeon",
        "Yeonjung Hwang",
        "Jeonglyul Oh",
        "Sungjun Lim",
        "Joonseok Lee",
        "Myungjoo Kang",
    ),
    title="Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary Networks",
    published="ICLR",
    year=2024,
    url="https://openreview.net/forum?id=Gg7cXo3S8l",
)
FF = Paper(
    key="hinton2022",
    authors=("Geoffrey Hinton",),
    title="The Forward-Forward Algorithm: Some Preliminary Investigations",
    year=2022,
    arxiv="2212.13345",
)
SYMBA = Paper(
    key="lee2023",
    authors=("Heung-Chang Lee", "Jeonggeun Song"),
    title="SymBa: Symmetric Backpropagation-Free Contrastive Learning with Forward-Forward Algorithm for Optimizing "
    "Convergence",
    year=2023,
    arxiv="2303.08418",
)
COLLAB = Paper(
    key="lorberbom2024",
    authors=("Guy Lorberbom", "Itai Gat", "Yossi Adi", "Alexander Schwing", "Tamir Hazan"),
    title="Layer Collaboration in the Forward-Forward Algorithm",
    published="AAAI",
    year=2024,
    url="https://doi.org/10.1609/aaai.v38i13.29324",
)
IFFCL = Paper(
    key="gananath2024",
    authors=("R. Gananath",),
    title="Improved Forward-Forward Contrastive Learning",
    year=2024,
    arxiv="2405.03432",
)
FFCL = Paper(
    key="ahamed2023",
    authors=("Md Atik Ahamed", "Jin Chen", "Abdullah-Al-Zubaer Imran"),
    title="Forward-Forward Contrastive Learning",
    year=2023,
    arxiv="2305.02927",
)
FFCM = Paper(
    key="aghagolzadeh2024",
    authors=("Hossein Aghagolzadeh", "Mehdi Ezoji"),
    title="Marginal Contrastive Loss: A Step Forward for Forward-Forward",
    published="Iranian/International Machine Vision and Image Processing Conference",
    year=2024,
    url="https://doi.org/10.1109/MVIP62238.2024.10491157",
)
CAFO = Paper(
    key="zhao2023",
    authors=("Gongpei Zhao", "Tao Wang", "Yidong Li", "Yi Jin", "Congyan Lang", "Haibin Ling"),
    title="The Cascaded Forward Algorithm for Neural Network Training",
    year=2023,
    arxiv="2303.09728",
)
SCFF = Paper(
    key="chen2025",
    authors=("Xing Chen", "Dongshu Liu", "Jérémie Laydevant", "Julie Grollier"),
    title="Self-Contrastive Forward-Forward algorithm",
    published="Nature Communications 16",
    year=2025,
    arxiv="2409.11593",
)
INFOPRO = Paper(
    key="wang2021",
    authors=("Yulin Wang", "Zanlin Ni", "Shiji Song", "Le Yang", "Gao Huang"),
    title="Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
    published="ICLR",
    year=2021,
    arxiv="2101.10832",
)
AUGLOCAL = Paper(
    key="ma2024",
    authors=("Chenxiang Ma", "Jibin Wu", "Chenyang Si", "Kay Chen Tan"),
    title="Scaling Supervised Local Learning with Augmented Auxiliary Networks",
    published="ICLR",
    year=2024,
    arxiv="2402.17318",
)
DGL = Paper(
    key="belilovsky2020",
    authors=("Eugene Belilovsky", "Michael Eickenberg", "Edouard Oyallon"),
    title="Decoupled Greedy Learning of CNNs",
    published="ICML",
    year=2020,
    arxiv="1901.08164",
)
PREDSIM = Paper(
    key="nokland2019",
    authors=("Arild Nøkland", "Lars Hiller Eidnes"),
    title="Training Neural Networks with Local Error Signals",
    published="ICML",
    year=2019,
    arxiv="1901.06656",
)
