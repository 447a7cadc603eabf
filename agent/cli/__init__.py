"""The commands, a module each, with `main(arguments)` that returns the exit code."""
