"""Shelves of knowledge: one file = one thing = one function = one id; the docstring is the page.

A shelf is a package whose every file holds one entry. The file `vanishing_gradient.py` defines the
function `vanishing_gradient`; its docstring is its page (first line: one sentence; then blocks under
the shelf's fixed headings, each heading a line that ends in a colon and starts at the margin); its keyword-only
parameters with defaults are its thresholds. Everything else the file names in capitals
(`SICK`, `HEALTHY`, `TREATS`, ...) is read through `Entry.fact`.

Floor 0: imports nothing of ours but errors.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from functools import cache
from types import ModuleType
from typing import Any

import msgspec

from gradwell.errors import ShelfError, UnknownId

_HEADING = re.compile(r"^([A-Z][A-Za-z ,'/-]{2,60}):$")


class Page(msgspec.Struct, frozen=True):
    """A docstring read as a page: the sentence on top and the blocks under their headings."""

    title: str
    blocks: dict[str, str]
    text: str

    @classmethod
    def read(cls, docstring: str | None) -> Page:
        """Split a docstring at the lines that are headings (`Why it hurts:`)."""
        text = inspect.cleandoc(docstring or "")
        title, _, rest = text.partition("\n")
        blocks: dict[str, str] = {}
        heading = ""
        for line in rest.splitlines():
            found = _HEADING.match(line)
            if found:
                heading = found.group(1)
                blocks[heading] = ""
            elif heading:
                blocks[heading] += line + "\n"
        return cls(title.strip(), {k: textwrap.dedent(v).strip() for k, v in blocks.items()}, text)


class Entry(msgspec.Struct, frozen=True):
    """One thing on a shelf: its id, its function, its page and the module it lives in."""

    id: str
    function: Callable[..., Any]
    page: Page
    module: ModuleType

    def fact(self, name: str, default: Any = None) -> Any:
        """A constant of the entry's file, such as `SICK` or `KINKS`; `default` where the file has none."""
        return getattr(self.module, name, default)

    @property
    def thresholds(self) -> dict[str, Any]:
        """The keyword-only parameters of the function and their defaults."""
        return {
            p.name: p.default
            for p in inspect.signature(self.function).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Shelf(Mapping[str, Entry]):
    """All entries of a package and of the entry points of the same name, sorted by id.

    `package` is the dotted name (`gradwell.symptoms`); the kind, used in messages and as entry-point
    group (`gradwell.symptoms`), is its last part. Files whose name starts with `_` are no entries.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.kind = package.rpartition(".")[2]
        self._entries: dict[str, Entry] | None = None

    def _load(self) -> dict[str, Entry]:
        if self._entries is None:
            parent = importlib.import_module(self.package)
            names = [m.name for m in pkgutil.iter_modules(parent.__path__) if not m.name.startswith("_")]
            modules = [importlib.import_module(f"{self.package}.{name}") for name in names]
            modules += [point.load() for point in importlib.metadata.entry_points(group=self.package)]
            entries = [_entry(module) for module in modules]
            self._entries = {entry.id: entry for entry in sorted(entries, key=lambda e: e.id)}
        return self._entries

    def __getitem__(self, key: str) -> Entry:
        entries = self._load()
        entry = entries.get(key)
        if entry is None:
            close = difflib.get_close_matches(key, entries, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"see `gradwell list {self.kind}`."
            raise UnknownId(f"There is no {key!r} among the {self.kind}; {hint}")
        return entry

    def items(self) -> ItemsView[str, Entry]:
        return self._load().items()

    def values(self) -> ValuesView[Entry]:
        return self._load().values()

    def get(self, key: str, default: Any = None) -> Any:
        """The entry of an id, or `default`."""
        return self._load().get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())


def _entry(module: ModuleType) -> Entry:
    name = module.__name__.rpartition(".")[2]
    # `exp_` and `lambda_`: an id that is a keyword or a builtin may carry a trailing underscore in its file.
    function = getattr(module, name, None)
    if not callable(function):
        raise ShelfError(f"{module.__name__} must define a function named {name!r}: one file, one thing, one id.")
    page = Page.read(function.__doc__)
    if not page.title:
        raise ShelfError(f"{module.__name__}.{name} has no docstring; the docstring is the page.")
    return Entry(name.rstrip("_"), function, page, module)


@cache
def shelf(package: str) -> Shelf:
    """The shelf of a package, the same object at every call; files are read at first use."""
    return Shelf(package)
