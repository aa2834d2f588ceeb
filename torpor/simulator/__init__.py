"""A discrete-event simulation of queue, activator, predictors and nodes, driven by the real policies."""
