"""Meta-learning: which local rule would learning itself choose?

:data:`POOL` has the published local rules, :func:`pool` makes one Optax transformation of any of them and their
coefficients, :func:`classifier` is a network that learns by it, and :func:`learner` learns the coefficients: a
:class:`ojax.online.Learner` whose samples are episodes.
"""

from ojax.activity import ActivityAndErrors
from ojax.meta.learner import Episodes, episode, learner
from ojax.meta.networks import classifier
from ojax.meta.pool import pool
from ojax.meta.rules import POOL, Layer, Outer

__all__ = ["POOL", "ActivityAndErrors", "Episodes", "Layer", "Outer", "classifier", "episode", "learner", "pool"]
