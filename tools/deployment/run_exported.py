"""Run an exported model on an image and draw what it finds, without PyTorch and OpenMMLab.

    python run_exported.py MODEL.onnx IMAGE OUT.png
    python run_exported.py MODEL.xml IMAGE OUT.png

needs numpy and opencv-python, and onnxruntime for .onnx or openvino for .xml; take it as a start
for programs of your own.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np

# The longest side of an image that a file may ask for.
LONGEST = 16384
# Where a file has its SHA-256, and what stood there when it was computed.
SHA256_FIELDS = {
    ".onnx": re.compile(rb"fcvit_mm\.sha256..([0-9a-f]{64})", re.DOTALL),
    ".xml": re.compile(rb'<sha256 value="([0-9a-f]{64})"'),
}
SHA256_PLACEHOLDER = b"0" * 64
# images (1, 3, H, W) -> outputs by name
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def check_sha256(content: bytes, weights: bytes, field: re.Pattern) -> None:
    """Compare a file, and the weights that go with it, with the SHA-256 in it.

    Raises:
        ValueError: one is damaged, or it is no file of `fcvit export`.
    """
    found = field.search(content)
    if not found:
        raise ValueError("it has no SHA-256")
    unmarked = content[: found.start(1)] + SHA256_PLACEHOLDER + content[found.end(1) :]
    if hashlib.sha256(unmarked + weights).hexdigest().encode() != found[1]:
        raise ValueError("it is damaged: its SHA-256 is another one than it notes")


def open_model(path: str) -> tuple[Run, dict[str, Any]]:
    """Open a file of `fcvit export`, compare it with its SHA-256; return its description, too.

    Raises:
        ValueError: it is damaged, or no such file.
        Exception: the runtime can't run it; its errors have no common class.
    """
    suffix = Path(path).suffix
    if suffix not in SHA256_FIELDS:
        raise ValueError("its name does not end in .onnx or .xml")
    content = Path(path).read_bytes()
    weights = Path(path).with_suffix(".bin").read_bytes() if suffix == ".xml" else b""
    check_sha256(content, weights, SHA256_FIELDS[suffix])
    return open_openvino(content, weights) if suffix == ".xml" else open_onnx(content)


def open_onnx(content: bytes) -> tuple[Run, dict[str, Any]]:
    """Open a model for ONNX Runtime; from the memory, so that it can name no other file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["fcvit_mm.json"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(
        zip(names, session.run(None, {"images": images}), strict=True)
    ), about


def open_openvino(content: bytes, weights: bytes) -> tuple[Run, dict[str, Any]]:
    """Open a model for OpenVINO, in the precision that it was exported for."""
    import openvino

    core = openvino.Core()
    model = core.read_model(content, weights)
    about = json.loads(model.get_rt_info(["fcvit_mm", "json"]).value)
    # by itself OpenVINO would compute in bf16 wherever the processor can
    hint = "f32" if about["precision"] == "fp32" else "bf16"
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    names = [output.get_any_name() for output in compiled.outputs]
    return lambda images: dict(zip(names, compiled([images]).values(), strict=True)), about


def resize_edge(image: np.ndarray, size: list[int], step: dict) -> np.ndarray:
    """What MMPretrain's ResizeEdge did, by OpenCV or Pillow, whose filters differ."""
    name = step.get("interpolation", "bilinear")
    if step.get("backend", "cv2") == "cv2":
        names = {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3, "lanczos": 4}
        return cv2.resize(image, size, interpolation=names[name])
    from PIL import Image  # of these files alone

    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling[name.upper()]))


