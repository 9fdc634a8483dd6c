"""What is said of a run: numbers with intervals (`summary`), figures, signs of failure, and a page of all three."""
