"""A user's slips, a module for each package: name, call, and a pattern that the message must match."""
