"""What pip users get: a wheel in a fresh environment, outside the checkout."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The folder of commands of an environment with the wheel in it; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True)
    (built,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(built)]
    subprocess.run(install, check=True)
    # a path in a .pth file brings packages alone: the editable install there is not followed
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


def test_chapters_come_with_the_wheel(scripts, tmp_path):
    subprocess.run([scripts / "seg4diff-tools", "chapters", tmp_path / "mine"], check=True, cwd=tmp_path)
    written = sorted(path.name for path in (tmp_path / "mine").glob("*.ipynb"))
    assert written == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    cells = json.loads((tmp_path / "mine" / written[0]).read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)


def test_segment_runs_from_the_wheel(scripts, tmp_path):
    shutil.copy(ROOT / "book" / "images" / "overview.png", tmp_path / "photo.png")
    command = [scripts / "seg4diff-tools", "segment", "photo.png", "cat", "grass", "--out", "masks"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / "masks" / "photo.png").is_file()
    where = [scripts / "python", "-c", "import seg4diff_tools; print(seg4diff_tools.__file__)"]
    shown = subprocess.run(where, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    assert Path(shown.strip()).is_relative_to(scripts.parent)
