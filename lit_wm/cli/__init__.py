"""The command line: ``lit-wm VERB``, a file per verb. The only folder that sees all others."""
