"""Streams: samples that are generated on the device during training, from each run's seed.

A stream replaces arrays of training data: :func:`ojax.online.train` takes a :class:`ojax.datasets.Dataset` of either. The
samples of a run are a function of its seed, so all methods train on the same stream per seed. A run that is stopped resumes
in mid-stream, bit for bit, and memory does not grow with the stream.

- Images whose task changes: :func:`permuted_pixels`, :func:`permuted_labels`, :func:`drifting_gain`,
  :func:`classes_in_sequence`, and :func:`changing` for your own change.
- Numbers and sequences for recurrent networks: :func:`recall`, :func:`copy_task`, :func:`narma10`, :func:`mackey_glass`.
  :func:`evaluated_ahead` turns one of them into a data set.

For a stream in a file, load it as a data set and train with `Plan(shuffle=False)`.
"""

from ojax.streams.changing import changing, classes_in_sequence, drifting_gain, permuted_labels, permuted_pixels
from ojax.streams.series import copy_task, mackey_glass, narma10, recall
from ojax.streams.taking import evaluated_ahead, take

__all__ = [
    "changing",
    "classes_in_sequence",
    "copy_task",
    "drifting_gain",
    "evaluated_ahead",
    "mackey_glass",
    "narma10",
    "permuted_labels",
    "permuted_pixels",
    "recall",
    "take",
]
