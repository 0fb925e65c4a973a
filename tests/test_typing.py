"""Types reach a user: mypy passes a right script and names each slip in a wrong one."""

import pytest
from user_files import check_types

GOOD = """\
from seg4diff_tools import AttentionRecorder, OpenVocabulary, load_backbone, scenes, segment
from seg4diff_tools.errors import InputError

backbone = load_backbone("mini")
scene = scenes.scene("test", 3)
result = segment(backbone, scene.image, scene.class_names, OpenVocabulary(tiles=2, upsampling="guided"))
print(result.label_map.shape, result.class_names)
prompt = backbone.encode_prompt("a cat")
with AttentionRecorder(backbone, prompt=prompt) as recorder:
    backbone.generate(prompt, steps=4)
print(recorder.maps.sel(layer=4, token="cat"))
"""
SLIPS = """\
from seg4diff_tools import OpenVocabulary, load_backbone, scenes, segment
from seg4diff_tools import segmnt  # slip
from seg4diff_tools.errors import InputEror  # slip

backbone = load_backbone("mini")
backbone = load_backbone("mini", devise="cpu")  # slip
options = OpenVocabulary(tile=2)  # slip
options = OpenVocabulary(tiles="two")  # slip
scene = scenes.scene("test", 3)
other = scenes.seen("test", 3)  # slip
result = segment(backbone, scene.image, scene.class_names)
print(result.labels_map)  # slip
print(backbone.expert_layers)  # slip
noisy, timestep = backbone.add_noise(backbone.encode_image(scene.image), step=8)  # slip
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return check_types({"good": GOOD, "slips": SLIPS}, tmp_path_factory.mktemp("user"))


def test_a_right_script_passes(found):
    assert found["good"] == []


def test_each_slip_is_named_at_its_line(found):
    slips = [number for number, line in enumerate(SLIPS.splitlines(), start=1) if line.endswith("# slip")]
    assert [number for number, _, _ in found["slips"]] == slips, found["slips"]
