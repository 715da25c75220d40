"""Functions that tests run in a new process with ``support.processes``. Each file belongs to one or two test
files."""
