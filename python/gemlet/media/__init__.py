"""Images and sound, from what a caller has to what a tower takes."""
