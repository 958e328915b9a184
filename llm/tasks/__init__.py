"""The kinds of run: a module each, with `run(config, workdir)`."""
