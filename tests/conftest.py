"""Runs before any test."""

import signal

# A shell that starts a command in the background makes it ignore Ctrl-C, and its children inherit that. Tests
# press Ctrl-C, so give it back its meaning.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
