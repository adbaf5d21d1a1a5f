"""How the embedded backbone was made: public images in, a Stable Diffusion pipeline folder out."""
