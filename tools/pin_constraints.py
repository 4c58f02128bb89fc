"""Print a pip constraints file for what is installed now: the closure of vdinterp's tested extras.

Only the closure is pinned, not whatever else lies in the environment. A release that needs a newer Python than
vdinterp does gets an environment marker, so that older Pythons fall back to the newest release they can run.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

TESTED_EXTRAS = ("dev", "notebook", "export", "probes", "crafter", "ray")
OLDEST_PYTHON = "3.10"


def requirements_of(dist: Distribution, extras: tuple[str, ...]) -> list[Requirement]:
    """Requirements of an installed distribution that apply here, with the given extras."""
    wanted = []
    for text in dist.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            wanted.append(requirement)
    return wanted


def closure(root: str, extras: tuple[str, ...]) -> dict[str, Distribution]:
    """Every installed distribution that `root[extras]` needs, itself excluded, by canonical name."""
    found: dict[str, Distribution] = {}
    queue: list[tuple[str, tuple[str, ...]]] = [(root, extras)]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while queue:
        name, wanted_extras = queue.pop()
        if (name, wanted_extras) in seen:
            continue
        seen.add((name, wanted_extras))
        try:
            dist = distribution(name)
        except PackageNotFoundError as error:
            raise SystemExit(f"{name} is needed but not installed: run `make test` first") from error
        found[name] = dist
        for requirement in requirements_of(dist, wanted_extras):
            queue.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))
    del found[root]
    return found


def pin(name: str, dist: Distribution) -> str:
    """One line of the constraints file. A local label (`+cpu`) is dropped: an index picks its own build."""
    version = dist.version.split("+")[0]
    needs = dist.metadata["Requires-Python"]
    if needs and not SpecifierSet(needs).contains(OLDEST_PYTHON + ".99"):
        lowest = re.search(r">=?\s*(\d+\.\d+)", needs)
        if lowest is None:
            raise SystemExit(f"{name}: cannot read Requires-Python {needs!r}")
        return f'{name}=={version} ; python_version >= "{lowest.group(1)}"'
    return f"{name}=={version}"


def main() -> None:
    print("# What vdinterp was tested with; written by `make constraints`.")
    for name, dist in sorted(closure("vdinterp", TESTED_EXTRAS).items()):
        print(pin(name, dist))


if __name__ == "__main__":
    main()
