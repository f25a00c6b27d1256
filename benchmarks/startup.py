"""Start-up: what the command line takes before it works, against `import torch` alone."""

from __future__ import annotations

import statistics

from benchmarks.inputs import CATEGORY, Inputs
from benchmarks.jobs import LITE0
from benchmarks.measure import Report, Table, at_most
from benchmarks.processes import BIN, Ended, run_python
from benchmarks.report import seconds
from patchcore.synthetic.generate import generate

ROUNDS, QUICK_ROUNDS = 5, 1


def run(inputs: Inputs) -> Report:
    """Take turns between an import of torch, `--help`, and the smallest run there is."""
    settings = inputs.settings
    data = settings.scratch / "smallest"
    generate(data, categories=[CATEGORY], num_train=1, num_test_good=1, num_per_defect=1, size=64)
    smallest = [
        BIN / "run_patchcore.py",
        *("--log_group", "smallest", settings.scratch / "results"),
        *("patch_core", *LITE0, "sampler", "random"),
        *("dataset", "--resize", 64, "--imagesize", 64, "-d", CATEGORY, "mpdd", data),
    ]
    commands: dict[str, tuple[list, str | None]] = {
        "import torch": (["-c", "import torch; print('imported', flush=True)"], "imported"),
        "run_patchcore.py --help": ([BIN / "run_patchcore.py", "--help"], None),
        "smallest run": (smallest, "1 training"),
    }
    on_gpu = settings.device.type == "cuda"
    ended: dict[str, list[Ended]] = {name: [] for name in commands}
    run_python(smallest, cuda=on_gpu)  # files into the system's cache
    for _ in range(QUICK_ROUNDS if settings.quick else ROUNDS):
        for name, (arguments, until) in commands.items():
            ended[name].append(run_python(arguments, until=until, cuda=on_gpu))
    alone, usage, whole = (statistics.median(one.seconds for one in runs) for runs in ended.values())
    imported, ready = (
        statistics.median(one.seconds_until for one in ended[name]) for name in ("import torch", "smallest run")
    )
    rows = [
        ("until torch is imported", seconds(imported), "-"),
        ("until the backbone is loaded and images are to be read", seconds(ready), f"{ready - imported:+.2f} s"),
        ("an import of torch to its end", seconds(alone), "-"),
        ("smallest run to its end: 1 training and 5 test images", seconds(whole), f"{whole - alone:+.2f} s"),
        ("run_patchcore.py --help to its end", seconds(usage), "-"),
    ]
    title = "Start-up, in processes of their own"
    return Report(
        tables=[Table(title=title, header=("", "median", "above the import"), rows=rows)],
        targets=[] if settings.quick else [at_most("start-up above `import torch`", 1.5, ready - imported, " s")],
    )
