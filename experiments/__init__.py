"""Runs and studies: the driver, the command line, and readers of their results."""
