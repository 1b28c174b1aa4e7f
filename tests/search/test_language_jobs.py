"""Whole jobs on text: build, search, export, and the export's check by the task's own metric."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.errors import ConfigurationError, DataError
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.text.sentence_similarity import SentenceSimilarity
from apportion.evaluators.tasks.text.text_classification import TextClassification
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.workload import load_workload
from tests import language, language_cases
from tests.whole_jobs import gone_through


def job(folder: Path, workload: dict[str, Any]) -> dict[str, Any]:
    return {
        "workload": {"batch_size": 32, **workload},
        "database": {"path": str(folder / "database"), "levels": ["dense", "unstr-0.50", "2:4"]},
        "budgets": {"flops": 0.85},
        "search": {"algorithms": ["random"], "evaluations": 8},
        "store": f"sqlite:///{folder / 'runs.sqlite'}",
    }


def texts(folder: Path, rows: int, seed: int, model: Any) -> str:
    """Labelled by the dense model itself, but for every eighth."""
    rng, path = random.Random(seed), folder / f"{seed}.csv"
    written = [language.text(rng, 2 + i % 6) for i in range(rows)]
    ids = {word: i for i, word in enumerate([*language.SPECIAL, *language.WORDS])}
    lines = ["sentence,what"]
    for i, text in enumerate(written):
        with torch.no_grad():
            tokens = torch.tensor([[2, *(ids[w] for w in text.split()), 3]])
            found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        label = int(field(found, "logits").argmax()) if i % 8 else i % 3
        lines.append(f"{text},{label}")
    path.write_text("\n".join(lines))
    return str(path)


def classification(folder: Path, model: str = "classifier") -> dict[str, Any]:
    made = getattr(language, model)()
    return {
        "model": f"tests.language:{model}",
        "task": {"kind": "text-classification"},
        "data": {
            "kind": "csv",
            "calibration": texts(folder, 64, 0, made),
            "test": texts(folder, 128, 1, made),
            "text": "sentence",
            "label": "what",
            "tokenizer": language.save_tokenizer(folder / "tokenizer"),
        },
    }


def rated(folder: Path) -> dict[str, Any]:
    """Three numbers for each text: the dense model's own, rounded."""
    model, rng = language.classifier(), random.Random(0)
    ids = {word: i for i, word in enumerate([*language.SPECIAL, *language.WORDS])}
    for name, rows in (("rated", 64), ("rated-test", 32)):
        lines = ["text,a,b,c"]
        for i in range(rows):
            text = language.text(rng, 2 + i % 6)
            with torch.no_grad():
                found = model(input_ids=torch.tensor([[2, *(ids[w] for w in text.split()), 3]]))
            lines.append(",".join([text, *(f"{x:.1f}" for x in found.logits[0].tolist())]))
        (folder / f"{name}.csv").write_text("\n".join(lines))
    return {
        "model": "tests.language:classifier",
        "task": {"kind": "regression"},
        "data": {
            "kind": "csv",
            "calibration": str(folder / "rated.csv"),
            "test": str(folder / "rated-test.csv"),
            "text": "text",
            "label": ["a", "b", "c"],
            "tokenizer": language.save_tokenizer(folder / "tokenizer"),
        },
    }


def running(folder: Path, **data: Any) -> dict[str, Any]:
    for seed in (0, 1):
        (folder / f"{seed}.txt").write_text(language.text(random.Random(seed), 500))
    return {
        "model": "tests.language:causal",
        "task": {"kind": "causal-lm"},
        "data": {
            "kind": "text",
            "calibration": str(folder / "0.txt"),
            "test": str(folder / "1.txt"),
            "tokenizer": language.save_tokenizer(folder / "tokenizer"),
            "sequence": 20,
            **data,
        },
    }


def recurrent(folder: Path) -> dict[str, Any]:
    return classification(folder, "recurrent")


def one_way(folder: Path) -> dict[str, Any]:
    return classification(folder, "one_way")


def llama(folder: Path) -> dict[str, Any]:
    return {**running(folder), "model": "tests.language:llama"}


def mixture(folder: Path) -> dict[str, Any]:
    return {**running(folder), "model": "tests.language:mixture"}


def squad(folder: Path) -> dict[str, Any]:
    rng = random.Random(0)
    contexts = [language.text(rng, 20 + i) for i in range(12)]
    paragraphs = [language.paragraph(c, " ".join(c.split()[4:7]), c.split()[2]) for c in contexts]
    file = language.write_squad(folder / "squad.json", paragraphs)
    tokenizer = language.save_tokenizer(folder / "tokenizer")
    files = dict.fromkeys(("calibration", "test"), file)
    keys = {"tokenizer": tokenizer, "sequence": 24, "stride": 6}
    return {
        "model": "tests.language:answerer",
        "task": {"kind": "question-answering"},
        "data": {"kind": "squad", **files, **keys},
    }


BERT = ["bert.embeddings.position_embeddings.weight"]
"""What stays dense: a table that is added. So does an embedding that is the head, too."""


