import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressors import elimination, textbook, work
from compressors.corrections import retune_batchnorm
from compressors.elimination import Limits
from compressors.errors import LayerError, LevelError
from compressors.grids import GridOptions, fit_grid
from compressors.hessian import collect_hessians
from compressors.layers import LayerSpec, find_layers, to_matrix
from compressors.levels import expand_levels, parse_level
from compressors.obs import compress_layer, layer_error


def problem(seed: int, rows: int = 6, d: int = 12) -> tuple[Tensor, Tensor]:
    """Weights [rows, d] and a well-conditioned Hessian [d, d], float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * d, d, generator=generator, dtype=torch.float64) @ torch.randn(
        d, d, generator=generator, dtype=torch.float64
    )
    return torch.randn(rows, d, generator=generator, dtype=torch.float64), 2 * x.T @ x / len(x) + 0.01 * torch.eye(
        d, dtype=torch.float64
    )


def linear(rows: int, columns: int) -> LayerSpec:
    return LayerSpec("layer", "linear", (rows, columns), 1, rows, columns)


LIMITS = Limits(1 << 24, 2)


@pytest.fixture(params=["compiled", "torch"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fast forms: compiled loops, and torch where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(elimination, "_kernels", lambda: None)


unhurried = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("_form")
@unhurried
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 150))
def test_a_fast_elimination_is_the_textbooks(seed: int, rows: int, d: int) -> None:
    weight, hessian = problem(seed, rows, d)
    hinv = torch.linalg.inv(hessian)
    expected, ours = textbook.eliminate(weight, hinv), elimination.eliminate(weight, hinv, LIMITS)
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("_form")
@unhurried
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 20), st.integers(1, 5))
def test_fast_blocks_and_patterns_are_the_textbooks(seed: int, rows: int, groups: int, size: int) -> None:
    weight, hessian = problem(seed, rows, groups * size)
    hinv = torch.linalg.inv(hessian)
    blocks, expected = elimination.eliminate_blocks(weight, hinv, size, LIMITS), textbook.eliminate_blocks(weight, hinv, size)
    assert torch.equal(blocks[0], expected[0])
    torch.testing.assert_close(blocks[1], expected[1], rtol=1e-6, atol=1e-10)
    n = 1 + seed % size
    ours, theirs = elimination.prune_n_of_m(weight, hinv, n, size, LIMITS), textbook.prune_n_of_m(weight, hinv, n, size)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("_form")
@unhurried
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 70),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.builds(GridOptions, st.sampled_from(["channel", "tensor"]), st.booleans(), st.sampled_from(["mse", "minmax"])),
)
def test_fast_quantization_is_the_textbooks(seed: int, rows: int, d: int, bits: int, zeros: float, options: GridOptions) -> None:
    weight, hessian = problem(seed, rows, d)
    hinv = torch.linalg.inv(hessian)
    fixed = torch.rand(rows, d, generator=torch.Generator().manual_seed(seed)) < zeros
    weight = weight.masked_fill(fixed, 0)
    grid = fit_grid(weight, bits, options)
    near = elimination.quantize(weight, hinv, grid, fixed, LIMITS)
    torch.testing.assert_close(near, textbook.quantize(weight, hinv, grid, fixed), rtol=1e-6, atol=1e-9)
    assert not near[fixed].any()


@pytest.mark.usefixtures("_form")
def test_many_refreshes_change_nothing() -> None:
    weight, hessian = problem(5, 3, 400)
    hinv = torch.linalg.inv(hessian)
    assert torch.equal(elimination.eliminate(weight, hinv, Limits(1, 1))[0], textbook.eliminate(weight, hinv)[0])
    mine = elimination.eliminate_blocks(weight, hinv, 4, Limits(1, 1))[0]
    assert torch.equal(mine, textbook.eliminate_blocks(weight, hinv, 4)[0])


def test_blocks_of_one_are_unstructured() -> None:
    weight, hessian = problem(7)
    hinv = torch.linalg.inv(hessian)
    assert torch.equal(elimination.eliminate_blocks(weight, hinv, 1, LIMITS)[0], elimination.eliminate(weight, hinv, LIMITS)[0])


def test_an_identity_hessian_rounds_to_nearest_and_prunes_by_magnitude() -> None:
    weight, _ = problem(8)
    eye = torch.eye(12, dtype=torch.float64)[None]
    pairs = [("w4", "rtn:w4"), ("2:4", "mag:2:4"), ("block4-0.50", "mag:block4-0.50"), ("2:4+w4", "mag:2:4+rtn:w4")]
    for exact, free in pairs:
        made = list(compress_layer(weight, linear(6, 12), eye, [parse_level(exact), parse_level(free)]))
        assert torch.equal(made[0].weight, made[1].weight)


def test_a_pattern_that_removes_nothing_is_dense() -> None:
    weight, hessian = problem(9)
    levels = [parse_level(text) for text in ("4:4", "4:4+w4", "w4")]
    nothing, joint, quantized = compress_layer(weight, linear(6, 12), hessian[None], levels)
    assert torch.equal(nothing.weight, weight.float())
    torch.testing.assert_close(joint.weight, quantized.weight)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2))
def test_every_kind_has_the_pattern_it_promises(seed: int, rows: int, eights: int, dead: int) -> None:
    d = 8 * eights
    weight, hessian = problem(seed, rows, d)
    hessian[:, :dead] = hessian[:dead, :] = 0
    texts = ["2:4", "4:8", "1:2", "block4-0.50", "mag:2:4", "2:4+w3", "unstr-0.75+w8", "mag:block4-0.50+rtn:w2", "w2", "w1"]
    for made in compress_layer(weight, linear(rows, d), hessian[None], [parse_level(text) for text in texts]):
        sparsity, matrix = made.level.sparsity, made.weight
        if sparsity is not None and sparsity.kind == "nm":
            assert int((matrix.reshape(-1, sparsity.m) != 0).sum(1).max()) <= sparsity.n
        elif sparsity is not None and sparsity.kind == "block":
            assert int((matrix.reshape(-1, sparsity.block) == 0).all(1).sum()) >= rows * d / 8
        elif sparsity is not None:
            assert int((matrix == 0).sum()) >= 0.75 * rows * d
        if made.grid is not None:
            kept = matrix != 0
            on_grid = made.grid.values(made.grid.codes(matrix))
            assert torch.equal(on_grid[kept], matrix[kept])
            assert all(len(row.unique()) <= 2**made.grid.bits + 1 for row in matrix)
        assert made.error == pytest.approx(layer_error(matrix.double() - weight.float().double(), hessian[None]), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(8, 8, 1), (16, 8, 2), (16, 16, 4), (8, 8, 8), (6, 9, 3)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.booleans(),
)
def test_convolutions_of_all_shapes_keep_their_patterns(
    seed: int, channels: tuple[int, int, int], kernel: int, stride: int, dilation: int, flat: bool
) -> None:
    """Groups, depthwise, stride, dilation, 'same' padding, Conv1d and Conv2d: the patterns run channel last."""
    torch.manual_seed(seed)
    inside, outside, groups = channels
    kind = nn.Conv1d if flat else nn.Conv2d
    conv: nn.Module = kind(inside, outside, kernel, stride, "same" if stride == 1 else 1, dilation, groups, bias=False)
    model = nn.Sequential(conv)
    spec = find_layers(model)[0]
    inputs = torch.randn(12, inside, *(11,) * (1 if flat else 2))
    hessian = collect_hessians(model, [spec], [inputs])["0"]
    texts = ["unstr-0.60", "2:4", "1:2", "block2-0.50", "block4-0.50", "2:4+w3", "mag:1:2", "w2"]
    made = list(compress_layer(conv.weight, spec, hessian, [parse_level(text) for text in texts]))
    assert {str(m.level) for m in made} >= {"unstr-0.60", "w2"}
    assert ("2:4" in {str(m.level) for m in made}) == (spec.columns % 4 == 0)
    with torch.no_grad():
        dense = model(inputs)
        for one in made:
            assert one.weight.shape == conv.weight.shape
            last = one.weight.movedim(1, -1).reshape(outside, -1)
            sparsity = one.level.sparsity
            if sparsity is not None and sparsity.kind == "nm":
                assert int((last.reshape(-1, sparsity.m) != 0).sum(1).max()) <= sparsity.n
            elif sparsity is not None:
                gone = (last.reshape(-1, sparsity.block or 1) == 0).all(1)
                assert int(gone.sum()) >= sparsity.fraction * len(gone)
            # The recorded error is the mean over samples of the squared change of the output.
            changed = torch.func.functional_call(model, {"0.weight": one.weight}, inputs)
            expected = float(((changed - dense).double() ** 2).sum()) / len(inputs)
            assert one.error == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_levels_that_do_not_fit_a_layer_are_absent() -> None:
    weight, hessian = problem(10, d=6)
    texts = ["dense", "2:4", "block4-0.50", "1:3", "block2-0.50", "w4"]
    made = compress_layer(weight, linear(6, 6), hessian[None], [parse_level(text) for text in texts])
    assert [str(m.level) for m in made] == ["dense", "1:3", "block2-0.50", "w4"]


@pytest.mark.parametrize("eliminate", [textbook.eliminate, elimination.eliminate])
def test_an_identity_hessian_removes_by_magnitude(eliminate: object) -> None:
    weight, _ = problem(2)
    order, losses = eliminate(weight, torch.eye(12, dtype=torch.float64))  # type: ignore[operator]
    assert torch.equal(order, weight.abs().argsort(dim=1))
    torch.testing.assert_close(losses, weight.abs().sort(dim=1).values ** 2 / 2)


@pytest.mark.parametrize("eliminate", [textbook.eliminate, elimination.eliminate])
def test_ties_go_to_the_lowest_column(eliminate: object) -> None:
    order, _ = eliminate(torch.ones(3, 7, dtype=torch.float64), torch.eye(7, dtype=torch.float64))  # type: ignore[operator]
    assert order.tolist() == [list(range(7))] * 3


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2))
def test_levels_have_their_pattern_and_the_least_error_on_it(seed: int, rows: int, d: int, dead: int) -> None:
    weight, hessian = problem(seed, rows, d)
    hessian[:, :dead] = hessian[:dead, :] = 0
    levels = [parse_level(f"unstr-{s}") for s in (0.2, 0.5, 0.9)]
    for made in compress_layer(weight, linear(rows, d), hessian[None], levels):
        zeros = made.weight == 0
        wanted = -(-round(rows * d * made.level.fraction_removed, 6) // 1)
        assert int(zeros.sum()) >= wanted if dead else int(zeros.sum()) == wanted
        assert made.error == pytest.approx(layer_error(made.weight.double() - weight, hessian[None]), rel=1e-5, abs=1e-9)
        # What is left is the least-squares optimum on its pattern: the gradient vanishes where weights remain.
        gradient = (made.weight.double() - weight) @ hessian
        assert float((gradient * ~zeros).abs().max()) <= 1e-3 * float(hessian.abs().max())


def test_removals_are_picked_across_rows_by_loss() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], dtype=torch.float64)
    (made,) = compress_layer(weight, linear(2, 3), torch.eye(3, dtype=torch.float64)[None], [parse_level("unstr-0.5")])
    assert made.weight.tolist() == [[0, 0, 0], [10, 20, 30]]


def test_magnitude_is_the_data_free_baseline() -> None:
    weight, hessian = problem(4)
    levels = [parse_level("mag:unstr-0.5"), parse_level("unstr-0.5"), parse_level("dense")]
    magnitude, exact, dense = compress_layer(weight, linear(6, 12), hessian[None], levels)
    assert torch.equal(magnitude.weight != 0, weight.abs() > weight.abs().flatten().sort().values[35])
    assert torch.equal(magnitude.weight[magnitude.weight != 0], weight.float()[magnitude.weight != 0])
    assert dense.error == dense.normalized_error == 0 < exact.error < magnitude.error
    assert exact.normalized_error == pytest.approx(exact.error / layer_error(weight, hessian[None]))


def test_groups_are_compressed_by_their_own_hessians() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2))
    (spec,) = find_layers(model)
    x = torch.randn(60, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    hessian = collect_hessians(model, [spec], [x])["0"]
    (made,) = compress_layer(model[0].weight, spec, hessian, [parse_level("unstr-0.5")])
    difference = to_matrix(made.weight.double() - model[0].weight.detach().double(), spec)
    assert made.error == pytest.approx(layer_error(difference, hessian), rel=1e-9)
    assert made.error <= min(e.error for e in compress_layer(model[0].weight, spec, hessian, [parse_level("mag:unstr-0.5")]))


@pytest.mark.parametrize("weight", [torch.zeros(3, 5), torch.tensor([[0.0] * 5, [1.0, 0, 2, 0, 3]])])
def test_rows_of_zeros(weight: Tensor) -> None:
    _, hessian = problem(5, d=5)
    for made in compress_layer(weight, linear(len(weight), 5), hessian[None], expand_levels(["dense", "unstr-0.3..0.9"])):
        assert torch.isfinite(made.weight).all()
        assert 0 <= made.normalized_error <= 1 + 1e-9


def test_a_layer_that_no_input_reaches() -> None:
    (made,) = compress_layer(torch.ones(2, 4), linear(2, 4), torch.zeros(1, 4, 4), [parse_level("unstr-0.5")])
    assert int((made.weight == 0).sum()) == 8  # all are dead: they go whatever the level
    assert made.error == made.normalized_error == 0


def test_a_layer_with_one_input() -> None:
    (made,) = compress_layer(torch.tensor([[3.0], [1.0], [2.0]]), linear(3, 1), torch.ones(1, 1, 1), [parse_level("unstr-0.6")])
    assert made.weight.tolist() == [[3.0], [0.0], [0.0]]


def test_values_that_are_not_finite_and_levels_that_are_not_made() -> None:
    weight, hessian = problem(6)
    spec, half = linear(6, 12), [parse_level("unstr-0.5")]
    bad = weight.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(LayerError, match="layer 'layer': its weights hold NaN"):
        next(compress_layer(bad, spec, hessian[None], half))
    with pytest.raises(LayerError, match="layer 'layer': its Hessian holds NaN"):
        next(compress_layer(weight, spec, hessian[None] * float("nan"), half))
    for text in ("filter-0.50", "w4a8"):
        with pytest.raises(LevelError, match=text):
            next(compress_layer(weight, spec, hessian[None], [parse_level(text)]))


def test_greedy_is_near_the_best_pattern() -> None:
    """Against every pattern of three zeros in a row of six."""
    ratios = []
    for seed in range(10):
        weight, hessian = problem(seed, rows=1, d=6)
        (made,) = compress_layer(weight, linear(1, 6), hessian[None], [parse_level("unstr-0.5")])
        best = min(_least(weight[0], hessian, list(gone)) for gone in itertools.combinations(range(6), 3))
        ratios.append(made.error / best)
    assert min(ratios) >= 1 - 1e-5
    assert sorted(ratios)[5] < 1.5


def _least(w: Tensor, hessian: Tensor, gone: list[int]) -> float:
    hinv = torch.linalg.inv(hessian)[gone][:, gone]
    return 0.5 * float(w[gone] @ torch.linalg.solve(hinv, w[gone]))


@pytest.fixture(scope="module")
def resnet20(shared_data: Path) -> tuple[nn.Module, list[LayerSpec], dict[str, Tensor]]:
    """The real ResNet-20, those of its layers that the reference names, and their Hessians on the calibration images."""
    from evaluators.workloads import WorkloadConfig, load_workload

    reference = json.loads((shared_data / "reference.json").read_text())["layer_errors"]["layers"]
    cifar = shared_data / "cifar10"
    data = {"kind": "npz", "calibration": str(cifar / "calib1024.npz"), "test": str(cifar / "calib1024.npz")}
    weights = str(shared_data / "models" / "resnet20_cifar10.safetensors")
    workload = load_workload(WorkloadConfig.model_validate({"model": "cifar_resnet20", "weights": weights, "data": data}))
    layers = [layer for layer in find_layers(workload.model) if layer.name in reference]
    assert len(layers) == 3
    batches = (x for x, _ in workload.calibration.batches(128))
    return workload.model, layers, collect_hessians(workload.model, layers, batches)


def test_published_layer_errors(shared_data: Path, resnet20: tuple[nn.Module, list[LayerSpec], dict[str, Tensor]]) -> None:
    """Three layers of the real ResNet-20 against the published implementation's figures, to 1e-3 relative."""
    reference = json.loads((shared_data / "reference.json").read_text())["layer_errors"]["layers"]
    model, layers, hessians = resnet20
    modules = dict(model.named_modules())
    for layer in layers:
        expected = {str(parse_level(text)): error for text, error in reference[layer.name].items()}
        levels = [parse_level(text) for text in expected]
        assert len(levels) == 18
        for made in compress_layer(modules[layer.name].weight, layer, hessians[layer.name], levels):
            # OBQ's order flips at near-ties, so that its error is the same in distribution, not in digits.
            flips = made.level.quantization is not None and not made.level.quantization.nearest
            assert made.error == pytest.approx(expected[str(made.level)], rel=0.05 if flips else 1e-3)


