"""Recognize annotation files by their content, whatever their names."""

import json
import re
from pathlib import Path

# Formats that are converted to COCO's.
NAMES = {
    "voc": "Pascal VOC XML",
    "yolo": "YOLO txt",
    "labelme": "LabelMe JSON",
    "coco": "COCO JSON",
}
# Formats of a single tool, which exports one of those above, too.
FOREIGN = {
    "cvat": "CVAT's own XML, which can't be read: export COCO 1.0 from CVAT",
    "label_studio": "Label Studio's own JSON, which can't be read: export COCO from Label Studio",
}
HEAD = 4096  # bytes that tell what a file is, if it is no JSON
SUFFIXES = (".json", ".txt", ".xml")


def recognize(path: Path) -> str | None:
    """Return which of `NAMES` or `FOREIGN` a file is, or those in a folder are; None if neither.

    Raises:
        OSError: it can't be read.
        ValueError: it begins as JSON does, but is none.
    """
    if path.is_dir():
        inside = (one for one in sorted(path.iterdir()) if one.suffix.lower() in SUFFIXES)
        return next((kind for one in inside if one.is_file() and (kind := recognize(one))), None)
    with path.open("rb") as file:
        head = file.read(HEAD).decode("utf-8-sig", "replace").lstrip()
    if head.startswith("<"):
        # after declarations and comments
        root = re.search(r"<([A-Za-z]\w*)", re.sub(r"<!--.*?-->", "", head, flags=re.DOTALL))
        return {"annotation": "voc", "annotations": "cvat"}.get(root[1]) if root else None
    if head.startswith(("{", "[")):
        return _recognize_json(path)
    return "yolo" if _is_yolo(head) else None


def _is_yolo(text: str) -> bool:
    """Tell whether a text begins with the number of a class and four numbers or more."""
    try:
        # of a long line the first ones suffice, and the last may be cut off
        numbers = [float(word) for word in text.split("\n", 1)[0].split()[:100]]
    except ValueError:
        return False
    return len(numbers) >= 5 and numbers[0] >= 0 and numbers[0] % 1 == 0


def _recognize_json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if isinstance(content, list):
        is_tasks = content and isinstance(content[0], dict) and "data" in content[0]
        return "label_studio" if is_tasks else None
    if isinstance(content.get("shapes"), list):
        return "labelme"
    lists = (content.get(key) for key in ("images", "annotations", "categories"))
    return "coco" if all(isinstance(one, list) for one in lists) else None
