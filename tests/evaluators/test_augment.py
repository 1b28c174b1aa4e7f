import torch

from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.workloads.workload import Workload


def split() -> TensorSplit:
    inputs = torch.randn(10, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    return TensorSplit(inputs, torch.zeros(10, dtype=torch.int64))


def rounds(seed: int = 0, **options: object) -> list[torch.Tensor]:
    workload = Workload(torch.nn.Identity(), split(), split(), split(), 4)
    batches = workload.augmented(AugmentConfig.model_validate(options), seed)
    return [inputs for inputs, _labels in batches]


def test_every_round_sees_every_image_and_a_seed_decides_how() -> None:
    first, again, other = rounds(rounds=3), rounds(rounds=3), rounds(seed=1, rounds=3)
    assert [len(batch) for batch in first] == [4, 4, 2] * 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(torch.cat(first[:3]), torch.cat(first[3:6]))


def test_nothing_asked_is_the_plain_images() -> None:
    assert torch.equal(torch.cat(rounds(rounds=1, crop=0, flip=False)), split().inputs)


def test_an_image_is_a_shifted_crop_mirrored_or_not() -> None:
    images = torch.cat(rounds(rounds=20, crop=1))
    padded = torch.nn.functional.pad(split().inputs, (1, 1, 1, 1))
    seen = set()
    for i, image in enumerate(images):
        options = {
            (y, x, flip): (crop.flip(2) if flip else crop)
            for y in range(3)
            for x in range(3)
            for flip in (False, True)
            for crop in [padded[i % 10, :, y : y + 6, x : x + 5]]
        }
        (found,) = [key for key, crop in options.items() if torch.equal(crop, image)]
        seen.add(found)
    assert len(seen) == 18
