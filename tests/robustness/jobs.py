"""Job files that are none: as YAML, and field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.robustness.case import Case
from tests.robustness.whole import changed, text

SEARCH = ("search", "FOLDER/job.yaml")
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_YAML: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "a job is a mapping"),
    "comment alone": ("# nothing\n", "a job is a mapping"),
    "list": ("[1, 2]", "a job is a mapping"),
    "text": ("hello", "a job is a mapping"),
    "number": ("3", "a job is a mapping"),
    "null": ("~", "a job is a mapping"),
    "alias bomb": (_BOMB, "values"),
    "brackets": ("[" * 100_000, "nest"),
    "braces": ("{a: " * 100_000, "nest"),
    "dashes": ("- " * 100_000, "nest"),
    "deep block": ("".join(" " * i + "a:\n" for i in range(200)), "nest"),
    "recursive alias": ("workload: &a [*a]", "alias"),
    "recursive map": ("workload: &a {data: *a}", "alias"),
    "unknown alias": ("workload: *nothing", "alias"),
    "50 MB": (b"a: 1\n" * 10_000_000, "more than 1 MiB"),
    "many values": ("a: [" + "1, " * 250_000 + "1]", "more than 200000 values"),
    "duplicate key": ("workload: 1\nworkload: 2", "line 2: the key 'workload' stands twice"),
    "duplicate inner key": ("search: {seeds: [0], seeds: [1]}", "the key 'seeds' stands twice"),
    "python object": ("!!python/object/apply:os.getcwd []", "tag"),
    "python name": ("workload: !!python/name:os.getcwd", "tag"),
    "own tag": ("workload: !mine 3", "tag"),
    "binary": ("workload: !!binary aGk=", "tag"),
    "two documents": ("--- 1\n--- 2\n", "second document"),
    "open bracket": ("a: [1", "not readable as YAML"),
    "open quote": ('a: "x', "not readable as YAML"),
    "two colons": ("a: b: c", "not readable as YAML"),
    "tab": ("a:\n\tb: 1", "not readable as YAML"),
    "bad indentation": ("a:\n   b: 1\n  c: 2", "not readable as YAML"),
    "control character": ("a: \x07", "not readable as YAML"),
    "bad escape": ('a: "\\q"', "not readable as YAML"),
    "yaml 9": ("%YAML 9.0\n--- a", "YAML"),
    "list as key": ("[a, b]: 1", "a key must be text"),
    "map as key": ("? {a: 1}\n: 2", "a key must be text"),
    "merge of a number": ("<<: 3", "<< needs a mapping"),
    "latin-1": ("workload: ü".encode("latin-1"), "UTF-8"),
    "zero bytes": (b"a\0b", "zero bytes"),
    "utf-16 without mark": ("workload: {}".encode("utf-16-le"), "zero bytes"),
    "broken utf-16": (b"\xff\xfea", "UTF-1"),
    "image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "UTF-8|zero bytes"),
    "json cut": ('{"workload": {"data"', "YAML"),
    "huge number": ("search: {evaluations: " + "9" * 5000 + "}", "search.evaluations"),
}
_NUMBERS = (
    ("workload", "calibration_samples"),
    ("workload", "seed"),
    ("workload", "batch_size"),
    ("database", "damping"),
    ("database", "augment", "rounds"),
    ("database", "augment", "crop"),
    ("search", "evaluations"),
    ("search", "picks"),
    ("workers", "count"),
    ("workers", "cpus"),
    ("workers", "gpus"),
    ("workers", "deadline"),
    ("workers", "at_least"),
    ("recovery", "finetune", "epochs"),
    ("recovery", "lintune", "learning_rate"),
)
_NO_NUMBERS: dict[str, Any] = {
    "true": True,
    "text": "many",
    "negative": -1,
    "list": [1],
    "map": {"a": 1},
    "nan": float("nan"),
    "infinite": float("inf"),
}
_FIELDS: list[tuple[tuple[str, ...], Any, str]] = [
    (("bugdets",), {}, "bugdets: unknown key 'bugdets'; did you mean 'budgets'"),
    (("workload", "modle"), "x", "workload.modle: .*did you mean 'model'"),
    (("workload", "data", "trian"), "x", "did you mean 'train'"),
    (("workload", "data", "kind"), "nzp", "workload.data"),
    (("workload", "data", "kind"), 3, "workload.data"),
    (("workload", "data"), None, "workload.data"),
    (("workload", "data"), "digits", "workload.data"),
    (("workload", "data", "mean"), [0.5, "a"], "workload.data"),
    (("workload", "data", "std"), [0], "workload.data"),
    (("workload", "data", "std"), [True], "workload.data"),
    (("workload", "data", "calibration"), 3, "workload.data"),
    (("workload", "model"), "digits_resnt", "digits_resnt"),
    (("workload", "model"), "", "model"),
    (("workload", "model"), 3, "workload.model"),
    (("workload", "model"), None, "workload"),
    (("workload", "model"), "torchvision:resnet1", "resnet1"),
    (("workload", "model"), "no_such_module:build", "no_such_module"),
    (("workload", "model"), "os:getcwd", "os:getcwd"),
    (("workload", "model"), "os:", "os:"),
    (("workload", "fold"), "perhaps", "workload.fold"),
    (("workload", "weights"), 3, "workload.weights"),
    (("workload",), [], "workload"),
    (("workload",), None, "workload"),
    (("database", "path"), None, "database.path"),
    (("database", "path"), 3, "database.path"),
    (("database", "path"), "x" * 5000, "File name too long"),
    (("database", "path"), "a\0b", "null byte|not a path|database"),
    (("database", "levels"), [], "database.levels"),
    (("database", "levels"), "dense", "database.levels"),
    (("database", "levels"), ["unstr-0.5"], "'dense' must be among"),
    (("database", "levels"), ["dense", "unstr-1.5"], "level 'unstr-1.5'"),
    (("database", "levels"), ["dense", "unstr-0.5..0.4"], "unstr-0.5..0.4"),
    (("database", "levels"), ["dense", "w99"], "w99"),
    (("database", "levels"), ["dense", "4:2"], "4:2"),
    (("database", "levels"), ["dense", "0:4"], "0:4"),
    (("database", "levels"), ["dense", ""], "level ''"),
    (("database", "levels"), ["dense", "w4+2:4"], "w4\\+2:4"),
    (("database", "levels"), ["dense", 124], "database.levels"),
    (("database", "levels"), ["dense", "unstr-0.10..0.99*1.0"], "unstr-0.10"),
    (("database", "levels"), ["dense", "unstr-0.10..0.99*0.999999999"], "unstr-0.10"),
    (("database", "memory"), "lots", "database.memory"),
    (("database", "memory"), 8, "database.memory"),
    (("database", "grid"), {"per": "row"}, "database.grid.per"),
    (("database", "grid"), {"fit": 3}, "database.grid.fit"),
    (("database", "sequential"), "perhaps", "database.sequential"),
    (("budgets",), [], "budgets"),
    (("budgets", "flop"), 0.5, "did you mean 'flops'"),
    (("budgets", "flops"), 0, "above 0 and at most 1"),
    (("budgets", "flops"), 1.5, "above 0 and at most 1"),
    (("budgets", "flops"), -0.5, "budget"),
    (("budgets", "flops"), True, "budgets"),
    (("budgets", "flops"), None, "budgets"),
    (("budgets", "flops"), [0.5], "budgets"),
    (("budgets", "flops"), float("nan"), "budgets"),
    (("budgets", "flops"), float("inf"), "budgets"),
    (("budgets", "flops"), "half", "expected a share"),
    (("budgets", "flops"), "0,25", "write 0.25, with a point"),
    (("budgets", "flops"), "1_000_000", "write 1000000, without _"),
    (("budgets", "flops"), "0.5x", "must be 1x or more"),
    (("budgets", "flops"), "3ms", "unknown unit 'ms'"),
    (("budgets", "bits"), "3 parsec", "unknown unit 'parsec'"),
    (("budgets", "flops"), "1e999M", "budget"),
    (("budgets", "flops"), 1e-9, "budget 'flops'"),
    (("budgets", "latency"), 0.5, "needs times"),
    (("budgets", "speedup"), "3x", "needs times"),
    (("fitness",), "los", "did you mean 'loss'"),
    (("fitness",), 3, "fitness"),
    (("batchnorm",), "bach", "did you mean 'batch'"),
    (("errors",), "losses", "errors"),
    (("corrections", "score"), ["batchnrm"], "batchnrm"),
    (("corrections", "score"), "batchnorm", "corrections.score"),
    (("layers", "skip"), ["conv99"], "conv99"),
    (("layers", "skip"), "conv1", "layers.skip"),
    (("layers", "levels"), {"conv1": ["wat"]}, "wat"),
    (("layers", "levels"), {"nothing*": ["dense"]}, "nothing"),
    (("layers", "first"), "w99", "layers.first"),
    (("layers", "sparsity"), {"*": [0.9, 0.1]}, "layers.sparsity"),
    (("layers", "sparsity"), {"*": [0.9]}, "layers.sparsity"),
    (("layers", "bits"), {"*": [True, 8]}, "layers.bits"),
    (("layers", "bits"), {"*": [5, 6]}, "inside its ranges"),
    (("layers", "tie"), [["conv99"]], "conv99"),
    (("layers", "tie"), [["conv1", "linear"], ["conv1"]], "in two sets"),
    (("search", "evalutions"), 3, "did you mean 'evaluations'"),
    (("search", "evaluations"), 0, "search.evaluations"),
    (("search", "evaluations"), 2.5, "search.evaluations"),
    (("search", "evaluations"), "1_000", "write 1000, without _"),
    (("search", "evaluations"), 10**12, "search.evaluations"),
    (("search", "seeds"), [], "search.seeds"),
    (("search", "seeds"), [0, 0], "different whole numbers"),
    (("search", "seeds"), [-1], "search.seeds"),
    (("search", "seeds"), [True], "search.seeds"),
    (("search", "seeds"), [2**63], "below 2\\^63"),
    (("search", "seeds"), [10**40], "search.seeds"),
    (("search", "seeds"), 3, "search.seeds"),
    (("search", "algorithms"), [], "search.algorithms"),
    (("search", "algorithms"), "ga", "search.algorithms"),
    (("search", "algorithms"), ["spdi"], "did you mean 'spdy'"),
    (("search", "algorithms"), ["ga", "ga"], "named twice"),
    (("search", "algorithms"), [{"ga": {}, "dp": {}}], "search.algorithms"),
    (("search", "algorithms"), [{"ga": None}], "search.algorithms"),
    (("search", "algorithms"), [3], "search.algorithms"),
    (("search", "algorithms"), ["no_such_module:Mine"], "no_such_module"),
    (("search", "algorithms"), ["os:getcwd"], "is not a subclass"),
    (("search", "algorithms"), [{"race": {"algorithms": ["race"]}}], "'race'"),
    (("search", "algorithms"), [{"race": {"algorithms": ["gaa"]}}], "gaa"),
    (("workers", "at_least"), 3, "workers"),
    (("workers", "count"), 100_000, "workers.count"),
    (("workers", "resources"), {"a100": 0}, "workers.resources"),
    (("workers", "precision"), "float8", "float8"),
    (("workers", "gpus"), 1, "workers.gpus"),
    (("latency",), {"table": "none.csv"}, "none.csv"),
    (("latency",), {}, "latency.table"),
    (("latency",), {"table": 3}, "latency.table"),
    (("latency",), {"table": "os:getcwd"}, "os:getcwd"),
    (("latency",), {"table": "no_such_module:f"}, "no_such_module"),
    (("recovery", "finetune"), {"epoch": 3}, "epoch"),
    (("store",), 3, "store"),
]
_TABLE_FIELDS: list[tuple[tuple[str, ...], Any, str]] = [
    (("workload", "eror"), "quadratic", "eror"),
    (("workload", "error"), "cubic", "cubic"),
    (("workload", "error"), "none.csv", "none.csv"),
    (("workload", "table"), "none.txt", "none.txt"),
    (("workload", "table"), ".", "not a file"),
    (("workload", "table"), "x" * 5000, "File name too long"),
    (("workload", "model"), "torchvision:nothing", "nothing"),
    (("workload", "clean"), "perhaps", "workload.clean"),
    (("budgets", "flops"), 0.5, "budgets.flops"),
    (("budgets", "speedup"), "500x", "latency"),
    (("database",), {"path": "x"}, "database"),
]
_PARAMETERS: list[tuple[str, str, Any]] = [
    (name, key, value)
    for name, keys in {
        "ga": ("population", "offspring", "mutation"),
        "nsga2": ("population", "mutation"),
        "pso": ("particles", "inertia", "speed"),
        "abc": ("sources", "limit"),
        "aco": ("ants", "evaporation"),
        "anneal": ("heat", "batch"),
        "local": ("pool", "patience"),
        "evopress": ("offspring", "survivors", "fidelity"),
        "spdy": ("samples", "patience"),
        "surrogate": ("warm", "most"),
        "random": ("batch",),
        "spdy-cma": ("sigma",),
    }.items()
    for key in keys
    for value in (-5, 10**9, "many")
]


def cases() -> Iterator[Case]:
    for name, (content, says) in _YAML.items():
        yield Case(f"yaml: {name}", text("job.yaml", content), SEARCH, says)
    for place in _NUMBERS:
        for what, value in _NO_NUMBERS.items():
            name = f"job: {'.'.join(place)} {what}"
            yield Case(name, changed(*place, to=value), SEARCH, place[-1])
    for keys, value, says in _FIELDS:
        name = f"job: {'.'.join(keys)} = {str(value)[:40]}"
        yield Case(name, changed(*keys, to=value), SEARCH, says)
    for keys, value, says in _TABLE_FIELDS:
        name = f"table job: {'.'.join(keys)} = {str(value)[:40]}"
        prepare = changed(*keys, to=value, name="table.yaml")
        yield Case(name, prepare, ("search", "FOLDER/table.yaml"), says)
    for algorithm, key, value in _PARAMETERS:
        chosen = [{algorithm: {key: value}}]
        yield Case(
            f"algorithm: {algorithm} {key} = {value}",
            changed("search", "algorithms", to=chosen, name="table.yaml"),
            ("search", "FOLDER/table.yaml"),
            f"'{algorithm}': parameter '{key}'",
        )
