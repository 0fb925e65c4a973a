"""Build hook: a wheel holds the chapters without their outputs."""

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Chapters(BuildHookInterface):
    """Adds stripped notebooks to a wheel; an editable install reads them from the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root, folder = Path(self.root), Path(tempfile.mkdtemp())
        stripped = runpy.run_path(str(root / "seg4diff_tools" / "cli" / "stripped.py"))["stripped"]
        for source in sorted((root / "notebooks").glob("*.ipynb")):
            target = folder / source.name
            target.write_text(stripped(source.read_text(encoding="utf-8")), encoding="utf-8")
            build_data["force_include"][str(target)] = f"seg4diff_tools/chapters/{source.name}"
