"""An audit of somebody's generated images, or of a model, against the images it was trained on."""
