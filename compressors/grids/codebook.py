"""The values that the codes of a weight format stand for, and rounding to the nearest of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """`values`: float32 [n], rising, 0 among them. `code`: uint8 [n], the code of each. A weight
    halfway between two goes to the one whose code is even (IEEE 754's rule, where codes are bit
    patterns)."""

    values: Tensor
    code: Tensor

    @property
    def spacing(self) -> float:
        return float((self.values[1:] - self.values[:-1]).max())

    @property
    def largest(self) -> float:
        return float(self.values.abs().max())

    def bounds(self, kind: torch.dtype) -> Tensor:
        """[n - 1]: a number above the i-th one is nearer to the value i + 1 than to the value i. At
        a tie that goes up, the bound is one number below the middle."""
        middle = ((self.values[1:].double() + self.values[:-1].double()) / 2).to(kind)
        up = self.code[1:] % 2 == 0
        return torch.where(up, torch.nextafter(middle, middle - 1), middle)

    def nearest(self, ratio: Tensor) -> Tensor:
        """Numbers -> the nearest values, in their type."""
        return self.values.to(ratio)[self._places(ratio)]

    def codes(self, ratio: Tensor) -> Tensor:
        """Numbers -> the codes of the nearest values, uint8."""
        return self.code.to(ratio.device)[self._places(ratio)]

    def values_of(self, codes: Tensor) -> Tensor:
        """Codes, of any type -> values, float32."""
        table = self.values.new_zeros(256)
        table[self.code.long()] = self.values
        return table.to(codes.device)[codes.long()]

    def _places(self, ratio: Tensor) -> Tensor:
        bounds = self.bounds(ratio.dtype).to(ratio.device)
        return torch.bucketize(ratio.contiguous(), bounds)


@functools.cache
def minifloat(exponent: int, mantissa: int) -> Codebook:
    """A float of a sign, `exponent` and `mantissa` bits, with subnormals and the bias
    2^(exponent - 1) - 1, whose codes are its bit patterns (OCP Microscaling Formats v1.0, section
    5.3; OCP 8-bit floating point v1.0). E4M3 has no infinity and one NaN; smaller ones have none.
    The negative zero is not used."""
    bias, found = 2 ** (exponent - 1) - 1, {}
    for pattern in range(2 ** (exponent + mantissa)):
        power, fraction = pattern >> mantissa, pattern % 2**mantissa
        if (exponent, mantissa) == (4, 3) and pattern == 0b1111111:
            continue
        part = fraction / 2**mantissa
        value = (1 + part) * 2.0 ** (power - bias) if power else part * 2.0 ** (1 - bias)
        found[value] = pattern
        if pattern:
            found[-value] = pattern | 1 << (exponent + mantissa)
    values = sorted(found)
    return Codebook(
        torch.tensor(values, dtype=torch.float32),
        torch.tensor([found[value] for value in values], dtype=torch.uint8),
    )
