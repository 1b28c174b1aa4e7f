import copy
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from apportion.compressors.calibration import FullPass
from apportion.compressors.corrections import correct, record
from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import expand_levels, parse_level
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.models.build import build_model
from apportion.evaluators.scoring import segments
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload, model_fingerprint

DENSE = (0,) * 14
MODES = ("running", "batch", "recalibrate")


def data(digits: Workload) -> FullPass:
    return FullPass(lambda: (x for x, _ in digits.calibration.batches(64)))


def stitched(
    digits: Workload, database: LayerDatabase, candidate: tuple[int, ...]
) -> torch.nn.Module:
    model = copy.deepcopy(digits.model)
    levels = database.levels()
    database.stitch(
        model,
        {name: parse_level(levels[name][i]) for name, i in zip(levels, candidate, strict=True)},
    )
    return model


def candidates(seed: int, count: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    drawn = [tuple(rng.integers(0, 5, 14).tolist())]
    while len(drawn) < count:  # neighbours, so that prefixes are shared
        changed = list(drawn[-1])
        changed[int(rng.integers(14))] = int(rng.integers(5))
        drawn.append(tuple(changed))
    return drawn


def test_dense_in_running_mode_is_the_models_own_loss(
    digits: Workload, database: LayerDatabase
) -> None:
    with torch.no_grad():
        outputs = digits.model(digits.calibration.batch[0])
    expected = float(F.cross_entropy(outputs.double(), digits.calibration.batch[1]))
    assert StitchedScorer(digits, database, "loss", "running").score(DENSE) == pytest.approx(
        expected, rel=1e-6
    )
    wrong = float((outputs.argmax(1) != digits.calibration.batch[1]).double().mean())
    assert StitchedScorer(digits, database, "error", "running").score(DENSE) == pytest.approx(
        wrong, abs=1e-12
    )
    assert StitchedScorer(digits, database, "kl", "running").score(DENSE) == 0


def test_kl_is_against_the_dense_outputs(digits: Workload, database: LayerDatabase) -> None:
    candidate = (2,) * 14
    with torch.no_grad():
        dense = digits.model(digits.calibration.batch[0]).double().log_softmax(1)
        ours = (
            stitched(digits, database, candidate)(digits.calibration.batch[0])
            .double()
            .log_softmax(1)
        )
    expected = float((dense.exp() * (dense - ours)).sum(1).mean())
    assert StitchedScorer(digits, database, "kl", "running").score(candidate) == pytest.approx(
        expected, rel=1e-5
    )


def test_batch_mode_uses_the_batchs_own_statistics(
    digits: Workload, database: LayerDatabase
) -> None:
    candidate = (3,) * 14
    model = stitched(digits, database, candidate)
    model.train()
    total = 0.0
    with torch.no_grad():
        for x, y in digits.calibration.batches(digits.batch_size):
            total += float(F.cross_entropy(model(x).double(), y, reduction="sum"))
    expected = total / len(digits.calibration)
    assert StitchedScorer(digits, database, "loss", "batch").score(candidate) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("fitness", ["loss", "kl", "error"])
def test_a_full_score_goes_on_from_the_partial_one(
    digits: Workload, database: LayerDatabase, fitness: str
) -> None:
    counted: list[int] = []

    class Counting(StitchedScorer):
        def _total(self, b: int, outputs: object) -> float:
            counted.append(b)
            return super()._total(b, outputs)

    batches = -(-len(digits.calibration) // digits.batch_size)
    assert batches > 2
    for candidate in set(candidates(3, 4)):
        counting, plain = (
            kind(digits, database, fitness, "batch") for kind in (Counting, StitchedScorer)
        )
        assert counting.score(candidate, 0.5) == StitchedScorer(
            digits, database, fitness, "batch"
        ).score(candidate, 0.5)
        assert counting.score(candidate) == plain.score(candidate)
        assert counting.score(candidate, 0.5) == plain.score(candidate, 0.5)
        assert counted == list(range(batches))  # no batch twice
        counted.clear()


def test_scoring_stops_when_the_bound_is_out_of_reach(
    digits: Workload, database: LayerDatabase
) -> None:
    scorer = StitchedScorer(digits, database, "loss", "batch")
    for candidate in set(candidates(4, 6)):
        fitness = StitchedScorer(digits, database, "loss", "batch").score(candidate)
        assert scorer.score(candidate, 1.0, fitness / 2) == float("inf")
        assert len(scorer._sums[candidate]) < len(scorer._batches)
        assert (
            scorer.score(candidate, 1.0, fitness) == fitness
        )  # at its bound, and after it was stopped once
        assert scorer.score(candidate) == fitness


@pytest.mark.parametrize("fitness", ["loss", "kl"])
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_a_stack_scores_what_its_candidates_score_alone(
    digits: Workload, database: LayerDatabase, fitness: str, mode: str
) -> None:
    alone, stack = (StitchedScorer(digits, database, fitness, mode) for _ in range(2))
    stack.width = 4  # as a GPU's measurement may choose it
    drawn = candidates(5, 6)
    requests = [(c, 0.5) if i % 3 == 2 else (c, 1.0) for i, c in enumerate(drawn)]
    scores = stack.score_many(requests)
    assert scores == pytest.approx([alone.score(*request) for request in requests], rel=1e-5)
    assert stack.score_many(requests[4:5]) == scores[4:5]  # whatever shares the stack
    assert stack.score_many(requests[::-1]) == scores[::-1]
    assert alone.score(drawn[0]) == stack.score(drawn[0])  # the model is as it was


def test_bf16_ranks_candidates_as_float32_does(digits: Workload, database: LayerDatabase) -> None:
    drawn = list(dict.fromkeys(candidates(6, 20)))
    exact, coarse = (
        StitchedScorer(digits, database, "loss", "batch", precision=p) for p in ("float32", "bf16")
    )
    pairs = [(exact.score(c), coarse.score(c)) for c in drawn]
    assert any(a != b for a, b in pairs)
    assert all(b == pytest.approx(a, rel=0.05) for a, b in pairs)
    assert spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic > 0.97
    whole = StitchedScorer(digits, database, "loss", "batch", precision="bf16", prefix_bytes=0)
    assert [whole.score(c) for c in drawn] == [b for _, b in pairs]
    with pytest.raises(UnknownNameError, match="bf16"):
        StitchedScorer(digits, database, "loss", "batch", precision="bf6")


def test_recalibrate_mode_re_tunes_for_every_candidate(
    digits: Workload, database: LayerDatabase
) -> None:
    from apportion.compressors.corrections import retune_batchnorm

    candidate = (3,) * 14
    model = stitched(digits, database, candidate)
    retune_batchnorm(model, data(digits))
    with torch.no_grad():
        outputs = torch.cat([model(x) for x, _ in digits.calibration.batches(digits.batch_size)])
    expected = float(F.cross_entropy(outputs.double(), digits.calibration.batch[1]))
    scorer = StitchedScorer(digits, database, "loss", "recalibrate")
    assert scorer.score(candidate) == pytest.approx(expected, rel=1e-6)
    assert scorer.score(DENSE) < scorer.score(candidate)
    assert scorer.score(candidate) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_scores_do_not_depend_on_what_was_scored_before(
    digits: Workload, database: LayerDatabase, mode: str
) -> None:
    drawn = candidates(1, 6)
    together = StitchedScorer(digits, database, "loss", mode)
    alone = [StitchedScorer(digits, database, "loss", mode).score(c) for c in drawn]
    assert [together.score(c) for c in drawn] == alone
    assert [together.score(c) for c in reversed(drawn)] == alone[::-1]


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("prefix_bytes", [1 << 30, 1_000_000])
def test_prefix_reuse_changes_no_bit(
    digits: Workload, database: LayerDatabase, mode: str, prefix_bytes: int
) -> None:
    reuse = StitchedScorer(digits, database, "loss", mode, prefix_bytes=prefix_bytes)
    full = StitchedScorer(digits, database, "loss", mode, prefix_bytes=0)
    for i, candidate in enumerate(candidates(2, 25)):
        fidelity = 0.5 if i % 3 == 0 else 1.0
        assert reuse.score(candidate, fidelity) == full.score(candidate, fidelity)


def test_prefix_reuse_really_skips_the_prefix(digits: Workload, database: LayerDatabase) -> None:
    scorer = StitchedScorer(digits, database, "loss", "running")
    scorer.score(DENSE)
    calls: list[str] = []
    for name, module in scorer._model.named_modules():
        if name in database.layers:
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    scorer.score((*DENSE[:-1], 1))
    assert set(calls) == {"linear"}


def test_nothing_is_kept_while_candidates_have_nothing_in_common(
    digits: Workload, database: LayerDatabase
) -> None:
    scorer = StitchedScorer(digits, database, "loss", "running")
    kept = scorer._prefixes._kept
    scorer.score(DENSE)
    assert all(kept)
    for i in range(130):
        scorer._sums.clear()
        scorer.score(((i + 1) % 3, *DENSE[1:]))
    assert not any(kept)
    for i in range(8):
        scorer._sums.clear()
        scorer.score((*DENSE[:-1], i % 3))
    assert all(kept)


def test_a_bounded_weight_cache_gives_the_same(digits: Workload, database: LayerDatabase) -> None:
    small = StitchedScorer(digits, database, "loss", "running", weight_bytes=1)
    large = StitchedScorer(digits, database, "loss", "running")
    for candidate in candidates(3, 8):
        assert small.score(candidate) == large.score(candidate)


def test_the_workloads_model_is_left_alone(digits: Workload, database: LayerDatabase) -> None:
    before = {k: v.clone() for k, v in digits.model.state_dict().items()}
    for mode in MODES:
        StitchedScorer(digits, database, "loss", mode).score((4,) * 14)
    assert all(torch.equal(v, before[k]) for k, v in digits.model.state_dict().items())


def test_fidelity_takes_the_first_batches(digits: Workload, database: LayerDatabase) -> None:
    half = Workload(
        digits.model,
        digits.calibration.subset(range(128)),
        digits.train,
        digits.test,
        digits.batch_size,
    )
    whole = StitchedScorer(digits, database, "loss", "batch")
    assert whole.score((2,) * 14, 0.5) == StitchedScorer(half, database, "loss", "batch").score(
        (2,) * 14
    )
    assert whole.score((2,) * 14, 0.01) == whole.score((2,) * 14, 0.25)


def test_bad_candidates_and_names(digits: Workload, database: LayerDatabase) -> None:
    scorer = StitchedScorer(digits, database, "loss", "running")
    with pytest.raises(ConfigurationError, match="13 levels for 14 layers"):
        scorer.score((0,) * 13)
    with pytest.raises(ConfigurationError, match="layer 'conv1': level index 9, valid are 0 to 4"):
        scorer.score((9, *DENSE[1:]))
    with pytest.raises(UnknownNameError, match="unknown fitness 'los'; did you mean 'loss'"):
        StitchedScorer(digits, database, "los", "running")
    with pytest.raises(
        UnknownNameError, match="unknown batchnorm mode 'batches'; did you mean 'batch'"
    ):
        StitchedScorer(digits, database, "loss", "batches")


@pytest.mark.parametrize(
    "name",
    ["torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:vgg11_bn", "cifar_resnet32"],
)
def test_segments_of_known_models_chain_to_the_model(name: str) -> None:
    model = build_model(name)
    names = {
        n: [m.get_parameter("weight")]
        for n, m in model.named_modules()
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    }
    cut = segments.cut(model, names, lambda batch: batch)
    assert len(cut.parts) >= 8
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = x
        for part in cut.parts:
            y = part(y)
        assert torch.equal(y, model(x))
    assert set(cut.where) == set(names)


@pytest.fixture(scope="module")
def joint(
    built: tuple[Workload, LayerDatabase], tmp_path_factory: pytest.TempPathFactory
) -> LayerDatabase:
    """The digits network at levels of every kind, inputs quantized too."""
    digits = built[0]
    return build_database(
        tmp_path_factory.mktemp("joint") / "database",
        digits.model,
        find_layers(digits.model, data(digits)),
        data(digits),
        expand_levels(
            [
                "dense",
                "2:4",
                "w4",
                "w4a4",
                "2:4+w4a4",
                "a8",
                "mag:unstr-0.75+rtn:w3",
                "block4-0.50+w8a8",
            ]
        ),
        model_fingerprint=model_fingerprint(digits.model),
        calibration_fingerprint="",
    )


@pytest.mark.parametrize("mode", MODES)
def test_quantized_inputs_are_scored_as_they_are_stitched(
    digits: Workload, joint: LayerDatabase, mode: str
) -> None:
    rng = np.random.default_rng(0)
    counts = [len(record.entries) for record in joint.layers.values()]
    drawn = [tuple(int(rng.integers(count)) for count in counts) for _ in range(4)]
    reused, whole = (
        StitchedScorer(digits, joint, "loss", mode, prefix_bytes=n) for n in (1 << 30, 0)
    )
    scores = [reused.score(candidate) for candidate in drawn]
    assert scores == [whole.score(candidate) for candidate in drawn]
    assert len(set(scores)) == 4
    if mode == "running":
        with torch.inference_mode():
            outputs = torch.cat(
                [stitched(digits, joint, drawn[0])(x) for x, _ in digits.calibration.batches(64)]
            )
        expected = float(F.cross_entropy(outputs.double(), digits.calibration.batch[1]))
        assert scores[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("names", [("statistics",), ("bias",), ("batchnorm", "bias")])
def test_corrections_are_made_for_each_candidate_and_undone(
    digits: Workload, database: LayerDatabase, names: tuple[str, ...]
) -> None:
    scorer = StitchedScorer(digits, database, "loss", "running", corrections=names)
    candidate = (2,) * 14
    model = stitched(digits, database, candidate)

    recorded = record(digits.model, data(digits))
    for name in names:
        correct(name, model, data(digits), recorded)
    with torch.inference_mode():
        outputs = torch.cat([model(x) for x in data(digits).batches()])
    expected = float(F.cross_entropy(outputs.double(), digits.calibration.batch[1]))
    plain = StitchedScorer(digits, database, "loss", "running").score(candidate)
    assert scorer.score(candidate) == pytest.approx(expected, rel=1e-6)
    assert scorer.score(candidate) != plain
    if "statistics" in names:
        assert scorer.score(candidate) < plain
    other = scorer.score((4,) * 14)
    assert other == StitchedScorer(digits, database, "loss", "running", corrections=names).score(
        (4,) * 14
    )


class Tied(torch.nn.Module):
    """A weight that the last layer shares with the first one, named after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.middle = torch.nn.Linear(64, 64)
        self.tail = torch.nn.Linear(64, 64)
        self.zero = torch.nn.Linear(64, 64)
        self.zero.weight = self.tail.weight
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.tail(self.middle(self.zero(x.flatten(1)).relu()).relu()).relu())


def test_a_tied_weight_changes_at_its_first_call(digits: Workload, tmp_path: Path) -> None:
    model = Tied().eval()
    workload = replace(digits, model=model)
    tied = build_database(
        tmp_path / "tied",
        model,
        find_layers(model, data(digits)),
        data(digits),
        expand_levels(["dense", "unstr-0.50", "w2a2"]),
        model_fingerprint=model_fingerprint(model),
        calibration_fingerprint="",
    )
    assert list(tied.layers) == ["middle", "tail", "head"]
    reused, whole = (
        StitchedScorer(workload, tied, "loss", "running", prefix_bytes=n) for n in (1 << 30, 0)
    )
    for candidate in itertools.product(range(3), repeat=3):
        assert reused.score(candidate) == whole.score(candidate)
    with torch.inference_mode():
        outputs = stitched(workload, tied, (0, 2, 0))(digits.calibration.batch[0])
    expected = float(F.cross_entropy(outputs.double(), digits.calibration.batch[1]))
    assert whole.score((0, 2, 0)) == pytest.approx(expected, rel=1e-6)
