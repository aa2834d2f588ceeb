"""A discrete-event model of queue, activator, predictors and nodes, driven by the real policies."""
