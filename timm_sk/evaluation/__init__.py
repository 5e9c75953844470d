"""How well a model knows the images of a data set."""
