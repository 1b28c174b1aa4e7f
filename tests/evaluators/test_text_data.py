"""Texts as samples: tables, plain text, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.errors import DataError
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.text.config import TableData, TextData
from apportion.evaluators.tasks.registry import make_task
from tests import language
from tests.tables import write

ROWS = [("bab bad", "yes"), ("baf", "no"), ("bag bak bal bam", "yes")]


def context(kind: str, **more: Any) -> Context:
    task = make_task(kind)
    return Context("mine", task.identity, task.form, **more)


def table(folder: Path, rows: list[tuple[Any, ...]], **keys: Any) -> TableData:
    tokenizer = language.save_tokenizer(folder / "tokenizer")
    file = write(folder, keys.setdefault("kind", "csv"), rows)
    given = {"text": "text", "label": "label", "calibration": file, "test": file, **keys}
    return TableData(tokenizer=tokenizer, **given)


def whole(dataset: Any) -> Any:
    return dataset.subset(range(len(dataset))).batch


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_are_tokenized_and_padded(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = load_splits(table(tmp_path, ROWS, kind=kind), context("text-classification")).test
    batch = whole(data)
    assert batch["labels"].tolist() == [1, 0, 1]  # in alphabetical order
    ids = {word: i for i, word in enumerate([*language.SPECIAL, *language.WORDS])}
    assert batch["input_ids"].tolist() == [
        [2, ids["bab"], ids["bad"], 3, 0, 0],
        [2, ids["baf"], 3, 0, 0, 0],
        [2, *(ids[word] for word in ROWS[2][0].split()), 3],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [4, 3, 6]
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    parts = [part["input_ids"] for part in data.batches(2)]
    assert torch.equal(torch.cat(parts), batch["input_ids"])
    assert capfd.readouterr().err == ""


def test_two_texts_are_one_sample_or_a_pair(tmp_path: Path) -> None:
    rows = [("bab", "bad baf", 5), ("bag", "bak", 2.5)]
    columns = {"text": ("text", "label"), "label": "third"}
    config = table(tmp_path, rows, **columns, scale=5)
    batch = whole(load_splits(config, context("sentence-similarity")).test)
    assert batch["score"].tolist() == [1.0, 0.5]
    assert batch["first"]["input_ids"].shape == batch["second"]["input_ids"].shape == (2, 4)
    inputs = make_task("sentence-similarity").inputs(batch)
    assert inputs["attention_mask"].sum(1).tolist() == [3, 3, 4, 3]
    rows = [("bab", "bad baf", 1), ("bag", "bak", 0)]
    config = table(tmp_path, rows, **columns)
    batch = whole(load_splits(config, context("text-classification")).test)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_several_numbers_are_targets(tmp_path: Path) -> None:
    config = table(tmp_path, [("bab", 1, -2.5), ("bag", 0, 4)], label=("label", "third"))
    data = load_splits(config, Context("mine", "mine", "targets")).test
    assert whole(data)["labels"].tolist() == [[1.0, -2.5], [0.0, 4.0]]


def test_a_csv_file_may_have_no_names(tmp_path: Path) -> None:
    config = table(tmp_path, [("bab", 0), ("bad", 1)], text=0, label=1)
    (tmp_path / "file.csv").write_text("bab,0\nbad,1\nbaf,007\n")
    data = load_splits(config, context("text-classification")).test
    assert whole(data)["labels"].tolist() == [0, 1, 7]


def test_classes_are_numbered_as_the_model_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def labels(*names: str) -> list[int]:
        found = context("text-classification", classes=names)
        return whole(load_splits(config, found).test)["labels"].tolist()

    config = table(tmp_path, ROWS)
    assert labels("yes", "no") == [0, 1, 0]
    assert labels("other", "No", "YES") == [2, 1, 2]
    assert labels("LABEL_0", "LABEL_1") == [1, 0, 1]
    assert not caplog.records
    assert labels("good", "bad") == [1, 0, 1]
    assert "no label is one of the model's classes (good, bad)" in caplog.text
    with pytest.raises(
        DataError, match=r"calibration: .*file.csv: row 2 has the unknown class 'no'"
    ):
        labels("yes", "nope")


def test_a_class_that_only_the_test_rows_have_is_refused(tmp_path: Path) -> None:
    config = table(tmp_path, ROWS)
    other = write(tmp_path, "csv", [*ROWS, ("bab", "mayb")], "other")
    config = config.model_copy(update={"test": other, "train": other})
    assert len(load_splits(config, context("text-classification")).test) == 4  # train knows it
    config = config.model_copy(update={"train": None})
    with pytest.raises(
        DataError, match=r"test: .*csv: row 4 has the unknown class 'mayb'.*n: no, yes"
    ):
        load_splits(config, context("text-classification"))


def test_long_texts_are_cut_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = table(tmp_path, ROWS, sequence=5)
    batch = whole(load_splits(config, context("text-classification")).test)
    assert batch["input_ids"].shape == (3, 5)
    assert batch["input_ids"][2, -1] == 3
    assert "1 of 3 texts are cut after 5 tokens" in caplog.text


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("text-classification", {"text": "txt"}, "has no column 'txt'; its columns are text, lab"),
        (
            "text-classification",
            {"label": None},
            "data.label: task text-classification needs 1 col",
        ),
        ("sentence-similarity", {}, "data.text: task sentence-similarity needs 2 columns, not 1"),
        ("causal-lm", {}, "data.label: task causal-lm needs no column, not 1"),
        (
            "sentence-similarity",
            {"text": ("text", "text")},
            "has 'yes' in column 'label'; a number",
        ),
        ("image-classification", {}, "data.kind: csv has texts with labels, which task image-cl"),
        ("question-answering", {}, "data.kind: csv has texts with labels, which task question-an"),
        ("causal-lm", {"label": None}, "calibration: 8 tokens, fewer than one sample needs"),
    ],
)
def test_what_does_not_fit_the_task_is_said(
    kind: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load_splits(table(tmp_path, ROWS, **keys), context(kind))
    assert message in str(caught.value)
    assert "workload.data." in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "text,label\n", "has no rows"),
        ("csv", "", "has no rows"),
        ("csv", "text,label\nbab,\n", "row 1 has nothing in column 'label'"),
        ("csv", "text,label\nbab,1\nbad,1,2,3\n", "is not readable as csv"),
        ("jsonl", "", "has no rows"),
        (
            "jsonl",
            '{"text": "bab", "label": 1}\n{"text": null, "label": 1}',
            "row 2 has nothing in",
        ),
        ("jsonl", '{"text": 1, "label": 1}', "row 1 has 1 in column 'text'; a text is needed"),
        ("jsonl", '{"text":', "is not readable as jsonl"),
        ("parquet", "PAR1", "is not readable as parquet"),
        ("csv", None, "no such file"),
    ],
)
def test_tables_that_cannot_be_read_are_named(
    kind: str,
    content: str | None,
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = table(tmp_path, ROWS, kind=kind)
    broken = tmp_path / "broken"
    if content is not None:
        broken.write_text(content)
    config = config.model_copy(update={"test": str(broken)})
    with pytest.raises(DataError, match="^workload.data.test: ") as caught:
        load_splits(config, context("text-classification"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_the_tokenizer_is_the_models_or_named(tmp_path: Path) -> None:
    config = table(tmp_path, ROWS)
    folder = config.tokenizer
    config = config.model_copy(update={"tokenizer": None})
    made = context("text-classification")
    with pytest.raises(DataError, match=r"data.tokenizer: required, as model 'mine' brings none"):
        load_splits(config, made)
    of_the_model = Context(f"huggingface:{folder}", made.task, made.form)
    assert len(load_splits(config, of_the_model).test) == 3
    config = config.model_copy(update={"tokenizer": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match=r"data.tokenizer: '.*nowhere' has no tokenizer \("):
        load_splits(config, made)
    language.save_tokenizer(tmp_path / "unpadded", pad_token=None)
    config = config.model_copy(update={"tokenizer": str(tmp_path / "unpadded")})
    with pytest.raises(DataError, match=r"unpadded' has no token for padding \(pad_token\)"):
        load_splits(config, made)


def running(folder: Path, words: list[str], **keys: Any) -> TextData:
    tokenizer = language.save_tokenizer(folder / "tokenizer", **keys.pop("tokenizer", {}))
    (folder / "text.txt").write_text("\n".join(words))
    files = dict.fromkeys(("calibration", "test"), str(folder / "text.txt"))
    return TextData(kind="text", **files, tokenizer=tokenizer, **keys)


def test_running_text_is_packed_without_padding(tmp_path: Path) -> None:
    words = language.WORDS[:30]
    config = running(tmp_path, words, sequence=8)
    batch = whole(load_splits(config, context("causal-lm")).test)
    ids = list(range(5, 35))
    # the token that begins every text once, and what does not fill a piece is dropped
    assert batch["input_ids"].flatten().tolist() == [2, *ids[:23]]
    assert bool((batch["attention_mask"] == 1).all())
    batch = whole(load_splits(config, context("masked-lm")).test)
    there = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
    assert there[:, 1:-1].flatten().tolist() == ids
    assert there[:, 0].tolist() == [2] * 5
    assert there[:, -1].tolist() == [3] * 5


def test_blocks_of_a_long_text_give_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = running(tmp_path, language.WORDS * 5, sequence=8)
    expected = whole(load_splits(config, context("causal-lm")).test)["input_ids"]
    monkeypatch.setattr("apportion.evaluators.data.text.packing._BLOCK", 50)
    assert torch.equal(whole(load_splits(config, context("causal-lm")).test)["input_ids"], expected)


def test_tokens_are_masked_by_the_seed(tmp_path: Path) -> None:
    def read(**keys: Any) -> Any:
        config = running(tmp_path, language.WORDS * 100, sequence=40, **keys)
        return whole(load_splits(config, context("masked-lm")).test)

    batch = read()
    asked = batch["labels"] >= 0
    assert bool(asked.any(1).all())
    assert not bool((asked & torch.isin(batch["labels"], torch.arange(5))).any())
    tokens = batch["input_ids"].numel() - 2 * len(asked)
    assert float(asked.sum()) / tokens == pytest.approx(0.15, abs=0.02)
    shown = batch["input_ids"][asked]
    assert float((shown == 4).float().mean()) == pytest.approx(0.8, abs=0.05)
    kept = float((shown == batch["labels"][asked]).float().mean())
    assert kept == pytest.approx(0.1, abs=0.05)
    assert torch.equal(read()["labels"], batch["labels"])
    assert not torch.equal(read(seed=1)["labels"], batch["labels"])


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (
            "text-classification",
            {},
            "data.kind: text is for language models (causal-lm, masked-lm)",
        ),
        ("causal-lm", {"sequence": 400}, "calibration: 31 tokens, fewer than one sample needs"),
        ("masked-lm", {"tokenizer": {"mask_token": None}}, "has no token that masks (mask_token)"),
    ],
)
def test_text_that_does_not_do_is_refused(
    kind: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = running(tmp_path, language.WORDS[:30], **{"sequence": 8, **keys})
    with pytest.raises(DataError) as caught:
        load_splits(config, context(kind))
    assert message in str(caught.value)


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    config = running(tmp_path, ["bab"])
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"calibration: .*text.txt: not readable as UTF-8 text"):
        load_splits(config, context("causal-lm"))
    config = config.model_copy(update={"calibration": str(tmp_path / "none")})
    with pytest.raises(DataError, match=r"calibration: .*none: no such file"):
        load_splits(config, context("causal-lm"))


def test_documents_of_a_table_end_with_the_token_for_it(tmp_path: Path) -> None:
    config = table(tmp_path, ROWS, label=None, sequence=4)
    tokenizer = language.save_tokenizer(tmp_path / "ended", eos_token="[SEP]")
    config = config.model_copy(update={"tokenizer": tokenizer})
    batch = whole(load_splits(config, context("causal-lm")).test)
    assert batch["input_ids"].flatten().tolist() == [2, 5, 6, 3, 7, 3, 8, 9]


def test_columns_are_named_or_numbered(tmp_path: Path) -> None:
    for keys in ({"text": 0, "label": "label"}, {"text": (0, "label"), "label": 2}):
        with pytest.raises(ValueError, match="columns are named, or numbered, not both"):
            table(tmp_path, ROWS, **keys)
    with pytest.raises(ValueError, match="columns of parquet files have names"):
        table(tmp_path, ROWS, kind="parquet", text=0, label=1)


def test_real_similarities(shared_data: Path, tmp_path: Path) -> None:
    """STS-B's files have no line of names."""
    file = str(shared_data / "text" / "stsb_dev.csv")
    tokenizer = language.save_tokenizer(tmp_path / "tokenizer")
    config = TableData(
        kind="csv", calibration=file, test=file, text=(0, 1), label=2, scale=5, tokenizer=tokenizer
    )
    data = load_splits(config, context("sentence-similarity")).test
    assert len(data) == 1500
    score = whole(data)["score"]
    assert (float(score.min()), float(score.max())) == (0, 1)


def test_real_text(shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    file = str(shared_data / "text" / "wikitext2_test_first_half.txt")
    tokenizer = language.save_tokenizer(tmp_path / "tokenizer")
    config = TextData(kind="text", calibration=file, test=file, tokenizer=tokenizer, sequence=512)
    batch = whole(load_splits(config, context("causal-lm")).test)
    assert batch["input_ids"].shape[1] == 512
    assert len(batch["input_ids"]) > 200
    assert not caplog.records
