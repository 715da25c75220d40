"""Reads images, sounds and videos in the forms that a caller may pass, and prepares them for the towers."""
