"""The studies: one module a scientific question, over the machinery in `experiments.common`."""

import os

# On a CPU the runs already take all cores, one each; a linear-algebra library that starts threads of its own in each would
# only make them wait for one another. It reads this once, when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def study(question, *, workdir=None, **settings):
    """Answers a question in this process, see :func:`experiments.common.study.study`."""
    from experiments.common import needs

    with needs.importing():
        from experiments.common.study import study
    return study(question, workdir=workdir, **settings)
