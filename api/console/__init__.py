"""The console: one page for people, on the same public API that everybody uses.

`page` serves three files without a build step; `overview` tells what no other call does. Nothing
here knows more than a caller with a key may know.
"""
