"""The studies: one module per scientific question, with shared code in `experiments.common`."""

import os

# On a CPU the runs already use all cores, one each, and additional threads of a linear-algebra library would slow them
# down. OpenBLAS reads this once, when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def study(question, *, workdir=None, **settings):
    """Runs a question's study in this process, see :func:`experiments.common.study.study`."""
    from experiments.common import needs

    with needs.importing():
        from experiments.common.study import study
    return study(question, workdir=workdir, **settings)
