"""How good generated images are, against real images that the model was not trained on: one metric a file."""
