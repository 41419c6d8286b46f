"""Meta-learning: which local rule would learning itself choose?

:func:`classifier` is a network that learns by a weighted sum of local rules, :func:`ojax.plasticity.pool`, and
:func:`learner` learns the weights: a :class:`ojax.online.Learner` whose samples are episodes.
"""

from ojax.meta.learner import Episodes, episode, learner
from ojax.meta.networks import classifier

__all__ = ["Episodes", "classifier", "episode", "learner"]
