"""The command line: one module per command, which parses, calls one function of the core, and shows the result."""
