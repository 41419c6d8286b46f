"""Tasks: axes, data and learner that questions share, one file per task."""
