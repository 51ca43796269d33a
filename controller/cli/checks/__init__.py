"""The checks of `controller doctor`, one module for each subject."""
