"""Functions that tests run in a process of their own (``support.processes``), one file for each test file."""
