"""The operations and modules that apportion knows of itself: importing this registers them."""

from __future__ import annotations

from apportion.compressors.kinds import attention, convolution, embedding, linear

__all__ = ["attention", "convolution", "embedding", "linear"]
