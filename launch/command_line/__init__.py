"""Arguments, flags and help, out of the settings' dataclasses."""
