"""What a set of labelled images is: where its files lie, what their numbers mean, which classes and splits there are.

A description is one small YAML file; `configs/labelled/` has examples. It has one or several images by role (`optical` and
`sar`, `passive` and `active`, ...), a label map, and one of

* `splits`: many images, each with a name; a list of names, or null for all, says what serves for what;
* `layouts`: one or a few scenes whose labelled pixels are split; official maps of training and test pixels may be named;
* `patches`: one file of ready patches.

Three ways of naming files: a pattern such as `opt/{key}.tif`, in which `{key}` is the name of an image, `{split}`, if used,
that of the split and `{folder}` one of several folders (the image is then called FOLDER/KEY); a folder, whose images are
named by their path without suffix; nothing at all: then every line of a split's list holds the paths of one sample, images
first. A name in a list may hold * for many, such as FOLDER/*.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import IGNORE, Colour, LabelSource, as_colour, palette_colour

LABEL = "label"
MAPS = ("labels", "train", "test", "blocks")  # roles of a layout beside the images


@dataclass(frozen=True, kw_only=True)
class Layout(Ranged):
    """One way in which the files of a labelled scene are named: FILE or FILE:KEY of every image and map.

    A file name may hold one *: then every file that fits makes a scene, and all names with * must go together.
    """

    images: Mapping[str, str]
    labels: str | None = None  # map of classes; None: those of train and test together
    train: str | None = None  # official training pixels: a map, or a list of rows and columns
    test: str | None = None
    blocks: str | None = None  # map of places that a split must not tear apart
    origin: int | None = ranged(None, 0, 1)
    """Of listed rows and columns; None: told by the lists."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images:
            raise InputError("a layout names neither a passive nor an active image; give one as FILE:KEY")
        if not (self.labels or (self.train and self.test)):
            raise InputError("a layout names no labels; give labels, or train and test, as FILE:KEY")

    @property
    def texts(self) -> dict[str, str]:
        """FILE or FILE:KEY by role."""
        return dict(self.images) | {role: text for role in MAPS if (text := getattr(self, role))}

    def sources(self) -> dict[str, tuple[str, str | None]]:
        """File and key of every array that there is, by role."""
        parted = {role: text.partition(":") for role, text in self.texts.items()}
        return {role: (file, key or None) for role, (file, _, key) in parted.items()}

    def named(self, star: str) -> "Layout":
        """The layout of one scene: * stands for its name."""
        changed = {role: text.replace("*", star) for role, text in self.texts.items()}
        images = {role: changed.pop(role) for role in self.images}
        return dataclasses.replace(self, images=images, **changed)


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A set of labelled images. All paths are below the root, or absolute."""

    name: str
    root: Path = Path()
    images: Mapping[str, ImageSource]  # by role
    label: LabelSource = field(default_factory=LabelSource)
    classes: Mapping[str, Colour] = field(default_factory=dict)  # in the order of their indices; empty: not known
    coloured: bool = True  # whether the colours are those of the description, not of a palette
    splits: Mapping[str, str | Sequence[str] | None] = field(default_factory=dict)
    layouts: tuple[Layout, ...] = ()
    patches: str = ""
    columns: tuple[str, ...] = ()  # roles of the paths in a line of a list; (): all, in their order

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        colours = {str(name): as_colour(str(name), rgb) for name, rgb in self.classes.items()}
        object.__setattr__(self, "classes", colours)
        if sum(map(bool, (self.splits, self.layouts, self.patches))) != 1:
            raise InputError(
                f"{self.name}: no splits, layouts or patches, or several of them; give one: `splits: {{all: null}}` takes every "
                f"image that is found"
            )
        most = len(self.classes) if self.classes or not self.splits else 0
        if len(self.classes) >= IGNORE or (self.splits and not self.classes):
            raise InputError(f"{self.name}: {len(self.classes)} classes; give 1 to {IGNORE - 1}")
        wrong = {*self.label.values.values()} - {*range(most), IGNORE} if self.classes else set()
        if wrong:
            raise InputError(
                f"{self.name}: label.values leads to class {min(wrong)}; there are 0 to {most - 1}, "
                f"and {IGNORE} for pixels to ignore"
            )
        self._check_splits()
        self._check_files()

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the images, then the label map."""
        return (*self.images, LABEL)

    @property
    def patterns(self) -> dict[str, str | None]:
        """How the files of each role are named."""
        return {role: source.files for role, source in self.images.items()} | {LABEL: self.label.files}

    def image(self, role: str) -> ImageSource:
        """The images of a role.

        Raises:
            InputError: the set has none.
        """
        if role not in self.images:
            raise InputError(f"{self.name} has no image {role!r}; it has {', '.join(self.images)}")
        return self.images[role]

    def only(self, roles: Mapping[str, str]) -> "LabelledSet":
        """The same set with some of its images alone.

        Args:
            roles: in the set of each image, by the one that it gets.
        Raises:
            InputError: the set has no such image.
        """
        images = {name: self.image(role) for name, role in roles.items()}
        new = {role: name for name, role in roles.items()} | {LABEL: LABEL}
        columns = tuple(new.get(role, f"({role})") for role in self.columns or self.roles)
        return dataclasses.replace(self, images=images, columns=columns)

    def with_images(self, **images: ImageSource) -> "LabelledSet":
        """The same set with some of its images described anew."""
        return dataclasses.replace(self, images={**self.images, **images})

    def class_names(self, chosen: Sequence[str | int]) -> tuple[str, ...]:
        """Names of classes that are given by name, or by the number that stands for them in label maps.

        Raises:
            InputError: there is no such class, or the description does not say what numbers mean.
        """
        return tuple(dict.fromkeys(self._class_name(each) for each in chosen))

    def without(self, names: Sequence[str | int]) -> "LabelledSet":
        """The same set without some classes, see `class_names`: their pixels have no label.

        Raises:
            InputError: a class is not there, or none would be left.
        """
        out = self.class_names(names)
        left = [name for name in self.classes if name not in out]
        if not out:
            return self
        if not left:
            raise InputError(
                f"{self.name}: classes to leave out are {list(names)}, all there are; one at least must stay"
            )
        own = list(self.classes)
        index = {own.index(name): number for number, name in enumerate(left)}
        values = {stored: index.get(old, IGNORE) for stored, old in self.label.table(len(own)).items()}
        colours = tuple(self.classes[name] for name in out) if self.coloured else ()
        label = self.label.numbered(values, ignored=colours)
        return dataclasses.replace(self, label=label, classes={name: self.classes[name] for name in left})

    def _class_name(self, chosen: str | int) -> str:
        if str(chosen) in self.classes:
            return str(chosen)
        if not self.classes:
            raise InputError(f"{self.name} names no classes, so that none can be chosen; give `classes`")
        hint = difflib.get_close_matches(str(chosen), self.classes, n=1)
        told = f"; did you mean {hint[0]!r}?" if hint else ""
        message = f"{self.name}: {chosen!r} is no class{told}; there are {', '.join(self.classes)}"
        if not str(chosen).isdigit():
            raise InputError(message)
        if self.label.first is None and self.label.unlabelled != 0 and not self.label.values:
            raise InputError(f"{message}; labels themselves tell what {chosen} means, so give a name")
        table = self.label.table(len(self.classes))
        own = {value: list(self.classes)[index] for value, index in sorted(table.items()) if index != IGNORE}
        if int(chosen) not in own:
            raise InputError(f"{message}, stored as {', '.join(map(str, own))}")
        return own[int(chosen)]

    def _check_splits(self) -> None:
        for split, given in self.splits.items():
            if given is not None and not isinstance(given, str | list | tuple):
                raise InputError(
                    f"{self.name}: split {split} is {given!r}; give a list file, names of pairs, or null for all"
                )
            names = given if isinstance(given, list | tuple) else ()
            wrong = [name for name in names if not isinstance(name, str)]  # YAML reads 1_3 as 13 and 007 as 7
            if wrong:
                raise InputError(f"{self.name}: split {split} lists {wrong[0]!r}, not a name; put it in quotes")

    def _check_files(self) -> None:
        if not self.splits:
            return
        given = [role for role, pattern in self.patterns.items() if pattern is not None]
        if given and len(given) < len(self.roles):
            raise InputError(f"{self.name}: files of {', '.join(given)} only; name those of all or of none")
        if not given and None in self.splits.values():
            raise InputError(f"{self.name}: neither files nor a list of every split are given; give one of them")


def coloured(classes: object) -> tuple[dict[Any, Any], bool]:
    """Classes as a description may give them: names with colours, names, or numbers with names.

    Returns:
        Name to colour in the order of the indices, and whether the colours were given.
    Raises:
        InputError: none of these.
    """
    if classes is None:
        return {}, False
    if isinstance(classes, Mapping) and classes and all(isinstance(key, int) for key in classes):
        classes = [str(classes[number]) for number in sorted(classes)]
    if isinstance(classes, Mapping):
        return dict(classes), True
    if not isinstance(classes, list | tuple):
        raise InputError(f"classes are {classes!r}; give names, or each name with its colour")
    given = [str(name) for name in classes]
    names = [name if given.count(name) == 1 else f"{name} {index + 1}" for index, name in enumerate(given)]
    return {name: palette_colour(index) for index, name in enumerate(names)}, False
