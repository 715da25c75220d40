"""The forward pass of every Gemma family in NumPy: the executable form of csrc/MODEL.md.

It shares no line with the gemlet package. So the two can be checked against each other, and both against
tests/golden. Read config.py, weights.py, model.py and blocks.py first, then attention.py, mlp.py, experts.py,
per_layer_inputs.py and altup.py, and last forward.py, which puts them together. mobilenet.py is a tower for
images.
"""
