"""How well a model knows the pictures of a data set."""
