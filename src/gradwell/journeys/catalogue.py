"""`docs/catalogue.md`: the pages of the shelves as one document, the same text that `gradwell explain` prints.

Run `python -m gradwell.journeys.catalogue > docs/catalogue.md` after a page changed; a test compares the two.
"""

from __future__ import annotations

from gradwell.shelf import shelf

SHELVES = {
    "symptoms": "gradwell.symptoms",
    "causes": "gradwell.causes",
    "remedies": "gradwell.remedies",
    "activations": "gradwell.theory.activations",
    "inits": "gradwell.theory.inits",
    "experiments": "gradwell.lab.experiments",
}
"""The shelves by the names that `gradwell list` takes."""


def catalogue() -> str:
    """All pages as Markdown."""
    parts = ["# Catalogue\n\nMade from the pages of the shelves; `gradwell explain ID` prints the same text.\n"]
    for name, package in SHELVES.items():
        parts.append(f"\n## {name.capitalize()}\n")
        for entry in shelf(package).values():
            parts.append(f"\n### {entry.id}\n\n{entry.page.title}\n")
            for heading, block in entry.page.blocks.items():
                parts.append(f"\n**{heading}**\n\n{_block(block)}\n")
            if name == "symptoms" and entry.thresholds:
                rows = "\n".join(f"| `{key}` | {value} |" for key, value in entry.thresholds.items())
                parts.append(f"\n| threshold | default |\n|---|---|\n{rows}\n")
    return "".join(parts)


def _block(text: str) -> str:
    """Formulas and code keep their lines; prose is left as it stands."""
    indented = any(line.startswith("  ") for line in text.splitlines())
    return f"```\n{text}\n```" if indented or "=" in text.partition("\n")[0] else text


if __name__ == "__main__":
    print(catalogue(), end="")
