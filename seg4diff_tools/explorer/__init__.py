"""The interactive explorer of recorded and live attention maps."""

from seg4diff_tools.explorer.compose import compose_scene
from seg4diff_tools.explorer.explore import explore
from seg4diff_tools.explorer.widget import Explorer

__all__ = ["Explorer", "compose_scene", "explore"]
