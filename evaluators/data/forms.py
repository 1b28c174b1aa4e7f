"""What the batches of a task hold (`Task.form`), for readers that serve several tasks.

Batches of images and of tables are tuples: (images float32 [n, C, H, W] or features float32
[n, d], and what is wanted).
All text batches are dicts with `input_ids` and `attention_mask` int64 [n, L] (1 = counts), and
`token_type_ids` where the tokenizer gives them, padded to one length L over all parts of the data.
"""

from __future__ import annotations

CLASSES = "classes"
"""A text, or two that belong together, and a class: `labels` int64 [n]."""
TARGETS = "targets"
"""A text, an image or features, and numbers: `labels` float32 [n, k]."""
PIXELS = "pixels"
"""Images, and a class for each pixel: int64 [n, H, W], 255 where none counts."""
BOXES = "boxes"
"""Images, and boxes float32 [n, M, 5]: class, x1, y1, x2, y2 in pixels; class -1 is padding."""
PAIRS = "pairs"
"""Two texts each tokenized alone, in the dicts `first` and `second`, and how similar they are:
`score` float32 [n], at most 1."""
ANSWERS = "answers"
"""A question and a window of the context that answers it, with what SQuAD's arithmetic needs (text/
squad.py)."""
TOKENS = "tokens"
"""Running text, cut into pieces of one length; no labels."""
MASKED = "masked"
"""The same, with tokens replaced: `labels` int64 [n, L] are what stood there, -100 elsewhere."""
