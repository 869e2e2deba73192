"""The commands of the command line, a few to a module: their flags, and what they run."""
