"""Every task's values on CUDA are those of the CPU."""

import copy

import pytest
import torch

from apportion.evaluators.data import trees
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import Workload
from tests.contracts.test_task import TASKS, outputs_of, values, worse


@pytest.mark.parametrize("name", TASKS)
def test_values_are_those_of_the_cpu(name: str) -> None:
    case = TASKS[name]()
    batch, model = case.data.batch, worse(case.model)
    cpu = values(case, batch)
    dense, other = copy.deepcopy(case.model).cuda(), copy.deepcopy(model).cuda()
    placed = trees.placed(batch, "cuda")
    made, kept = outputs_of(case, other, placed), outputs_of(case, dense, placed)
    gpu = {
        "loss": case.task.loss(made, placed),
        "divergence": case.task.divergence(made, case.task.reference(kept, placed), placed),
        "error": case.task.error(made, placed),
    }
    for what, value in gpu.items():
        assert value.is_cuda, what
        torch.testing.assert_close(value.cpu(), cpu[what], rtol=2e-3, atol=1e-4)
    workload = Workload(model, case.data, case.data, case.data, batch_size=5, task=case.task)
    assert evaluate(workload, other, "cuda") == pytest.approx(evaluate(workload, model), rel=1e-2)
