"""The forward pass of every Gemma family in NumPy: the executable form of csrc/MODEL.md.

It shares no line with the gemlet package, so that the two can be checked against each other and both against
tests/golden. Read in the order config.py, weights.py, forward.py.
"""
