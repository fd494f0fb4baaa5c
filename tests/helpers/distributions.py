"""Other people's packages, as if they had been installed."""

from collections.abc import Mapping
from pathlib import Path


def install(
    folder: Path, name: str, group: str, points: Mapping[str, str], modules: Mapping[str, str] | None = None
) -> None:
    """Write a distribution below `folder`, which is on the path: its modules' texts, and entry points of a group."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    for module, text in (modules or {}).items():
        (folder / f"{module}.py").write_text(text)
