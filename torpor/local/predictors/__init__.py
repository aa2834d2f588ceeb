"""The predictors of a stack: started, watched, scaled, and sent requests."""