CASES: list[tuple[Any, str, str, list[str]]] = [
    (classification, "accuracy", "%", BERT),
    (one_way, "accuracy", "%", []),
    (rated, "root mean squared error", "", BERT),
    (running, "perplexity", "", ["transformer.wte.weight", "transformer.wpe.weight"]),
    (llama, "perplexity", "", ["model.embed_tokens.weight"]),
    (mixture, "perplexity", "", []),
    (squad, "F1", "%", BERT),
]


@pytest.mark.parametrize(
    ("make", "metric", "unit", "stays_dense", "formats"),
    [
        *((*case, ["safetensors", "compressed"]) for case in CASES),
        (recurrent, "accuracy", "%", [], ["safetensors"]),
        *(pytest.param(*case, ["onnx", "torch"], marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_a_job_goes_through(
    make: Any, metric: str, unit: str, stays_dense: list[str], formats: list[str], tmp_path: Path
) -> None:
    found = gone_through(job(tmp_path, make(tmp_path)), tmp_path, formats, stays_dense)
    assert (found["metric"]["name"], found["metric"]["unit"]) == (metric, unit)
    assert found[metric]["dense"] > 0
    assert found["costs"]["flops"] <= 0.85
    notes = found["exports"].get("model.onnx", {}).get("notes", ())
    assert not any("one size" in note for note in notes)  # any number of texts of any length


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (
            {"sequence": 60},
            "causal",
            r"data.sequence: the calibration texts have up to 60 tokens, and .* has positions "
            "for 48",
        ),
        ({}, "classifier", r"gives no tensor|must give logits"),
    ],
)
def test_texts_and_models_that_do_not_go_together(
    data: dict[str, Any], model: str, message: str, tmp_path: Path
) -> None:
    workload = {**running(tmp_path, **data), "model": f"tests.language:{model}"}
    with pytest.raises(Exception, match=message):
        load_workload(WorkloadConfig.model_validate(workload))


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    workload = classification(tmp_path)
    language.save_tokenizer(tmp_path / "tokenizer", extra=100)
    (tmp_path / "1.csv").write_text("sentence,what\nextra99 bab,0\n")
    with pytest.raises(
        DataError, match=r"data.tokenizer: it gives the test texts tokens up to number 145, and mod"
    ):
        load_workload(WorkloadConfig.model_validate(workload))


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    workload = classification(tmp_path)
    (tmp_path / "1.csv").write_text("sentence,what\nbab,0\nbab,1\nbab,3\n")
    with pytest.raises(DataError, match=r"data.label: test labels must lie in 0..2 .* is 3, the "):
        load_workload(WorkloadConfig.model_validate(workload))


def test_another_token_for_padding_is_refused(tmp_path: Path) -> None:
    """GPT-2 reads the class off the last token that is not its own padding."""
    transformers = pytest.importorskip("transformers")
    data = load_workload(WorkloadConfig.model_validate(classification(tmp_path))).test
    sizes = {"vocab_size": language.VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2}
    for pad in (0, 7):
        config = transformers.GPT2Config(**sizes, num_labels=3, pad_token_id=pad)
        model = transformers.GPT2ForSequenceClassification(config).eval()
        task = TextClassification()
        few = data.subset(range(20))
        if pad == 0:
            task.check_dense(model, few, "mine")
        else:
            with pytest.raises(DataError, match="gives other logits for a text when padding foll"):
                task.check_dense(model, few, "mine")


def test_a_dense_model_that_knows_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_workload(WorkloadConfig.model_validate(running(tmp_path)))
    loaded.task.check_dense(loaded.model, loaded.test, "mine")  # on random words
    assert "worse than guessing among its 46 tokens" in caplog.text
    task, model, data = language_cases.similarity("mean")
    many = TensorDataset(trees.mapped(lambda x: x.repeat(8, *[1] * (x.dim() - 1)), data.batch))
    task.check_dense(model, many, "mine")
    unrelated = {
        **many.batch,
        "score": torch.rand(len(many), generator=torch.Generator().manual_seed(0)),
    }
    with pytest.raises(DataError, match="orders 128 test pairs no better than chance"):
        task.check_dense(model, TensorDataset(unrelated), "mine")


def test_pooling_is_the_similarity_tasks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("bab bad,baf,1\nbag bak,bal,0.2\n")
    files = dict.fromkeys(("calibration", "test"), str(tmp_path / "a.csv"))
    workload: dict[str, Any] = {
        "model": "tests.language:encoder",
        "task": {"kind": "sentence-similarity", "pooling": "cls"},
        "data": {
            "kind": "csv",
            "text": [0, 1],
            "label": 2,
            "tokenizer": language.save_tokenizer(tmp_path / "tokenizer"),
            **files,
        },
    }
    found = load_workload(WorkloadConfig.model_validate(workload)).task
    assert isinstance(found, SentenceSimilarity)
    assert found.pooling == "cls"
    assert found.key() == {"task": "sentence-similarity 1", "pooling": "cls"}
    (tmp_path / "a.csv").write_text("bab bad,baf,5\nbag bak,bal,0.2\n")
    with pytest.raises(DataError, match=r"data.scale: calibration similarities.* from 0.2 to 5;"):
        load_workload(WorkloadConfig.model_validate(workload))
    workload["task"]["kind"] = "text-classification"
    with pytest.raises(ConfigurationError, match="task.pooling: task 'text-classification' has no"):
        load_workload(WorkloadConfig.model_validate(workload))
