"""Strip notebooks of their outputs. The wheel's build reads this file, so it imports nothing of the package."""

import json


def stripped(notebook: str) -> str:
    """Drop outputs, execution counts and metadata of a notebook, given and returned as JSON."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    content["metadata"] = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
