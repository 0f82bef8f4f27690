"""Super-classes, groups of classes that a network never learned as such, predicted from its label embeddings.

Zero-shot inference of Anonymous 2023 (section 4.4) and Choi et al. 2024 (naive, super and mean), at every layer:

naive  the super-class of the predicted class. The prediction is the network's at this layer: the readout's where the
       layer has one, else the layer's own, the class of the most similar embedding. Embeddings are needed for nothing.
super  the super-class of the most similar embedding of any class: the nearest of all members. The readout is not asked,
       so a layer without one has the same for super and naive.
mean   the super-class with the most similar mean embedding, the mean of its members' as the layer sees them (pooled to
       its length; the mean of the pooled is the mean, pooled). The readout is not asked.

"Similar" is what the method compares by: the dot product, or the cosine.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.export import LayerOutputs, Network
from pipeline.methods import MethodConfig

_NAMED = 5  # at most so many names in a sentence


@dataclass(frozen=True)
class SuperClasses:
    """A partition of a data set's classes into groups.

    Attributes:
        names: of the super-classes (S).
        groups: the classes of each, by label.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def of_class(self) -> Tensor:
        """The super-class of each class (Z,) int64."""
        of_class = torch.empty(sum(len(group) for group in self.groups), dtype=torch.int64)
        for number, group in enumerate(self.groups):
            of_class[list(group)] = number
        return of_class

    @property
    def order(self) -> list[int]:
        """All classes, group by group."""
        return [label for group in self.groups for label in group]

    def means(self, targets: Tensor) -> Tensor:
        """The mean embedding of each super-class (S, C), from those of all classes (Z, C)."""
        return torch.stack([targets[list(group)].mean(dim=0) for group in self.groups])


def partition(groups: Mapping[str, Sequence[str]], classes: Sequence[str], *, source: str) -> SuperClasses:
    """Super-classes from the names of each one's classes.

    Args:
        groups: class names by super-class.
        classes: the data set's, in label order.
        source: what to call the groups in an error.

    Raises:
        UserError: a name that is no class, a class in two groups or in none, an empty group, fewer than two groups.
    """
    label = {name: number for number, name in enumerate(classes)}
    unknown = [name for names in groups.values() for name in names if name not in label]
    if unknown:
        raise UserError(f"{source}: {_unknown(unknown, classes)}")
    home: dict[str, str] = {}
    for group, names in groups.items():
        if not names:
            raise UserError(f"{source}: super-class {group!r} has no classes. Name them, or leave it out.")
        for name in names:
            if name in home:
                both = f"twice in {group!r}" if home[name] == group else f"in {home[name]!r} and in {group!r}"
                raise UserError(f"{source}: class {name!r} is {both}. A class belongs to one super-class.")
            home[name] = group
    left_out = [name for name in classes if name not in home]
    if left_out:
        raise UserError(f"{source}: no super-class has {_listed(left_out)}. Every class belongs to one.")
    if len(groups) < 2:
        raise UserError(f"{source}: one super-class of everything leaves nothing to predict. Give at least two.")
    return SuperClasses(tuple(groups), tuple(tuple(label[name] for name in names) for names in groups.values()))


def require_embeddings(method: MethodConfig) -> None:
    """Raises UserError where a method has no label embeddings to predict super-classes from."""
    if method.label_embeddings() is None:
        raise UserError(
            f"`superclasses`: this run has no label embeddings ({method.kind} learns none), and super-classes are "
            "predicted from them. Give a run of a method that has label embeddings, such as cfl or dcl."
        )


def _unknown(names: Sequence[str], classes: Sequence[str]) -> str:
    lowered = {name.lower().replace(" ", "_"): name for name in classes}
    said = []
    for name in names[:_NAMED]:
        close = difflib.get_close_matches(name.lower().replace(" ", "_"), lowered, n=1)
        said.append(f"{name!r}" + (f" (did you mean {lowered[close[0]]!r}?)" if close else ""))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    verb = "are no classes" if len(names) > 1 else "is no class"
    return f"{', '.join(said)}{more} {verb} of this run. It has {_listed(classes)}."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


@dataclass(frozen=True)
class Guesses:
    """Super-classes (N,) that a layer predicts in each of the three ways; see the module's text."""

    naive: Tensor
    mean: Tensor
    super: Tensor


def guess(view: LayerOutputs, superclasses: SuperClasses) -> Guesses:
    """Super-classes of the images of a view, whose layer has label embeddings."""
    assert view.targets is not None and view.scores is not None, "asked of methods with label embeddings"
    of_class = superclasses.of_class.to(view.features.device)
    compare = view.rule.compare
    return Guesses(
        naive=of_class[view.scores.argmax(dim=1)],
        mean=compare(view.features, superclasses.means(view.targets)).argmax(dim=1),
        super=of_class[compare(view.features, view.targets).argmax(dim=1)],
    )


@dataclass(frozen=True, kw_only=True)
class SuperAccuracy:
    """Shares of images whose super-class a layer predicts, by the three ways, and whose class it predicts."""

    layer: int
    naive: float
    mean: float
    super: float
    classes: float


@torch.no_grad()
def evaluate(
    network: Network, batches: Iterable[tuple[Tensor, Tensor]], superclasses: SuperClasses
) -> list[SuperAccuracy]:
    """Accuracy on super-classes of every layer of a network with label embeddings.

    Args:
        batches: images, as ``Network.features`` takes them, and labels (N,) of their classes.
    """
    hits: dict[int, Tensor] = {}
    count = 0
    for images, labels in batches:
        truth = superclasses.of_class.to(labels.device)[labels]
        count += len(labels)
        for view in network.outputs(images):
            found = guess(view, superclasses)
            assert view.scores is not None, "guess() has asked"
            judged = [found.naive == truth, found.mean == truth, found.super == truth]
            judged.append(view.scores.argmax(dim=1) == labels)
            hits[view.index] = hits.get(view.index, 0) + torch.stack(judged).sum(dim=1).cpu()
    return [
        SuperAccuracy(layer=layer, naive=naive / count, mean=mean / count, super=nearest / count, classes=exact / count)
        for layer, (naive, mean, nearest, exact) in ((layer, found.tolist()) for layer, found in hits.items())
    ]
