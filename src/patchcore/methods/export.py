"""A detector as one ONNX graph, held against the detector before it is left anywhere."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchcore import __version__
from patchcore.methods.detector import Detector
from patchcore.system.files import atomic_write
from patchcore.types import Output, PatchCoreError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = 1  # of inputs, outputs and metadata
TOLERANCE = 1e-3  # how far scores and maps may be from the detector's, as a share of them

_OPSET = 17
_MOST_IMAGES = 32  # of those that it was trained on
_BATCH = 8  # images that are checked at a time
_MOST_BYTES = 2**31 - 2**24  # one file of protobuf has at most 2 GiB; some of it is for the graph itself
_LEAST_SCALE = 0.01  # share of the largest value of all images


def export_onnx(detector: Detector, path: Path, images: Sequence[NDArray[np.uint8]]) -> float:
    """Write a detector as an ONNX graph.

    The graph takes `images` (B, 3, H, W) uint8 RGB of the network's size, and gives `scores` (B,) and `maps`
    (B, H, W) float32 as `Result` has them, of an ensemble also `member_scores` (B, M). Its metadata are `format`,
    `method`, `resize`, `imagesize`, `calibration` and `threshold`.

    Before the file appears under its name, onnxruntime scores `images` one by one and together, and scores and maps
    are held against the detector's.

    Args:
        detector: fitted or loaded, on the CPU.
        path: a new file that ends in .onnx.
        images: one or more of the network's size, (H, W, 3) uint8 RGB.

    Returns:
        How far scores and maps were from the detector's at most, as a share of them; up to TOLERANCE.

    Raises:
        PatchCoreError: `path` is there already or has another ending, a package is missing, the detector has learnt
            nothing, or it has no graph, or one that gives other values.
    """
    check_target(path)
    side = detector.geometry.imagesize
    if not images or any(image.shape != (side, side, 3) or image.dtype != np.uint8 for image in images):
        raise ValueError(f"a graph is checked on one or more images ({side}, {side}, 3) uint8")
    if detector.workspace.device.type != "cpu":
        raise ValueError(f"a detector on the CPU is exported, this one is on {detector.workspace.device}")
    onnx, onnxruntime = _packages()
    deviation = 0.0
    batches = [_pixels(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    expected = detector.predict_batches(batches)
    graph = _Outputs(detector.graph(), members=len(expected.scores))
    _refuse_large(graph)
    with atomic_write(path) as aside:
        _trace(graph, batches[0][:1].repeat(2, 1, 1, 1), aside)
        model = onnx.load(aside)
        model.producer_name, model.producer_version = "patchcore", __version__
        onnx.helper.set_model_props(model, _metadata(detector))
        onnx.save(model, aside)
        session = onnxruntime.InferenceSession(aside, providers=["CPUExecutionProvider"])
        singles = [one[None] for batch in batches for one in batch]
        for name, parts in ((f"batches of {len(batches[0])}", batches), ("single images", singles)):
            deviation = max(deviation, _compare(name, _run(session, graph.names, parts), expected))
    return deviation


def check_target(path: Path) -> None:
    """Raise a PatchCoreError unless `path` names a new file that ends in .onnx, and the packages are there."""
    if path.suffix != ".onnx":
        raise PatchCoreError(f"cannot write {path}: expected the name of a new file that ends in .onnx")
    if path.exists():
        raise PatchCoreError(f"cannot write {path}: it is there already; remove it, or give another name")
    _packages()


def check_images(detector: Detector) -> list[NDArray[np.uint8]]:
    """Images of the network's size on which a graph of the detector is checked.

    Those it was trained on and calibrated with, evenly chosen where there are many; and noise of four strengths, since
    these are all good.
    """
    album, generator = detector.album, np.random.default_rng(0)
    shape = detector.geometry.imagesize, detector.geometry.imagesize, 3
    noise = [generator.integers(0, most, shape, dtype=np.uint8) for most in (64, 128, 192, 256)]
    return [album.picture(number) for number in range(0, len(album), -(-len(album) // _MOST_IMAGES) or 1)] + noise


class _Outputs(nn.Module):
    """A detector's graph with the outputs that are exported."""

    names: list[str]

    def __init__(self, graph: nn.Module, members: int) -> None:
        super().__init__()
        self.graph = graph
        self.names = ["scores", "maps"] + ["member_scores"] * (members > 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        scores, maps = self.graph(images)  # (M, B), (M, B, H, W)
        return (scores.mean(dim=0), maps.mean(dim=0), scores.T)[: len(self.names)]


def _packages() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise PatchCoreError(f"onnx and onnxruntime are needed ({error}): pip install '.[export]'") from error
    return onnx, onnxruntime


def _metadata(detector: Detector) -> dict[str, str]:
    return {
        "format": str(FORMAT),
        "method": detector.method.name,
        "resize": str(detector.geometry.resize),
        "imagesize": str(detector.geometry.imagesize),
        **_verdict_metadata(detector),
    }


def _verdict_metadata(detector: Detector) -> dict[str, str]:
    """`calibration` as JSON, or null; `threshold`, the score above which a part is rejected, empty if there is none."""
    calibration = detector.calibration
    threshold = None if calibration is None else calibration.threshold()
    return {
        "calibration": json.dumps(None if calibration is None else calibration.to_plain()),
        "threshold": "" if threshold is None else repr(threshold),
    }


def _pixels(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images (H, W, 3) -> (B, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _refuse_large(graph: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    if size > _MOST_BYTES:
        raise PatchCoreError(
            f"the graph would take {size / 2**30:.1f} GiB, an ONNX file holds 2: train with a smaller memory bank"
        )


def _trace(graph: _Outputs, example: Tensor, path: Path) -> None:
    """Write the graph that runs for `example`, with any number of images."""
    with torch.no_grad(), _further_operators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants (they are), and that there is a newer exporter
        try:
            torch.onnx.export(
                graph.eval(),
                (example,),
                str(path),
                input_names=["images"],
                output_names=graph.names,
                dynamic_axes={name: {0: "batch"} for name in ["images", *graph.names]},
                opset_version=_OPSET,
                dynamo=False,  # the newer exporter needs a further package
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).partition("\n")[0]
            raise PatchCoreError(f"this detector cannot be exported: {reason}") from error


@contextmanager
def _further_operators() -> Iterator[None]:
    """Operators of the detectors that torch's exporter does not know."""

    def expm1(g: Any, x: Any) -> Any:
        return g.op("Sub", g.op("Exp", x), g.op("Constant", value_t=torch.ones(())))

    def median(g: Any, x: Any, dim: Any, keepdim: Any) -> Any:
        """Of (B, n) along the second dimension, in ascending order number (n + 1) // 2: the largest of that many."""
        one, two = (g.op("Constant", value_t=torch.tensor([value])) for value in (1, 2))
        count = g.op("Div", g.op("Add", g.op("Gather", g.op("Shape", x), one), one), two)
        lower, places = g.op("TopK", x, count, axis_i=1, largest_i=0, outputs=2)  # sorted
        last = g.op("Sub", count, one)
        return tuple(g.op("Squeeze", g.op("Gather", values, last, axis_i=1), one) for values in (lower, places))  # (B,)

    operators: dict[str, Callable[..., Any]] = {"aten::expm1": expm1, "aten::median": median}
    for name, operator in operators.items():
        torch.onnx.register_custom_op_symbolic(name, operator, _OPSET)
    try:
        yield
    finally:
        for name in operators:
            torch.onnx.unregister_custom_op_symbolic(name, _OPSET)


def _run(session: InferenceSession, names: Sequence[str], batches: Sequence[Tensor]) -> dict[str, NDArray[np.float32]]:
    """The outputs for all batches together, by name."""
    parts = [session.run(names, {"images": batch.numpy()}) for batch in batches]
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def _compare(way: str, found: Mapping[str, NDArray[np.float32]], expected: Output) -> float:
    """How far outputs are from what a detector says, at most, as a share of it.

    A score is held to itself or, if that is larger, to the highest value of the map that belongs to it, and so is the
    map. Both are next to nothing where an image's patches are in the memory bank, so they are held to a small share of
    the largest of all images at least.

    Raises:
        PatchCoreError: further than TOLERANCE.
    """
    scores, maps = expected.scores.mean(axis=0), expected.maps.mean(axis=0)  # (N,), (N, H, W)
    members = found.get("member_scores")
    off = {
        "scores": np.abs(found["scores"] - scores) / _scale(scores, maps),
        "maps": np.abs(found["maps"] - maps).max(axis=(1, 2)) / _scale(scores, maps),
    }
    for index, (own_scores, own_maps) in enumerate(zip(expected.scores, expected.maps, strict=True)):
        if members is not None:
            off[f"scores of member {index}"] = np.abs(members[:, index] - own_scores) / _scale(own_scores, own_maps)
    worst = {name: float(values.max()) for name, values in off.items()}
    if not all(value <= TOLERANCE for value in worst.values()):  # nan neither
        shares = ", ".join(f"{name} by up to {value:.2g}" for name, value in worst.items())
        raise PatchCoreError(
            f"the graph gives other values than the detector for {way}, {TOLERANCE:g} of them is allowed: {shares};"
            " nothing was written"
        )
    return max(worst.values())


def _scale(scores: NDArray[np.float64], maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """What differences are held to, (N,)."""
    scale = np.maximum(np.abs(scores), np.abs(maps).max(axis=(1, 2)))
    return np.maximum(scale, _LEAST_SCALE * scale.max())
