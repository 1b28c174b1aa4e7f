"""What the batches of a task hold (`Task.form`), for readers that serve several tasks.

All text batches are dicts with `input_ids` and `attention_mask` int64 [n, L] (1 = counts), and
`token_type_ids` where the tokenizer gives them, padded to one length L over all parts of the data.
"""

from __future__ import annotations

CLASSES = "classes"
"""A text, or two that belong together, and a class: `labels` int64 [n]."""
TARGETS = "targets"
"""The same with numbers: `labels` float32 [n, k]."""
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
