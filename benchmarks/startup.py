"""Start-up: what the command line takes before it works, against `import torch` alone."""

from __future__ import annotations

import statistics

from benchmarks.inputs import CATEGORY, Inputs
from benchmarks.jobs import LITE0
from benchmarks.measure import Report, Table, at_most
from benchmarks.processes import BIN, Ended, run_python
from benchmarks.report import seconds
from patchcore.datasets.synthetic import generate

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
        "import torch": (["-c", "import torch"], None),
        "run_patchcore.py --help": ([BIN / "run_patchcore.py", "--help"], None),
        "smallest run": (smallest, "1 training"),
    }
    ended: dict[str, list[Ended]] = {name: [] for name in commands}
    run_python(smallest)  # files into the system's cache
    for _ in range(QUICK_ROUNDS if settings.quick else ROUNDS):
        for name, (arguments, until) in commands.items():
            ended[name].append(run_python(arguments, until))
    alone, usage, whole = (statistics.median(one.seconds for one in runs) for runs in ended.values())
    ready = statistics.median(one.seconds_until for one in ended["smallest run"])
    figures = {
        "import torch": alone,
        "run_patchcore.py --help": usage,
        "until the backbone is loaded and images are read": ready,
        "smallest run to its end: 1 training and 5 test images of 64 x 64": whole,
    }
    rows = [(name, seconds(value), f"{value - alone:+.2f} s") for name, value in figures.items()]
    title = "Start-up, in processes of its own"
    return Report(
        tables=[Table(title=title, header=("", "median", "above import torch"), rows=rows)],
        targets=[] if settings.quick else [at_most("start-up above `import torch`", 1.5, ready - alone, " s")],
    )
