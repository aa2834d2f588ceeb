"""The predictors of a stack: started, watched, scaled, and what is sent to them."""
