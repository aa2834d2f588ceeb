"""Answers a question again that was asked before in other words, where code can show that they ask the same."""
