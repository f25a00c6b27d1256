"""Model folders as version 0.1 and the original PatchCore wrote them, made of those that this version writes."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEX = "nnscorer_search_index.faiss"
SCORING = ("density", "position_score", "scale_weighting", "image_score", "top_share")


def patchcore_format_1(model: Path, target: Path) -> Path:
    """Write a PatchCore model as version 0.1 did: a `patchcore_params.json` for every member, beside its bank."""
    for prefix, backbone, layers, content in _members(model, target):
        settings, geometry, training = (content[section] for section in ("settings", "geometry", "training"))
        params = {
            "backbone": backbone,
            "weights": settings["weights"],
            "layers": layers,
            "pretrain_embed_dimension": settings["pretrain_embed_dimension"],
            "target_embed_dimension": settings["target_embed_dimension"],
            "patchsize": settings["patchsize"],
            "num_nn": settings["num_nn"],
            "resize": geometry["resize"],
            "imagesize": geometry["imagesize"],
            "train_val_split": training["train_val_split"],
            "seed": training["seed"],
            "sampler": settings["sampler"],
            "fraction": settings["fraction"],
            "reduced_decoding": geometry["reduced_decoding"],
            "precision": settings["precision"],
            "format": 1,
        }
        (target / f"{prefix}patchcore_params.json").write_text(json.dumps(params, indent=2) + "\n")
    return target


def patchcore_original(model: Path, target: Path, **changes: Any) -> Path:
    """Write a PatchCore model as the original did, a pickle for every member; `changes` replace what is in it."""
    for prefix, backbone, layers, content in _members(model, target):
        settings, imagesize = content["settings"], content["geometry"]["imagesize"]
        params = {
            "backbone.name": backbone,
            "layers_to_extract_from": layers,
            "input_shape": (3, imagesize, imagesize),
            "pretrain_embed_dimension": settings["pretrain_embed_dimension"],
            "target_embed_dimension": settings["target_embed_dimension"],
            "patchsize": settings["patchsize"],
            "patchstride": 1,
            "anomaly_scorer_num_nn": settings["num_nn"],
        }
        pickled = pickle.dumps({**params, **changes}, pickle.HIGHEST_PROTOCOL)
        (target / f"{prefix}patchcore_params.pkl").write_bytes(pickled)
    return target


def fastflow_format_1(model: Path, target: Path) -> Path:
    """Write a FastFlow model as version 0.1 did: `fastflow_params.json` beside the weights."""
    target.mkdir(parents=True)
    shutil.copy(model / "fastflow.safetensors", target)
    content = json.loads((model / "model.json").read_text())
    settings = {name: value for name, value in content["settings"].items() if name not in SCORING}
    params = {
        "format": 1,
        "fastflow": {
            **settings,
            "checkpoint_seconds": 30.0,
            "scoring": {name: content["settings"][name] for name in SCORING},
        },
        "trained_on": {
            "resize": content["geometry"]["resize"],
            "imagesize": content["geometry"]["imagesize"],
            "train_val_split": content["training"]["train_val_split"],
            "seed": content["training"]["seed"],
            "reduced_decoding": content["geometry"]["reduced_decoding"],
        },
    }
    (target / "fastflow_params.json").write_text(json.dumps(params, indent=2) + "\n")
    return target


def _members(model: Path, target: Path) -> Iterator[tuple[str, str, list[str], dict[str, Any]]]:
    """Make the folder, copy the banks, and give every member's prefix, backbone and layers, and all of `model.json`."""
    target.mkdir(parents=True)
    content = json.loads((model / "model.json").read_text())
    backbones, layers = content["settings"]["backbones"], content["settings"]["layers"]
    count = len(backbones)
    for number in range(count):
        prefix = "" if count == 1 else f"Ensemble-{number + 1}-{count}_"
        shutil.copy(model / f"{prefix}{INDEX}", target)
        yield prefix, backbones[number], layers[number], content
