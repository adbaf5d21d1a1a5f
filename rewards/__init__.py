"""How good generated images are, and how much of a private training set they give away.

This package knows tensors; it knows nothing of environments, policies or how a model was trained.
"""

import os

# torchmetrics imports transformers, which reads this once; envs/backbones says what it is for.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
