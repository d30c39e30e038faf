"""The command line: finds commands, parses options and reports errors."""
