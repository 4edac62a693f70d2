"""What runs exported models: torch.export, ONNX Runtime and OpenVINO.

Each converts a traced program into a model of its own, quantizes it, runs it and writes it.
"""

import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.cli import require
from ...utils.errors import ConfigError, name_failure
from ...utils.files import SHA256_KEY, SHA256_PLACEHOLDER, atomic_write, embed_sha256
from .comparison import as_list

# Where a file says what it is, see `describe`.
ABOUT = "fcvit_mm.json"
# from which size on a depthwise filter is large
LARGE_KERNEL = 7
# images (B, 3, H, W), RGB, 0 to 255 -> outputs
Run = Callable[[Tensor], list[Tensor]]


class Runtime:
    """A format of files, and what runs them.

    packages: to import, by the extra that has them. precisions: those that it can run on a CPU.
    """

    name: str
    packages: dict[str, tuple[str, ...]] = {}
    precisions: tuple[str, ...] = ("fp32",)

    def check(self, precision: str) -> None:
        """Raise a ConfigError if it lacks a precision, or a package is missing."""
        if precision not in self.precisions:
            able = [end for end, other in RUNTIMES.items() if precision in other.precisions]
            raise ConfigError(
                f"{self.name} can't run {precision} on a CPU; --precision {precision} is for "
                f"{' and '.join(able)}"
            )
        for extra, names in self.packages.items():
            for name in names:
                require(name, extra)
        if precision == "int8":
            require("nncf", "openvino")

    def convert(self, program: Any) -> Any:
        """Make a model of this runtime from what `trace` returned."""
        return program

    def run(self, model: Any, precision: str, threads: int = 0) -> Run:
        """Return what runs a model: images -> outputs. threads: 0 leaves them to the runtime."""
        raise NotImplementedError

    def quantize(self, model: Any, images: Sequence[np.ndarray]) -> Any:
        """Return a model whose convolutions and linear layers compute with integers of 8 bits.

        Args:
            images: (1, 3, H, W), float32, of which the range of each layer's input is measured.
        """
        raise NotImplementedError

    def save(self, model: Any, path: Path, about: dict[str, Any]) -> None:
        """Write a model completely or not at all, with its description inside."""
        raise NotImplementedError


class TorchExport(Runtime):
    """Programs of torch.export, .pt2."""

    name = "torch.export"

    def run(self, model: Any, precision: str, threads: int = 0) -> Run:
        file = io.BytesIO()
        torch.export.save(model, file)
        file.seek(0)
        loaded = torch.export.load(file).module()

        def run(images: Tensor) -> list[Tensor]:
            # what the trace took for granted of all sizes
            with name_failure("the exported program does not run; export to .onnx instead"):
                return as_list(loaded(images))

        return run

    def save(self, model: Any, path: Path, about: dict[str, Any]) -> None:
        with atomic_write(path) as partial:
            torch.export.save(model, partial, extra_files={ABOUT: json.dumps(about)})


class ONNXRuntime(Runtime):
    """ONNX files, with their SHA-256 in the metadata."""

    name = "ONNX Runtime"
    packages = {"export": ("onnx", "onnxruntime", "onnxscript")}
    precisions = ("fp32", "int8")

    def convert(self, program: Any) -> Any:
        return program.model_proto

    def run(self, model: Any, precision: str, threads: int = 0) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda images: [
            torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})
        ]

    def quantize(self, model: Any, images: Sequence[np.ndarray]) -> Any:
        constants = {tensor.name for tensor in model.graph.initializer}
        dynamic = [
            node.name
            for node in model.graph.node
            if node.op_type == "MatMul" and not constants & {*node.input}
        ]
        kinds = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
        types = {node.op_type for node in model.graph.node} - kinds
        return quantize(model, images, dynamic, types, lambda image: {"images": image})

    def save(self, model: Any, path: Path, about: dict[str, Any]) -> None:
        for key, text in {ABOUT: json.dumps(about), SHA256_KEY: SHA256_PLACEHOLDER}.items():
            model.metadata_props.add(key=key, value=text)
        with atomic_write(path) as partial:
            partial.write_bytes(embed_sha256(model.SerializeToString()))


class OpenVINO(Runtime):
    """OpenVINO's IR: .xml with the graph and the SHA-256 of both, .bin with the weights."""

    name = "OpenVINO"
    packages = {"openvino": ("onnx", "onnxscript", "openvino")}
    precisions = ("fp32", "bf16", "int8")

    def convert(self, program: Any) -> Any:
        import openvino
        from openvino.passes import ConstantFolding, Manager

        model = openvino.Core().read_model(program.model_proto.SerializeToString())
        # else depthwise weights are results of a reshape, and OpenVINO leaves them in bf16
        passes = Manager()
        passes.register_pass(ConstantFolding())
        passes.run_passes(model)
        return model

    def run(self, model: Any, precision: str, threads: int = 0) -> Run:
        import openvino

        # without it, a processor that has bf16 uses it
        hint = "f32" if precision == "fp32" else "bf16"
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(model, "CPU", settings)

        def run(images: Tensor) -> list[Tensor]:
            found = compiled([images.numpy()])
            return [torch.from_numpy(found[output].copy()) for output in compiled.outputs]

        return run

    def quantize(self, model: Any, images: Sequence[np.ndarray]) -> Any:
        operators = model.get_ops()
        kinds = {"Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul"}
        names = [
            operator.get_friendly_name()
            for operator in operators
            if operator.get_type_name() in kinds and not _is_faster_in_int8(operator)
        ]
        types = {operator.get_type_name() for operator in operators} - kinds
        return quantize(model, images, names, types)

    def save(self, model: Any, path: Path, about: dict[str, Any]) -> None:
        import openvino

        for key, text in {ABOUT: json.dumps(about), SHA256_KEY: SHA256_PLACEHOLDER}.items():
            model.set_rt_info(text, key.split("."))
        with tempfile.TemporaryDirectory() as folder:
            graph, weights = (Path(folder) / f"model{suffix}" for suffix in (".xml", ".bin"))
            openvino.save_model(model, graph, compress_to_fp16=about["precision"] != "fp32")
            contents = graph.read_bytes(), weights.read_bytes()
        # the graph last: it is refused with the weights of another
        with atomic_write(path) as partial, atomic_write(path.with_suffix(".bin")) as other:
            other.write_bytes(contents[1])
            partial.write_bytes(embed_sha256(*contents))


def _is_faster_in_int8(operator: Any) -> bool:
    """Tell whether OpenVINO runs a convolution or product faster in int8.

    Not a large depthwise convolution, which takes half as long again as in bf16, and no product of
    two maps, which loses what a norm behind it would need.
    """
    if operator.get_type_name() == "GroupConvolution":
        return operator.get_input_shape(1)[-1] < LARGE_KERNEL
    return any(value.get_node().get_type_name() == "Constant" for value in operator.input_values())


def quantize(
    model: Any,
    images: Sequence[np.ndarray],
    names: Iterable[str],
    types: Iterable[str],
    feed: Callable[[np.ndarray], Any] | None = None,
) -> Any:
    """Quantize a model with NNCF, but for the operators of some names and types."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(images, feed),
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=[*names], types=sorted(types), validate=False),
    )


RUNTIMES: dict[str, Runtime] = {".onnx": ONNXRuntime(), ".xml": OpenVINO(), ".pt2": TorchExport()}
