"""Ways to run a plan; each module is one engine with the same contract (see `base`)."""
