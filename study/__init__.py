"""The study: does cross-stitching help? It uses train.py as a user does, from the command line.

Run its programs from the repository's root, for example python -m study.plot logs.
"""
