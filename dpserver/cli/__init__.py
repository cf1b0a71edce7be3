"""The command line: one module per command, collected in `app`; torch is imported inside the commands only."""
