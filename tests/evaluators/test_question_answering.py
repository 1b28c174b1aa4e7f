"""SQuAD's files as samples, and its arithmetic."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.errors import DataError
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.text.config import SquadData
from apportion.evaluators.tasks.text.question_answering import QuestionAnswering
from apportion.evaluators.tasks.text.squad_score import f1
from tests import language
from tests.language import paragraph, write_squad

TASK = QuestionAnswering()
CONTEXT = Context("mine", TASK.identity, TASK.form)


def read(folder: Path, paragraphs: list[dict[str, Any]], **keys: Any) -> Any:
    file = write_squad(folder / "squad.json", paragraphs)
    files = dict.fromkeys(("calibration", "test"), file)
    tokenizer = language.save_tokenizer(folder / "tokenizer")
    config = SquadData(kind="squad", **files, tokenizer=tokenizer, **keys)
    return load_splits(config, CONTEXT).test


def outputs(batch: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = batch["input_ids"].shape
    return {f"{side}_logits": torch.randn(shape, generator=generator) for side in ("start", "end")}


def published(batch: Any, outputs: Any, contexts: list[str], optional: bool) -> list[str]:
    """The answer to every question, as the published evaluations find it: over the windows of the
    question, every start and end, one by one."""
    answers = []
    for number, context in enumerate(contexts):
        best, text, none = -float("inf"), "", float("inf")
        shown = ""
        for window in (batch["question"] == number).nonzero()[:, 0].tolist():
            start, end = (outputs[f"{side}_logits"][window] for side in ("start", "end"))
            none = min(none, float(start[0] + end[0]))
            shown = "".join(map(chr, batch["context"][window].tolist())).rstrip("\0")
            assert shown in context
            spans = batch["spans"][window].tolist()
            for i, (begin, _) in enumerate(spans):
                for j, (_, finish) in enumerate(spans):
                    inside = begin >= 0 and finish >= 0 and i <= j < i + 30
                    if inside and float(start[i] + end[j]) > best:
                        best, text = float(start[i] + end[j]), shown[begin:finish]
        answers.append("" if optional and none > best else text)
    return answers


@pytest.mark.parametrize("optional", [False, True])
def test_the_metric_is_squads(tmp_path: Path, optional: bool) -> None:
    rng = random.Random(0)
    contexts = [language.text(rng, 12 + 5 * i) + " ." for i in range(8)]
    paragraphs = [
        paragraph(c, None if optional and i % 2 else " ".join(c.split()[i : i + 3]))
        for i, c in enumerate(contexts)
    ]
    # a second right answer
    first = paragraphs[0]["qas"][0]["answers"]
    first.append({"text": contexts[0][:2], "answer_start": 0})
    data = read(tmp_path, paragraphs, sequence=20, stride=5)
    assert len(data) > len(contexts)  # long ones in several windows
    batch = data.subset(range(len(data))).batch
    found = outputs(batch)
    for value in found.values():
        value[:, 0] += 2  # some questions are answered by nothing
    answers = published(batch, found, contexts, optional)
    golds = [[a["text"] for a in p["qas"][0]["answers"]] for p in paragraphs]
    score = TASK.measure(TASK.rows(found, batch))
    assert score == pytest.approx(100 * sum(map(f1, answers, golds)) / len(answers))
    assert 0 < score < 100
    if optional:
        assert 0 < answers.count("") < len(answers)
        return
    squad = pytest.importorskip("torchmetrics.text").SQuAD()
    predictions = [{"prediction_text": answer, "id": str(i)} for i, answer in enumerate(answers)]
    targets = [
        {"answers": {"answer_start": [0] * len(texts), "text": texts}, "id": str(i)}
        for i, texts in enumerate(golds)
    ]
    assert score == pytest.approx(float(squad(predictions, targets)["f1"]), abs=1e-4)


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [
        ("The cat, sat!", ["cat sat"], 1.0),
        ("a cat", ["dog", "the cat sat"], 2 / 3),
        ("cat cat", ["cat dog"], 0.5),
        ("", [], 1.0),
        ("cat", [], 0.0),
        ("the", ["a"], 1.0),  # nothing is left of either
        ("the", ["cat"], 0.0),
    ],
)
def test_what_answers_have_in_common(answer: str, right: list[str], value: float) -> None:
    assert f1(answer, right) == pytest.approx(value)


def test_windows_show_all_of_a_context_and_where_its_answer_is(tmp_path: Path) -> None:
    context = " ".join(language.WORDS[:30])
    data = read(tmp_path, [paragraph(context, "fif fig")], sequence=16, stride=4)
    batch = data.subset(range(len(data))).batch
    assert batch["question"].tolist() == [0] * len(data)
    where = context.index("fif fig")
    seen: set[str] = set()
    for i in range(len(data)):
        text = "".join(map(chr, batch["context"][i].tolist())).rstrip("\0")
        seen |= set(text.split())
        start, end = int(batch["start"][i]), int(batch["end"][i])
        if text.find("fif fig") < 0:
            assert start == end == int(batch["null"][i]) == 0
        else:
            spans = batch["spans"][i]
            assert text[int(spans[start, 0]) : int(spans[end, 1])] == "fif fig"
    assert seen == set(context.split())
    assert where > 0
    assert "".join(map(chr, batch["answers"][0].tolist())).split("\0")[0] == "fif fig"
    lengths = batch["attention_mask"].sum(1)
    assert int(lengths.max()) == batch["input_ids"].shape[1] <= 16


def test_padding_changes_nothing(tmp_path: Path) -> None:
    contexts = [" ".join(language.WORDS[:8]), " ".join(language.WORDS[:20])]
    data = read(tmp_path, [paragraph(c, "bad") for c in contexts], sequence=30, stride=4)
    short = data.subset([0]).batch
    found = outputs(short)
    length = int(short["attention_mask"].sum())
    other = {name: value.clone() for name, value in found.items()}
    for value in other.values():
        value[:, length:] = 50
    torch.testing.assert_close(TASK.loss(found, short), TASK.loss(other, short))
    torch.testing.assert_close(TASK.rows(found, short), TASK.rows(other, short))
    assert float(TASK.divergence(other, TASK.reference(found, short), short)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("data"), "the file has no list 'data'"),
        (lambda c: c["data"][0]["paragraphs"][0].pop("context"), "paragraphs.0 has no text 'cont"),
        (
            lambda c: c["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(answer_start=3),
            "'dof' does not stand at character 3",
        ),
        (
            lambda c: c["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].pop("answer_start"),
            "answer_start is None",
        ),
        (lambda c: c["data"].clear(), "has no questions"),
    ],
)
def test_a_file_of_another_format_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    write_squad(tmp_path / "squad.json", [paragraph("bad bak dof", "dof")])
    content = json.loads((tmp_path / "squad.json").read_text())
    change(content)
    (tmp_path / "squad.json").write_text(json.dumps(content))
    files = dict.fromkeys(("calibration", "test"), str(tmp_path / "squad.json"))
    tokenizer = language.save_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(DataError, match="workload.data.calibration: ") as caught:
        load_splits(SquadData(kind="squad", **files, tokenizer=tokenizer), CONTEXT)
    assert message in str(caught.value)


def test_a_question_that_leaves_no_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"calibration: question 1 has 2 tokens: with a stride of 6"
    ):
        read(tmp_path, [paragraph("bad bak dof", "dof")], sequence=11, stride=6)


def test_real_questions(shared_data: Path, tmp_path: Path) -> None:
    """XQuAD: every answer is found again where its window says."""
    file = shared_data / "text" / "xquad_en.json"
    files = dict.fromkeys(("calibration", "test"), str(file))
    tokenizer = language.save_tokenizer(tmp_path / "tokenizer")
    config = SquadData(kind="squad", **files, tokenizer=tokenizer, sequence=128, stride=32)
    data = load_splits(config, CONTEXT).test
    batch = data.subset(range(0, len(data), 7)).batch
    shown = (batch["start"] != batch["null"]).nonzero()[:, 0].tolist()
    assert len(shown) > 100
    for i in shown:
        text = "".join(map(chr, batch["context"][i].tolist()))
        right = "".join(map(chr, batch["answers"][i].tolist())).split("\0")[0]
        first, last = batch["spans"][i][batch["start"][i]], batch["spans"][i][batch["end"][i]]
        assert right in text[int(first[0]) : int(last[1])]


def test_windows_that_lose_a_contexts_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tokenizers library's 0.23.1 and 0.23.2 give them."""
    from transformers import PreTrainedTokenizerFast

    honest = PreTrainedTokenizerFast._encode_plus

    def hasty(self: Any, *given: Any, **options: Any) -> Any:
        made = honest(self, *given, **options)
        if options.get("return_overflowing_tokens"):
            for key, values in list(made.items()):
                made[key] = values[:2]
        return made

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", hasty)
    context = " ".join(language.WORDS[:30])
    with pytest.raises(DataError, match=r"question 1: .* of the context's 119 characters alone"):
        read(tmp_path, [paragraph(context, "fif fig")], sequence=16, stride=4)
