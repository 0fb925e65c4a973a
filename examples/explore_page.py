"""Write an explorer as a page to send to somebody: python examples/explore_page.py photo.jpg "a cat on a sofa"

The page works without Python and without a network. In a notebook, `explore(...)` shows the same and records more.
"""

import argparse

from seg4diff_tools import explore, load_backbone, scenes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("image", nargs="?")
parser.add_argument("prompt", nargs="?")
parser.add_argument("--model", default="mini")
parser.add_argument("--out", default="view.html")
options = parser.parse_args()

scene = scenes.scene("gallery", 21)
image, prompt = options.image or scene.image, options.prompt or scene.caption
view = explore(load_backbone(options.model), image, prompt=prompt, record={"steps": [8, 14, 20, 26]})
print(view.save_html(options.out))
