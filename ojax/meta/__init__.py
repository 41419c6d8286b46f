"""Meta-learning of local rules: gradient descent on a rule's coefficients.

:func:`classifier` is a network that learns by a weighted sum of local rules, :func:`ojax.plasticity.pool`. :func:`learner`
learns the coefficients of this sum: a :class:`ojax.online.Learner` whose samples are episodes.
"""

from ojax.meta.learner import Episodes, episode, learner
from ojax.meta.networks import classifier

__all__ = ["Episodes", "classifier", "episode", "learner"]
