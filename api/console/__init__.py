"""The console: a web page on the public API.

`page` serves the files of `web/`, without a build step; `overview` is the one call that only the console needs. The
console can do nothing that its user's API key cannot.
"""
