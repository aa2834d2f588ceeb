"""Rules that judge text: word lists, regular expressions, personal data and credentials. Pure.

Called by the predictor (answers, window by window), by the steps (requests, and answers as a whole), and to check
settings. Must not know stores, HTTP or models.
"""