@pytest.mark.slow
def test_single_precision_keeps_real_layer_errors(
    resnet20: tuple[nn.Module, list[LayerSpec], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layers, hessians = resnet20
    modules = dict(model.named_modules())
    levels = expand_levels(["unstr-0.10..0.99*0.7", "2:4", "4:8", "block4-0.50", "block4-0.75", "w8", "w4", "2:4+w4"])
    for layer in layers:
        arguments = (modules[layer.name].weight, layer, hessians[layer.name], levels)
        double = list(compress_layer(*arguments))
        with monkeypatch.context() as patch:
            patch.setattr(work, "_DOUBLE_UP_TO", 0)
            single = list(compress_layer(*arguments))
        assert not all(torch.equal(a.weight, b.weight) for a, b in zip(double, single, strict=True))
        for a, b in zip(double, single, strict=True):
            near_ties = a.level.quantization is not None
            assert b.error == pytest.approx(a.error, rel=0.05 if near_ties else 1e-4), (layer.name, str(a.level))


def test_retuning_averages_the_batches_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    batches = list(torch.randn(3, 20, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    with torch.no_grad():
        means = torch.stack([model[0](x).mean(0) for x in batches]).mean(0)
        variances = torch.stack([model[0](x).var(0) for x in batches]).mean(0)
    retune_batchnorm(model, batches)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert not model.training
    assert not model[1].training
    assert model[1].momentum == 0.1
