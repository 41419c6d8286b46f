"""The tasks that questions share: axes, data and learner, one file each."""