def resize(image: np.ndarray, steps: list[dict]) -> np.ndarray:
    """What the test pipeline did before the network: (H, W, 3) -> (h, w, 3)."""
    for step in steps:
        height, width = image.shape[:2]
        if "crop" in step:
            top, left = (
                max(0, round((a - b) / 2)) for a, b in zip(image.shape, step["crop"], strict=False)
            )
            image = image[top : top + step["crop"][0], left : left + step["crop"][1]]
            continue
        if "short" in step:
            size = [int(step["short"] * n / min(height, width)) for n in (width, height)]
        elif "multiple" in step:
            size = [-(-n // step["multiple"]) * step["multiple"] for n in (width, height)]
        elif "factor" in step:
            size = [int(n * step["factor"] + 0.5) for n in (width, height)]
        elif step["keep_ratio"]:
            long, short = max(step["scale"]), min(step["scale"])
            factor = min(long / max(height, width), short / min(height, width))
            size = [int(n * factor + 0.5) for n in (width, height)]
        else:
            size = step["scale"]
        if max(size) > LONGEST:
            raise ValueError(f"its images would have sides of {size}")
        if "short" in step:
            image = resize_edge(image, size, step)
        else:
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask over its box (h, w), 0 to 1 -> over the image (height, width), bool."""
    left, top, right, bottom = box
    x = (np.arange(width) + 0.5 - left) / max(right - left, 1e-6) * mask.shape[1] - 0.5
    y = (np.arange(height) + 0.5 - top) / max(bottom - top, 1e-6) * mask.shape[0] - 0.5
    maps = np.broadcast_arrays(x[None], y[:, None])
    x, y = (np.ascontiguousarray(values, np.float32) for values in maps)
    return cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) >= 0.5


def shade(image: np.ndarray, where: np.ndarray, color: list[int]) -> None:
    """Lay half a color, RGB, over a part of an image, BGR, in place."""
    image[where] = image[where] // 2 + np.array(color[::-1], np.uint8) // 2


def fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def draw(run: Run, about: dict[str, Any], image: np.ndarray, threshold: float) -> None:
    """Run a model on an image (H, W, 3), BGR, print what it finds and draw it, in place."""
    resized = resize(image, about["resize"])
    images = resized[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
    found = run(np.ascontiguousarray(images))
    if "logits" in found:
        draw_regions(about, image, found["logits"][0])
    elif "boxes" in found:
        if found["boxes"].ndim == 3:
            found = {name: output[0] for name, output in found.items()}
        draw_objects(about, image, found, resized.shape[:2], threshold)
    elif "scores" in found:
        for label in found["scores"][0].argsort()[:-6:-1]:
            print(f"{about['classes'][label]} {found['scores'][0][label]:.3f}")
        best = about["classes"][found["scores"][0].argmax()]
        cv2.putText(image, best, (4, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 255), 2)
    else:
        raise ValueError(f"it gives features, of shapes {[o.shape for o in found.values()]}")


def draw_regions(about: dict[str, Any], image: np.ndarray, logits: np.ndarray) -> None:
    """Draw and print the class of each pixel, of logits (classes, h, w)."""
    size = image.shape[1::-1]
    labels = cv2.resize(logits.transpose(1, 2, 0), size, interpolation=cv2.INTER_LINEAR).argmax(2)
    for label in np.unique(labels):
        shade(image, labels == label, about["palette"][label])
        print(f"{about['classes'][label]}: {(labels == label).mean():.1%} of the image")


def draw_objects(
    about: dict[str, Any],
    image: np.ndarray,
    found: dict[str, np.ndarray],
    size: Sequence[int],
    threshold: float,
) -> None:
    """Draw and print what scores enough, best last drawn; size: (h, w) that the model was given."""
    height, width = image.shape[:2]
    scale = np.array([width / size[1], height / size[0]] * 2)
    chosen = np.flatnonzero(found["scores"] >= threshold)
    print(f"{len(chosen)} objects that score at least {threshold}")
    for i in chosen[::-1]:
        label, box = found["labels"][i], found["boxes"][i] * scale
        color = about["palette"][label]
        if "masks" in found:
            shade(image, paste(found["masks"][i], box, height, width), color)
        elif "mask_logits" in found:
            # of 4x4 pixels each, also of those that were padded
            whole = cv2.resize(found["mask_logits"][i], None, fx=4, fy=4)[: size[0], : size[1]]
            shade(image, cv2.resize(whole, (width, height)) > 0, color)
        left, top, right, bottom = (int(n) for n in box)
        cv2.rectangle(image, (left, top), (right, bottom), color[::-1], 1)
        name, score = about["classes"][label], found["scores"][i]
        print(f"{name} {score:.3f} at {left}, {top}, {right}, {bottom}")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="of fcvit export")
    parser.add_argument("image")
    parser.add_argument("out", help="the image with what was found")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        image = cv2.imread(args.image)
    except cv2.error:  # where its header asks for more than 2**30 pixels
        image = None
    if image is None:
        fail(f"{args.image} is not an image that OpenCV can read")
    try:
        draw(*open_model(args.model), image, args.score_threshold)
    except Exception as error:  # a file may hold anything, and the runtimes' errors have no class
        fail(f"{args.model} can't be run as a model of fcvit export: {first_line(error)}")
    if not (cv2.haveImageWriter(args.out) and cv2.imwrite(args.out, image)):
        fail(f"{args.out} can't be written")
    print(f"drawn: {args.out}")


if __name__ == "__main__":
    main()
