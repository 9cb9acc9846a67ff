"""Training, evaluation and the making of the playground: not needed to run a node."""
