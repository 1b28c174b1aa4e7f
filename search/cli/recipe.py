"""The command that makes published tables anew: recipe. Arguments and printing only."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from apportion.compressors.errors import ConfigurationError
from apportion.db.files import finite, write_json
from apportion.search.cli.printing import show, table
from apportion.search.cli.progress import TerminalProgress


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    recipe = command(
        "recipe",
        _recipe,
        "Make the rows of a published table anew, with the published numbers beside them; without "
        "a name, list the recipes.",
        "apportion recipe resnet50-weights --data /data/imagenet -o resnet50-weights/ --gpus 1",
    )
    recipe.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="a recipe's name, or a file of your own (docs/RECIPES.md)",
    )
    recipe.add_argument(
        "--data", type=Path, help="folder with the data, laid out as docs/RECIPES.md says"
    )
    recipe.add_argument(
        "--weights", help="a .safetensors or .pt file, or its URL; default: the recipe's"
    )
    recipe.add_argument("-o", "--out", type=Path, help="folder to write to; default: NAME")
    recipe.add_argument(
        "--workers",
        type=int,
        default=0,
        help="Ray workers that build and score; default: this process",
    )
    recipe.add_argument(
        "--cpus", type=int, help="CPU threads of each worker; default: the recipe's"
    )
    recipe.add_argument(
        "--gpus", type=float, default=0, help="GPUs of each worker; default: on the CPU"
    )
    recipe.add_argument("--json", action="store_true", help="print JSON")


def _recipe(options: argparse.Namespace) -> None:
    from apportion.evaluators.tasks.task import Metric
    from apportion.search.recipes.recipes import job_of, load_recipe, run_recipe

    if options.name is None:
        _list(options)
        return
    recipe = load_recipe(options.name)
    out = options.out or Path(Path(options.name).stem)
    workers = {"count": options.workers, "gpus": options.gpus, "cpus": options.cpus}
    job = job_of(
        recipe,
        out,
        options.data,
        options.weights,
        {key: value for key, value in workers.items() if value is not None},
    )
    rows = []
    with TerminalProgress() as progress:
        for row in run_recipe(recipe, job, out, progress):
            rows.append(row)
            write_json(
                out / "recipe.json",
                finite({"title": recipe.title, "source": recipe.source, "rows": rows}),
            )

    def text() -> None:
        metric = Metric(**rows[0]["metric"])
        print(f"{recipe.title} ({recipe.source}); test {metric.title}")
        shown = [
            {
                "row": row["row"],
                **{step: metric.number(value) for step, value in row[metric.name].items()},
                "published": "-" if row["published"] is None else metric.number(row["published"]),
                "of dense": ", ".join(
                    f"{name} {share:.3f}" for name, share in row["costs"].items()
                ),
            }
            for row in rows
        ]
        table(list(shown[0]), shown)
        print(f"wrote {out / 'recipe.json'}, and an export of each row beside it")

    show(options, {"title": recipe.title, "source": recipe.source, "rows": rows}, text)


def _list(options: argparse.Namespace) -> None:
    from apportion.search.recipes.recipes import load_recipe, recipe_files

    rows = [{"recipe": name, "title": load_recipe(name).title} for name in recipe_files()]
    if not rows:
        raise ConfigurationError("no recipes are installed beside apportion; name a file")
    show(options, rows, lambda: table(("recipe", "title"), rows))
