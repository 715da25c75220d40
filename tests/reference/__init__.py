"""The forward pass of every Gemma family in NumPy: the executable form of csrc/MODEL.md.

It shares no line with the gemlet package, so that the two can be checked against each other and both against
tests/golden. Read in the order config.py, weights.py, model.py, blocks.py; then attention.py, mlp.py,
experts.py, per_layer_inputs.py, altup.py; and forward.py, which puts them together.
"""
