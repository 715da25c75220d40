"""Functions that tests run in a new process (``support.processes``). A file here serves one or two test
files."""
