"""apportion: how much to compress every layer of a neural network, within hard budgets.

The four rooms, `apportion.compressors <- db <- evaluators <- search`, lie at the top of the
repository; this package holds links to them, so that what is imported has one name of its own."""

from importlib.metadata import version

__version__ = version("apportion")
