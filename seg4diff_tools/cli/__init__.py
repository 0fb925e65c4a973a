"""Commands of the command line, a module each; what they need is imported when they run."""
