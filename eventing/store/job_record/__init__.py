"""A job as fields of a Redis hash. No other modules have those field names."""
