"""Rules that judge text: word lists, regular expressions, personal data and credentials. Pure.

Called by the predictor (answers, window by window), the steps (requests, whole answers, `/v1/moderations`) and whoever
checks settings. Must not know stores, HTTP or models.
"""
