"""How many predictors run, where, and the `torpor` command: policies, local stack, simulator."""
